//! CPU, latency and memory of the bastion, HAProxy, nginx and the proxy of kube-apiserver, in one
//! interleaved run.
//!
//! All of them use TLS to the client and plain HTTP to the same three nginx backends in a network
//! namespace. The bastion runs as in production: TokenReviews and SubjectAccessReviews behind its
//! caches, RBAC of deploy/, metrics and the access log. HAProxy and nginx have nearly default
//! settings and no authentication. Quote ratios of one run, because absolute figures depend on the
//! machine and its load.
//!
//! `make bench` runs it and writes `target/bench/report.md` and `target/bench/ratios.svg`. It needs
//! root, Go, and the Debian packages haproxy, nginx, libnginx-mod-stream, wrk and nghttp2-client.
//! docs/performance.md describes the workloads. Environment variables:
//!
//! - `KUBE_BASTION_BASELINE`: path of another build of the bastion, measured in the same rounds.
//! - `BENCH_ENVOY`: path of Envoy's binary, which terminates tunnels of CONNECT in the same rounds.
//! - `BENCH_ROUNDS` (5) and `BENCH_SECONDS` (3): number of rounds, and seconds per load.
//! - `BENCH_ONLY`: runs the workloads whose title contains this text.

#[path = "peers/conf.rs"]
mod conf;
#[path = "peers/generators.rs"]
mod generators;
#[path = "peers/http1.rs"]
mod http1;
#[path = "peers/index.rs"]
mod index;
#[path = "peers/l4.rs"]
mod l4;
#[path = "peers/measure.rs"]
mod measure;
#[path = "peers/memory.rs"]
mod memory;
#[path = "peers/outcome.rs"]
mod outcome;
#[path = "peers/peer.rs"]
mod peer;
#[path = "peers/plot.rs"]
mod plot;
#[path = "peers/process.rs"]
mod process;
#[path = "peers/report.rs"]
mod report;
#[path = "peers/settings.rs"]
mod settings;
#[path = "peers/stage.rs"]
mod stage;
#[path = "peers/statistics.rs"]
mod statistics;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "peers/tools.rs"]
mod tools;
#[path = "peers/workloads.rs"]
mod workloads;

use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use outcome::Outcome;
use peer::Peer;
use settings::Settings;
use stage::Stage;
use statistics::Sample;
use workloads::{Growth, HAPROXY, Held, L4, Measure, Version};

fn main() -> Result<()> {
    // `cargo test --benches` runs it too, and must not measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let settings = Settings::from_environment()?;
    // For the connections of the generators and for the servers that this process starts.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    kube_bastion::tls::install_provider();
    let outcomes = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(bench(&settings))?;
    let report = report::report(&outcomes, &settings);
    println!("{report}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("report.md"), report)?;
    std::fs::write(folder.join("ratios.svg"), plot::plot(&outcomes))?;
    println!("Written to {}", folder.display());
    Ok(())
}

async fn bench(settings: &Settings) -> Result<Vec<Outcome>> {
    /// Duration of each load in the first round, which warms caches and pools.
    const WARM_SECONDS: u64 = 1;
    let stage = Stage::start().await?;
    let peers = Peers::start(&stage, settings).await?;
    let mut outcomes: Vec<_> = settings
        .workloads
        .iter()
        .map(|workload| Outcome::new(workload))
        .collect();
    for round in 0..=settings.rounds {
        for outcome in &mut outcomes {
            let workload = outcome.workload;
            let is_due = round <= settings.rounds_of(workload)
                && (round > 0 || !workload.measure.is_memory());
            if !is_due {
                continue;
            }
            eprintln!("round {round} of {}: {}", settings.rounds, workload.title);
            if workload.measure.is_memory() {
                for (name, figure) in memory_of(&stage, settings, workload.measure).await? {
                    let sample = Sample {
                        figure,
                        user: None,
                        per_second: None,
                        latency: None,
                    };
                    outcome.push(name, sample);
                }
                continue;
            }
            let seconds = if round > 0 {
                settings.seconds
            } else {
                WARM_SECONDS
            };
            for peer in peers.of(workload.measure, workload.with_apiserver) {
                let sample = measure::measure(&stage, peer, workload.measure, seconds)
                    .await
                    .with_context(|| format!("{}, {}", workload.title, peer.name))?;
                if round > 0 {
                    outcome.push(peer.name, sample);
                }
            }
        }
    }
    Ok(outcomes)
}

/// Measures the memory of peers that are started for it.
async fn memory_of(
    stage: &Stage,
    settings: &Settings,
    measure: Measure,
) -> Result<Vec<(&'static str, f64)>> {
    let (peers, figures) = match measure {
        Measure::ExpiredFlows => {
            let peers = vec![l4::flow_peer(stage).await?];
            let figures = memory::growth_by_flows(&peers).await?;
            (peers, figures)
        }
        Measure::Memory(held) => {
            let peers = match held {
                Held::Tunnel(_) => vec![l4::tunnel_peer(stage).await?],
                Held::Idle | Held::Stalled => peer::start_all(stage, settings).await?,
            };
            let figures = memory::per_connection(stage, &peers, held).await?;
            (peers, figures)
        }
        _ => bail!("{measure:?} is not memory"),
    };
    let names = peers.iter().map(|peer| peer.name);
    Ok(names.zip(figures).collect())
}

/// Peers that run during all rounds.
struct Peers {
    proxies: Vec<Peer>,
    apiserver: Peer,
    to_api_server: Vec<Peer>,
    services: Vec<Peer>,
    endpoints: Vec<Peer>,
    l4: Vec<Peer>,
    tunnels: Vec<Peer>,
}

impl Peers {
    async fn start(stage: &Stage, settings: &Settings) -> Result<Self> {
        let is_selected = |measures: &[Measure]| {
            let mut workloads = settings.workloads.iter();
            workloads.any(|workload| measures.contains(&workload.measure))
        };
        let grown = async |growth| {
            if is_selected(&[Measure::Index(growth)]) {
                index::peers(stage, growth).await
            } else {
                Ok(Vec::new())
            }
        };
        let l4 = [L4::Transfer, L4::Connection, L4::Datagram].map(Measure::L4);
        Ok(Self {
            proxies: peer::start_all(stage, settings).await?,
            apiserver: peer::apiserver(stage).await?,
            to_api_server: peer::to_api_server(stage).await?,
            services: grown(Growth::Services).await?,
            endpoints: grown(Growth::Endpoints).await?,
            l4: if is_selected(&l4) {
                l4::peers(stage).await?
            } else {
                Vec::new()
            },
            tunnels: if is_selected(&[
                Measure::L4(L4::Tunnels(Version::Http1)),
                Measure::L4(L4::Tunnels(Version::Http2)),
            ]) {
                l4::tunnels_and_relay(stage, settings).await?
            } else {
                Vec::new()
            },
        })
    }

    fn of(&self, measure: Measure, with_apiserver: bool) -> impl Iterator<Item = &Peer> {
        let peers = match measure {
            Measure::PassThrough { .. } => &self.to_api_server,
            Measure::Index(Growth::Services) => &self.services,
            Measure::Index(Growth::Endpoints) => &self.endpoints,
            Measure::L4(L4::Tunnels(_)) => &self.tunnels,
            Measure::L4(_) => &self.l4,
            _ => &self.proxies,
        };
        peers
            .iter()
            .filter(move |peer| {
                // HAProxy has no UDP.
                peer.name != HAPROXY || !matches!(measure, Measure::L4(L4::Datagram))
            })
            .chain(with_apiserver.then_some(&self.apiserver))
    }
}
