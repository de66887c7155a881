//! The load generators wrk and h2load.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::statistics::percentile;
use crate::workloads::Version;

/// Small requests in a closed loop: each connection or stream sends its next request after the
/// response to the previous one.
pub struct ClosedLoop<'a> {
    pub version: Version,
    pub connections: u32,
    pub streams: u32,
    pub seconds: u64,
    pub url: &'a str,
    pub token: &'a str,
    /// Script for wrk.
    pub script: Option<&'a Path>,
}

/// Result of a load without failed requests.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub requests: f64,
    pub per_second: f64,
    /// Latency in µs: median of wrk, mean of h2load.
    pub latency: f64,
}

impl ClosedLoop<'_> {
    /// Runs the load.
    ///
    /// # Errors
    /// Returns an error if a response was not 2xx.
    pub fn run(&self) -> Result<Answered> {
        let connections = format!("-c{}", self.connections);
        let mut command = match self.version {
            Version::Http1 => {
                let mut wrk = Command::new("wrk");
                wrk.args(["-t2", &connections, "--latency"])
                    .arg(format!("-d{}s", self.seconds));
                if let Some(script) = self.script {
                    wrk.arg("-s").arg(script);
                }
                wrk
            }
            Version::Http2 => {
                let mut h2load = Command::new("h2load");
                h2load
                    .args(["-t2", &connections])
                    .arg(format!("-m{}", self.streams))
                    .arg(format!("-D{}", self.seconds));
                h2load
            }
        };
        command.args(["-H", &authorization(self.token), self.url]);
        let printed = output(&mut command)?;
        match self.version {
            Version::Http1 => read_wrk(&printed),
            Version::Http2 => read_h2load(&printed),
        }
        .context(printed)
    }
}

/// HTTP/2 requests at a fixed rate. The streams are more than ever wait, so that a slow response
/// delays no later request.
pub struct OpenLoop<'a> {
    pub connections: u32,
    pub rate: u32,
    pub seconds: u64,
    pub url: &'a str,
    pub token: &'a str,
    /// File for the latency of each request.
    pub log: &'a Path,
}

impl OpenLoop<'_> {
    /// Runs the load. Returns the sorted latencies in µs.
    ///
    /// # Errors
    /// Returns an error if a response was not 2xx.
    pub fn run(&self) -> Result<Vec<f64>> {
        const STREAMS: &str = "-m100";
        // h2load appends.
        let _ = std::fs::remove_file(self.log);
        let mut command = Command::new("h2load");
        command
            .args(["-t1", STREAMS])
            .arg(format!("-c{}", self.connections))
            .arg(format!("-D{}", self.seconds))
            .arg(format!("--rps={}", self.rate / self.connections))
            .arg(format!("--log-file={}", self.log.display()))
            .args(["-H", &authorization(self.token), self.url]);
        let printed = output(&mut command)?;
        read_h2load(&printed).context(printed)?;
        let log = std::fs::read_to_string(self.log).context("h2load writes its log")?;
        // Start in µs since 1970, status, duration in µs.
        let latency = |line: &str| line.split('\t').nth(2)?.parse().ok();
        let mut latencies: Vec<f64> = log.lines().filter_map(latency).collect();
        latencies.sort_by(f64::total_cmp);
        ensure!(
            percentile(&latencies, 50).is_some(),
            "h2load logs each request"
        );
        Ok(latencies)
    }
}

fn authorization(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}: install wrk and h2load (on Debian: apt-get install wrk nghttp2-client)", command.get_program()))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}

fn read_wrk(printed: &str) -> Result<Answered> {
    ensure!(!printed.contains("Non-2xx"), "some answers are errors");
    ensure!(!printed.contains("Socket errors"), "some requests failed");
    let line = printed
        .lines()
        .find(|line| line.contains(" requests in "))
        .context("wrk counts requests")?;
    let requests = line.split_whitespace().next().context("a number")?;
    let answered = Answered {
        requests: requests.parse()?,
        per_second: word(printed, "Requests/sec:", 1)?.parse()?,
        latency: micros(word(printed, "50%", 1)?)?,
    };
    ensure!(answered.requests > 0.0, "no request was answered");
    Ok(answered)
}

fn read_h2load(printed: &str) -> Result<Answered> {
    let codes = printed
        .lines()
        .find(|line| line.starts_with("status codes:"))
        .context("h2load counts status codes")?;
    ensure!(
        codes.ends_with(" 2xx, 0 3xx, 0 4xx, 0 5xx"),
        "some answers are errors"
    );
    ensure!(
        printed.contains(" 0 failed, 0 errored, 0 timeout"),
        "some requests failed"
    );
    let answered = Answered {
        requests: word(printed, "status codes:", 2)?.parse()?,
        per_second: word(printed, "finished in", 3)?.parse()?,
        latency: micros(word(printed, "time for request:", 5)?)?,
    };
    ensure!(answered.requests > 0.0, "no request was answered");
    Ok(answered)
}

/// Returns a word of the first line with a prefix.
fn word<'a>(printed: &'a str, prefix: &str, index: usize) -> Result<&'a str> {
    let line = printed
        .lines()
        .find(|line| line.trim_start().starts_with(prefix));
    line.and_then(|line| line.split_whitespace().nth(index))
        .with_context(|| format!("the output has no line with {prefix:?}"))
}

/// Parses `1.23ms`, `45.00us` or `1.02s` into µs.
fn micros(text: &str) -> Result<f64> {
    let number: f64 = text
        .trim_end_matches(|c: char| c.is_alphabetic())
        .parse()
        .with_context(|| format!("{text:?} is not a duration"))?;
    Ok(
        match text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.') {
            "us" => number,
            "ms" => number * 1e3,
            _ => number * 1e6,
        },
    )
}
