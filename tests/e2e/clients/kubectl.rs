//! `kubectl proxy`, which shows the caller's token for clients that have none.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::support::cluster::By;
use crate::support::program::Program;
use crate::world::World;

/// What it says before the place.
const WHERE: &str = "Starting to serve on ";

/// A running `kubectl proxy`. Dropping it ends it.
pub struct KubectlProxy {
    /// Where it says it serves: an address, or the path of a socket.
    place: String,
    folder: tempfile::TempDir,
    _program: Program,
}

impl KubectlProxy {
    /// In front of `server`, on a free port of loopback.
    pub async fn by_port(world: &World, server: &str) -> Result<Self> {
        Self::start(world, server, |_| "--port=0".into()).await
    }

    /// In front of `server`, on a socket in a folder of its own.
    pub async fn by_socket(world: &World, server: &str) -> Result<Self> {
        Self::start(world, server, |folder| format!("--unix-socket={}", folder.join("socket").display())).await
    }

    async fn start(world: &World, server: &str, how: impl FnOnce(PathBuf) -> String) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let by = By::Token(&world.token);
        let kubeconfig = world.cluster.kubeconfig("kubectl-proxy", server, &world.cluster.ca.file, &by)?;
        let mut command = Command::new(&world.cluster.kubectl);
        command.arg("proxy").arg(how(folder.path().into())).arg(format!("--kubeconfig={}", kubeconfig.display()));
        let mut program = Program::start(&mut command)?;
        let line = program.says(WHERE).await?;
        let place = line.split_once(WHERE).context("it was found by these words")?.1.trim().to_owned();
        Ok(Self { place, folder, _program: program })
    }

    pub fn address(&self) -> Result<SocketAddr> {
        self.place.parse().with_context(|| format!("kubectl proxy serves on {:?}", self.place))
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}
