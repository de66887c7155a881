//! The binary as a plugin of kubectl.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::fixture::Fixture;

/// kubectl lists and runs `kubectl-bastion`, and completes its arguments by
/// `kubectl_complete-bastion`.
pub async fn kubectl_runs_and_completes_the_plugin(fixture: &mut Fixture) -> Result<()> {
    let directory = tempfile::tempdir()?;
    for name in ["kubectl-bastion", "kubectl_complete-bastion"] {
        symlink(
            env!("CARGO_BIN_EXE_kube-bastion"),
            directory.path().join(name),
        )?;
    }
    let kubectl = |arguments: &[&str]| kubectl(fixture, directory.path(), arguments);

    let plugins = kubectl(&["plugin", "list", "--name-only"])?;
    ensure!(
        plugins.lines().any(|line| line == "kubectl-bastion"),
        "{plugins}"
    );
    let version = kubectl(&["bastion", "version", "--client"])?;
    ensure!(version.starts_with("kube-bastion "), "{version}");
    let help = kubectl(&["bastion", "check", "--help"])?;
    ensure!(help.contains("Usage: kubectl bastion check"), "{help}");

    for (arguments, expected) in [
        (&["comp"][..], &["completion", ":4"][..]),
        (&["completion", "po"], &["powershell", ":4"]),
        (&["serve", "--tls-min"], &["--tls-min-version", ":4"]),
        (&["serve", "--context", ""], &["c", ":4"]),
        (&["serve", "--context=c"], &["--context=c", ":4"]),
        (&["serve", "--config", ""], &[":0"]),
    ] {
        let arguments = [&["__completeNoDesc", "bastion"], arguments].concat();
        let completed = kubectl(&arguments)?;
        let lines: Vec<_> = completed.lines().collect();
        ensure!(lines == expected, "{arguments:?}: {completed}");
    }
    Ok(())
}

/// Runs kubectl with the plugin in `$PATH`, and with the kubeconfig of the administrator.
fn kubectl(fixture: &Fixture, plugins: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(&fixture.cluster.kubectl)
        .args(arguments)
        .env("PATH", plugins)
        .env("KUBECONFIG", fixture.cluster.admin_kubeconfig())
        .output()?;
    ensure!(
        output.status.success(),
        "kubectl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
