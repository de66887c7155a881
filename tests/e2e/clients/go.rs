//! Programs in Go: client-go here, and what the gRPC scenarios run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::support::cluster::By;
use crate::support::program::{Program, installed};
use crate::world::World;

pub async fn client_go_asks_by_proxy_get(world: &mut World) -> Result<()> {
    let program = program("clientgo")?;
    for target in ["services/web:80", "services/https:safe:443"] {
        world.known(target).await?;
    }
    // First the apiserver's own proxy: what it does is what the program must expect.
    for server in [
        world.cluster.server.clone(),
        format!("https://{}", world.bastion.secure),
    ] {
        let by = By::Token(&world.token);
        let kubeconfig =
            world
                .cluster
                .kubeconfig("client-go", &server, &world.cluster.ca.file, &by)?;
        let mut command = Command::new(&program);
        Program::start(command.arg("--kubeconfig").arg(kubeconfig))?
            .finish()
            .await?;
    }
    Ok(())
}

/// A program of tests/clients/go, built from the modules that go.sum holds. It takes no time when
/// nothing changed.
pub fn program(name: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (source, programs) = (root.join("tests/clients/go"), root.join("target/clients"));
    let go = installed(&["go"], "install Go 1.26 or later")?;
    std::fs::create_dir_all(&programs)?;
    let mut command = Command::new(go);
    command
        .args([
            "build",
            "-mod=readonly",
            "-trimpath",
            "-buildvcs=false",
            "-o",
        ])
        .arg(&programs)
        .arg("./...");
    let built = command
        .env("CGO_ENABLED", "0")
        .current_dir(&source)
        .output()?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(
        built.status.success(),
        "`go build` failed in {}:\n{said}",
        source.display()
    );
    Ok(programs.join(name))
}
