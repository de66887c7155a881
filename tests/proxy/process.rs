//! The process: drain, background tasks, limits, errors in manifests.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::SWITCH_TO_X;
use crate::support::bastion::Bastion;
use crate::support::eventually;
use crate::support::test_bed::{TestBed, read_all, read_until};

#[tokio::test]
async fn second_signal_aborts_drain() -> Result<()> {
    let mut bed = TestBed::new().await?;
    let mut client = bed
        .request("GET /", "Connection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await?;
    let (mut backend, _) = bed.accept().await?;
    backend.write_all(SWITCH_TO_X).await?;
    read_until(&mut client, "\r\n\r\n").await?;
    bed.bastion.signal(Signal::SIGTERM)?;
    eventually("the drain", async || {
        Ok(bed.bastion.log().contains("draining"))
    })
    .await?;
    client.write_all(b"x").await?;
    ensure!(
        backend.read(&mut [0]).await? == 1,
        "the tunnel is closed too early"
    );
    bed.bastion.signal(Signal::SIGTERM)?;
    ensure!(
        backend.read(&mut [0]).await.unwrap_or(0) == 0,
        "the tunnel is still open"
    );
    ensure!(
        tokio::task::spawn_blocking(move || bed.bastion.wait())
            .await??
            .success()
    );
    Ok(())
}

#[tokio::test]
async fn drain_deadline_closes_tunnels() -> Result<()> {
    let mut bed = TestBed::with(&["--drain-timeout=1s"]).await?;
    let mut client = bed
        .request("GET /", "Connection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await?;
    let (mut backend, _) = bed.accept().await?;
    backend.write_all(SWITCH_TO_X).await?;
    read_until(&mut client, "\r\n\r\n").await?;
    bed.bastion.signal(Signal::SIGTERM)?;
    // The test holds both sides open, so only the deadline can close the tunnel.
    let cut = tokio::time::timeout(Duration::from_secs(30), backend.read(&mut [0])).await;
    ensure!(cut.context("the tunnel outlived the drain")?.unwrap_or(0) == 0);
    read_all(&mut client).await;
    let exited = tokio::task::spawn_blocking(move || {
        bed.bastion.wait().map(|status| (status, bed.bastion.log()))
    });
    let (status, log) = exited.await??;
    ensure!(
        status.success() && log.contains("drain timeout reached"),
        "{status}: {log}"
    );
    Ok(())
}

#[tokio::test]
async fn raises_open_file_limit_to_hard_limit() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("sh");
    let script = r#"ulimit -S -n 256 && exec "$0" "$@""#;
    command.args(["-c", script, env!("CARGO_BIN_EXE_kube-bastion"), "serve"]);
    command.arg("--manifests-dir").arg(folder.path());
    let bastion = Bastion::run(command)?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", bastion.pid()))?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .context("the kernel reports the limit of open files")?;
    let values: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    ensure!(values[0] == values[1] && values[0] != "256", "{line}");
    Ok(())
}

#[tokio::test]
async fn hides_content_of_invalid_manifests() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bastion = Bastion::start(&["--manifests-dir", folder.path().to_str().context("UTF-8")?])?;
    bastion.ready().await?;
    let secret = "kind: Secret\nmetadata: {name: s}\ndata:\n  password: \"s3cr3t\n";
    std::fs::write(folder.path().join("secret.yaml"), secret)?;
    let invalid = async || Ok(bastion.readyz().await?.1.contains("[!]manifests degraded"));
    eventually("the invalid file to be reported", invalid).await?;
    let reported = bastion.readyz().await?.1 + &bastion.log();
    ensure!(
        reported.contains("secret.yaml")
            && reported.contains("not YAML")
            && !reported.contains("s3cr3t"),
        "{reported}"
    );
    Ok(())
}

#[tokio::test]
async fn exports_restarts_per_background_task() -> Result<()> {
    let bed = TestBed::new().await?;
    let metrics = bed.bastion.metrics().await?;
    for task in ["admin", "manifests", "serving-tls", "kubelet-tls"] {
        let line = format!(r#"kube_bastion_task_restarts_total{{task="{task}"}} 0"#);
        ensure!(metrics.contains(&line), "{line}:\n{metrics}");
    }
    Ok(())
}
