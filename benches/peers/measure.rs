//! One measurement: one workload on one peer.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::generators::{Target, at_fixed_rate, handshakes, transfer_bodies};
use crate::http1::head;
use crate::index;
use crate::l4;
use crate::peer::Peer;
use crate::process::CpuTime;
use crate::stage::{BODY_BYTES, LARGE, SMALL, Stage, UPLOAD};
use crate::statistics::{Sample, percentile};
use crate::tools::{ClosedLoop, OpenLoop};
use crate::workloads::{Direction, Growth, Measure, Version};

/// Rate of the workloads with a fixed rate, in requests per second.
const RATE: u32 = 4000;

/// Measures one peer for some seconds, except for its memory.
///
/// # Errors
/// Returns an error if a response is not 2xx or a process ends.
pub async fn measure(stage: &Stage, peer: &Peer, what: Measure, seconds: u64) -> Result<Sample> {
    let duration = Duration::from_secs(seconds);
    match what {
        Measure::Small {
            version,
            connections,
            streams,
        }
        | Measure::PassThrough {
            version,
            connections,
            streams,
        } => {
            let load = ClosedLoop {
                version,
                connections,
                streams,
                seconds,
                url: &peer.url(SMALL),
                token: &stage.token,
                script: None,
            };
            closed_loop(peer, &load)
        }
        Measure::Body(direction) => body(stage, peer, direction, duration),
        Measure::Handshake { resumed } => {
            let request = head("GET", &peer.path(SMALL), &stage.token, "");
            let before = CpuTime::of(&peer.process.ids())?;
            let durations = handshakes(target(stage, peer, &request), resumed, duration)?;
            let count = count(durations.len())?;
            let spent = before.spent(&peer.process.ids(), count)?;
            Ok(Sample {
                figure: spent.total(),
                user: Some(spent.user),
                per_second: Some(count / duration.as_secs_f64()),
                latency: percentile(&durations, 50),
            })
        }
        Measure::Latency(version) => {
            let latencies = match version {
                Version::Http1 => {
                    let request = head("GET", &peer.path(SMALL), &stage.token, "");
                    at_fixed_rate(target(stage, peer, &request), RATE, duration)?
                }
                Version::Http2 => OpenLoop {
                    connections: 16,
                    rate: RATE,
                    seconds,
                    url: &peer.url(SMALL),
                    token: &stage.token,
                    log: &stage.folder().join("h2load.log"),
                }
                .run()?,
            };
            Ok(Sample {
                figure: percentile(&latencies, 99).context("requests were sent")?,
                user: None,
                per_second: Some(count(latencies.len())? / duration.as_secs_f64()),
                latency: percentile(&latencies, 50),
            })
        }
        Measure::Index(growth) => grown(stage, peer, growth, seconds),
        Measure::L4(what) => l4::measure(stage, peer, what, duration).await,
        Measure::Memory(_) | Measure::ExpiredFlows => {
            anyhow::bail!("memory is measured for all peers together")
        }
    }
}

fn closed_loop(peer: &Peer, load: &ClosedLoop<'_>) -> Result<Sample> {
    let before = CpuTime::of(&peer.process.ids())?;
    let answered = load.run()?;
    let spent = before.spent(&peer.process.ids(), answered.requests)?;
    Ok(Sample {
        figure: spent.total(),
        user: Some(spent.user),
        per_second: Some(answered.per_second),
        latency: Some(answered.latency),
    })
}

fn body(stage: &Stage, peer: &Peer, direction: Direction, duration: Duration) -> Result<Sample> {
    let request = match direction {
        Direction::Download => head("GET", &peer.path(LARGE), &stage.token, ""),
        Direction::Upload => {
            let length = format!("Content-Length: {BODY_BYTES}\r\n");
            head("POST", &peer.path(UPLOAD), &stage.token, &length)
        }
    };
    let before = CpuTime::of(&peer.process.ids())?;
    let target = target(stage, peer, &request);
    let began = std::time::Instant::now();
    let transfers = transfer_bodies(target, direction, BODY_BYTES, duration)?;
    let elapsed = began.elapsed().as_secs_f64();
    let transfers = count(usize::try_from(transfers)?)?;
    let spent = before.spent(&peer.process.ids(), transfers)?;
    Ok(Sample {
        figure: spent.total(),
        user: Some(spent.user),
        per_second: Some(transfers / elapsed),
        latency: None,
    })
}

fn grown(stage: &Stage, peer: &Peer, growth: Growth, seconds: u64) -> Result<Sample> {
    let script = index::script(stage, peer, growth)?;
    let load = ClosedLoop {
        version: Version::Http1,
        connections: 64,
        streams: 1,
        seconds,
        url: &peer.url(SMALL),
        token: index::token(),
        script: Some(&script),
    };
    // Opens the connections to many endpoints, which may have expired since the last round.
    ClosedLoop { seconds: 1, ..load }.run()?;
    closed_loop(peer, &load)
}

fn target<'a>(stage: &'a Stage, peer: &Peer, head: &'a [u8]) -> Target<'a> {
    Target {
        address: peer.address,
        ca: &stage.cluster.ca.file,
        head,
    }
}

fn count(count: usize) -> Result<f64> {
    Ok(f64::from(u32::try_from(count)?))
}
