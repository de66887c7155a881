//! Gate for the cost of a request in figures that the load of the machine does not change:
//! instructions and allocations per request, counted by valgrind's callgrind.
//!
//! The bastion runs with one worker, reviews by a scripted API behind the caches, metrics and the
//! access log. One connection sends small GET requests one after another: HTTP/1.1 without TLS, and
//! HTTP/2 with TLS, because the plain port speaks HTTP/1.1 only. The figures are the slope between
//! two runs with different numbers of requests, on the worker's thread alone, so that start,
//! handshakes, watches and shutdown cancel out. The binary has the profile `gate`, which the test
//! builds. Linked as a release, but without LTO, it takes some percent more instructions than a
//! release.
//!
//! `tests/gate/limits.yaml` has the recorded figures and margins. `UPDATE_GATE=1 make gate` records
//! the current ones. The sizes of futures are the third figure of this kind: unit tests beside the
//! code compare `size_of_val` of a future with a constant.

#[path = "gate/callgrind.rs"]
mod callgrind;
#[path = "gate/limits.rs"]
mod limits;
#[path = "gate/requests.rs"]
mod requests;
#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use callgrind::Counts;
use limits::{Cost, Costs, Limits};
use requests::{Fixture, Version};

/// Numbers of requests of the two runs. The first run is long enough to fill caches and buffers.
const REQUESTS: [u32; 2] = [500, 2500];

#[tokio::test(flavor = "multi_thread")]
async fn requests_cost_no_more_than_recorded() -> Result<()> {
    kube_bastion::tls::install_provider();
    let binary = build()?;
    let fixture = Fixture::start().await?;
    let measured = Costs {
        http1: cost(&fixture, &binary, Version::Http1).await?,
        http2: cost(&fixture, &binary, Version::Http2).await?,
    };
    let limits = Limits::read()?;
    println!("{}", limits.compare(&measured));
    if std::env::var_os("UPDATE_GATE").is_some_and(|value| !value.is_empty()) {
        return limits.record(&measured);
    }
    let exceeded = limits.exceeded(&measured);
    ensure!(
        exceeded.is_empty(),
        "a request costs more than recorded in tests/gate/limits.yaml:\n{}\n\
         If the feature is worth it, record the figures with UPDATE_GATE=1 make gate",
        exceeded.join("\n")
    );
    Ok(())
}

/// Builds the binary and returns its path. Does nothing if it is up to date.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--locked", "--profile=gate", "--bin=kube-bastion"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the profile gate does not build");
    let messages = String::from_utf8(output.stdout)?;
    let executable = |line: &str| -> Option<PathBuf> {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(message["executable"].as_str()?.into())
    };
    messages
        .lines()
        .find_map(executable)
        .context("cargo names the binary")
}

/// Measures the cost of a request.
async fn cost(fixture: &Fixture, binary: &Path, version: Version) -> Result<Cost> {
    let mut counts = Vec::new();
    for requests in REQUESTS {
        counts.push(run(fixture, binary, version, requests).await?);
    }
    let [few, many] = *counts else {
        bail!("there are two runs");
    };
    let [first, second] = REQUESTS;
    let slope = |few: u64, many: u64| -> Result<f64> {
        let difference = many
            .checked_sub(few)
            .context("more requests cost more instructions")?;
        Ok(f64::from(u32::try_from(difference)?) / f64::from(second - first))
    };
    Ok(Cost {
        instructions: slope(few.instructions, many.instructions)?,
        allocations: slope(few.allocations, many.allocations)?,
    })
}

async fn run(fixture: &Fixture, binary: &Path, version: Version, requests: u32) -> Result<Counts> {
    let folder = tempfile::tempdir()?;
    let mut command = callgrind::command(binary, folder.path());
    command.arg("serve").args(fixture.flags());
    let mut bastion = support::bastion::Bastion::run(command)
        .context("cannot run valgrind: on Debian, apt-get install valgrind")?;
    bastion.ready().await?;
    fixture.send(&bastion, version, requests).await?;
    bastion.signal(nix::sys::signal::Signal::SIGTERM)?;
    let status = bastion.wait()?;
    ensure!(
        status.success(),
        "the bastion ended with {status}:\n{}",
        bastion.log()
    );
    callgrind::read_worker(folder.path())
}
