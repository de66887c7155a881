//! The binary as a plugin of kubectl.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::fixture::{Fixture, path};
use crate::support::cluster::KubeconfigUser;

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

/// kubectl reaches a service with the kubeconfig that the plugin prints, as the user of its own
/// kubeconfig.
pub async fn kubectl_uses_the_kubeconfig_of_the_plugin(fixture: &mut Fixture) -> Result<()> {
    fixture.wait_until_known("services/web:80").await?;
    let user = KubeconfigUser::Token(&fixture.token);
    let cluster = &fixture.cluster;
    let own = cluster.kubeconfig("own", &cluster.server, &cluster.ca.file, &user)?;
    let directory = tempfile::tempdir()?;
    let merged = directory.path().join("config");
    let output = Command::new(env!("CARGO_BIN_EXE_kube-bastion"))
        .arg("kubeconfig")
        .arg(format!("--server=https://{}", fixture.bastion.secure))
        .arg("--certificate-authority")
        .arg(&cluster.ca.file)
        .arg("--kubeconfig")
        .arg(own)
        .args(["--name=bastion", "--namespace=shop", "--merge"])
        .arg(&merged)
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{error}");
    let kubectl = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(&cluster.kubectl)
            .arg("--kubeconfig")
            .arg(&merged)
            .args(arguments)
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let name = kubectl(&["get", "--raw", &path("services/web:80/proxy/name")])?;
    ensure!(name.starts_with("web-"), "{name}");
    // kubectl writes the file itself, and keeps what it read.
    let contexts = kubectl(&["config", "get-contexts", "--output=name"])?;
    ensure!(contexts == "bastion\n", "{contexts}");
    let changed = kubectl(&["config", "set-context", "bastion", "--namespace=default"])?;
    ensure!(changed.contains("modified"), "{changed}");
    let name = kubectl(&["get", "--raw", &path("services/web:80/proxy/name")])?;
    ensure!(name.starts_with("web-"), "{name}");
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
