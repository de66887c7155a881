//! h2spec, a conformance test of HTTP/2 servers.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::go::program;
use crate::fixture::{Fixture, path};

/// Number of cases of this version of h2spec.
const CASES: usize = 145;

/// Case that may fail, with the reason.
///
/// The crate h2 drops pseudo-header fields of trailers instead of rejecting them, so that they reach
/// neither the bastion nor an endpoint. Whether h2spec sees its error depends on whether the response
/// was sent before.
const TOLERATED: &str = "Sends a HEADERS frame that contains a pseudo-header field as trailers";

/// Number of runs. A case fails if it fails in each: the response may be complete before a violation
/// of the client arrives, and then there is no stream left that could have an error.
const RUNS: usize = 4;

pub async fn h2spec_finds_a_conforming_server(fixture: &mut Fixture) -> Result<()> {
    let program = program("h2spec")?;
    let mut failed: Option<Vec<String>> = None;
    for _ in 0..RUNS {
        let failures = run(&program, fixture).await?;
        let repeated = match failed {
            None => failures,
            Some(earlier) => earlier
                .into_iter()
                .filter(|case| failures.contains(case))
                .collect(),
        };
        if repeated.iter().all(|case| case == TOLERATED) {
            return Ok(());
        }
        failed = Some(repeated);
    }
    bail!("{}", failed.unwrap_or_default().join("\n"))
}

/// Runs all cases and returns those that fail.
async fn run(program: &Path, fixture: &Fixture) -> Result<Vec<String>> {
    let address = fixture.bastion.secure;
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    // Requests have no credentials, so that each gets a 401: a response with a body.
    let path = path("pods/web-1/proxy/");
    let mut command = Command::new(program);
    command
        .args(["--host", &host, "--port", &port, "--tls", "--insecure"])
        .args(["--path", &path, "--timeout", "5"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = String::from_utf8(output.stdout)?;
    let summary = text
        .lines()
        .find(|line| line.contains(" passed, "))
        .unwrap_or_default();
    let (_, failures) = text.split_once("Failures:").unwrap_or_default();
    let failed: Vec<String> = failures
        .lines()
        .filter_map(|line| line.trim().strip_prefix("× "))
        .filter_map(|line| line.split_once(": "))
        .map(|(_, case)| case.to_owned())
        .collect();
    let passed = format!("{CASES} tests, {} passed, 0 skipped", CASES - failed.len());
    ensure!(summary.starts_with(&passed), "{summary}");
    Ok(failed)
}
