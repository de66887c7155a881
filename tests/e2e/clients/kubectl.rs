//! kubectl, and `kubectl proxy`, which adds the token of the caller for clients without one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::support::cluster::KubeconfigUser;
use crate::support::program::Program;
use crate::world::{World, path};

/// All methods of `--raw`, with a kubeconfig for the bastion. The output, including errors, equals
/// that through the apiserver.
pub async fn kubectl_works_with_a_kubeconfig_for_the_bastion(world: &mut World) -> Result<()> {
    world.wait_until_known("services/web:80").await?;
    let folder = world.cluster.folder.path();
    let body = folder.join("order.json");
    std::fs::write(&body, r#"{"order": "tea"}"#)?;
    let by = KubeconfigUser::Token(&world.token);
    let kubeconfig = |name: &str, server: &str| {
        world
            .cluster
            .kubeconfig(name, server, &world.cluster.ca.file, &by)
    };
    let theirs = kubeconfig("by-the-apiserver", &world.cluster.server)?;
    let ours = kubeconfig(
        "by-the-bastion",
        &format!("https://{}", world.bastion.secure),
    )?;
    let file = format!("--filename={}", body.display());
    for (arguments, succeeds, says) in [
        (
            &["get", "--raw", &path("pods/web-1/proxy/name")][..],
            true,
            "web-1",
        ),
        (
            &["get", "--raw", &path("services/https:safe:443/proxy/name")],
            true,
            "safe-1",
        ),
        (
            &["create", "--raw", &path("pods/web-1/proxy/echo"), &file],
            true,
            r#"{"order": "tea"}"#,
        ),
        (
            &["replace", "--raw", &path("pods/web-1/proxy/echo"), &file],
            false,
            "(Forbidden)",
        ),
        (
            &["delete", "--raw", &path("pods/web-1/proxy/echo")],
            false,
            "(Forbidden)",
        ),
        (
            &["get", "--raw", &path("pods/nobody/proxy/")],
            false,
            r#"(NotFound): pods "nobody" not found"#,
        ),
        (
            &["get", "--raw", &path("services/a:b:c/proxy/")],
            false,
            r#"invalid service request "a:b:c""#,
        ),
        (
            &["get", "--raw", &path("services/web:81/proxy/")],
            false,
            "no service port 81 found",
        ),
        (
            &[
                "get",
                "--raw",
                "/api/v1/namespaces/default/pods/web-1/proxy/",
            ],
            false,
            "(Forbidden)",
        ),
    ] {
        let run = |kubeconfig: &Path| -> Result<(bool, String)> {
            let mut command = Command::new(&world.cluster.kubectl);
            let output = command
                .arg("--kubeconfig")
                .arg(kubeconfig)
                .args(arguments)
                .output()?;
            let text = [output.stdout, output.stderr].concat();
            Ok((
                output.status.success(),
                String::from_utf8_lossy(&text).into_owned(),
            ))
        };
        let (theirs, ours) = (run(&theirs)?, run(&ours)?);
        ensure!(
            ours == theirs,
            "{arguments:?}: ours {ours:?}, the apiserver's {theirs:?}"
        );
        ensure!(
            ours.0 == succeeds && ours.1.contains(says),
            "{arguments:?}: {ours:?}"
        );
    }
    Ok(())
}

/// Output before the address.
const ADDRESS_PREFIX: &str = "Starting to serve on ";

/// Running `kubectl proxy`. Dropping it kills the process.
pub struct KubectlProxy {
    /// Address that it prints, or the path of its socket.
    place: String,
    folder: tempfile::TempDir,
    _program: Program,
}

impl KubectlProxy {
    /// Starts it for `server` on a free loopback port.
    pub async fn by_port(world: &World, server: &str) -> Result<Self> {
        Self::start(world, server, |_| "--port=0".into()).await
    }

    /// Starts it for `server` on a Unix socket in a temporary folder.
    pub async fn by_socket(world: &World, server: &str) -> Result<Self> {
        Self::start(world, server, |folder| {
            format!("--unix-socket={}", folder.join("socket").display())
        })
        .await
    }

    async fn start(
        world: &World,
        server: &str,
        how: impl FnOnce(PathBuf) -> String,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let by = KubeconfigUser::Token(&world.token);
        let kubeconfig =
            world
                .cluster
                .kubeconfig("kubectl-proxy", server, &world.cluster.ca.file, &by)?;
        let mut command = Command::new(&world.cluster.kubectl);
        command
            .arg("proxy")
            .arg(how(folder.path().into()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()));
        let mut program = Program::start(&mut command)?;
        let line = program.wait_for_line(ADDRESS_PREFIX).await?;
        let place = line
            .split_once(ADDRESS_PREFIX)
            .context("the line contains the prefix")?
            .1
            .trim()
            .to_owned();
        Ok(Self {
            place,
            folder,
            _program: program,
        })
    }

    pub fn address(&self) -> Result<SocketAddr> {
        self.place
            .parse()
            .with_context(|| format!("kubectl proxy serves on {:?}", self.place))
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}
