//! Programs in Go: client-go, and the build of those of the gRPC scenarios.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::fixture::Fixture;
use crate::support::cluster::KubeconfigUser;
use crate::support::program::{Program, find_program};

pub async fn client_go_uses_proxy_get(fixture: &mut Fixture) -> Result<()> {
    let program = program("clientgo")?;
    for target in ["services/web:80", "services/https:safe:443"] {
        fixture.wait_until_known(target).await?;
    }
    // The apiserver first, as the reference.
    for server in [
        fixture.cluster.server.clone(),
        format!("https://{}", fixture.bastion.secure),
    ] {
        let by = KubeconfigUser::Token(&fixture.token);
        let kubeconfig =
            fixture
                .cluster
                .kubeconfig("client-go", &server, &fixture.cluster.ca.file, &by)?;
        let mut command = Command::new(&program);
        Program::start(command.arg("--kubeconfig").arg(kubeconfig))?
            .finish()
            .await?;
    }
    Ok(())
}

/// Builds the programs and tools of tests/clients/go from the modules in go.sum, and returns one.
pub fn program(name: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (source, programs) = (root.join("tests/clients/go"), root.join("target/clients"));
    let go = find_program(&["go"], "install Go 1.26 or later")?;
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
        .args(["./...", "tool"]);
    let built = command
        .env("CGO_ENABLED", "0")
        .current_dir(&source)
        .output()?;
    let errors = String::from_utf8_lossy(&built.stderr);
    ensure!(
        built.status.success(),
        "`go build` failed in {}:\n{errors}",
        source.display()
    );
    Ok(programs.join(name))
}
