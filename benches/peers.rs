//! CPU per request of the bastion, HAProxy, nginx and the proxy of the apiserver, in one
//! interleaved run.
//!
//! All of them use TLS to the client and plain HTTP to the same three nginx backends in a network
//! namespace. The bastion runs as in production: TokenReviews and SubjectAccessReviews behind its
//! caches, RBAC of deploy/, metrics and the access log. HAProxy and nginx have nearly default
//! settings and no authentication. Quote ratios of one run, because absolute figures depend on the
//! machine and its load.
//!
//! `make bench` runs it. It needs root, Go, and the Debian packages haproxy, nginx, wrk and
//! nghttp2-client. Environment variables:
//!
//! - `KUBE_BASTION_BASELINE`: path of another build of the bastion, measured in the same rounds.
//! - `BENCH_ROUNDS` (5) and `BENCH_SECONDS` (5): number of rounds, and seconds per load.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use support::bastion::Bastion;
use support::client::Client;
use support::cluster::Cluster;
use support::eventually;
use support::net::Namespace;
use support::objects::Objects;
use support::pki::Pair;

/// Small requests, by version of HTTP, connections, and streams of each.
const LOADS: [Load; 3] = [
    Load {
        version: Version::Http1,
        connections: 64,
        streams: 1,
    },
    Load {
        version: Version::Http2,
        connections: 16,
        streams: 16,
    },
    Load {
        version: Version::Http2,
        connections: 64,
        streams: 1,
    },
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

#[derive(Clone, Copy)]
struct Load {
    version: Version,
    connections: u32,
    streams: u32,
}

fn main() -> Result<()> {
    // `cargo test --benches` runs it too, and must not measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    kube_bastion::tls::install_provider();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(bench())
}

/// One proxy under load.
struct Peer {
    name: &'static str,
    url: String,
    pids: Vec<u32>,
    /// Figures of the rounds, for each of [`LOADS`].
    rounds: [Vec<Figures>; LOADS.len()],
}

/// Figures of one load.
#[derive(Clone, Copy)]
struct Figures {
    /// CPU time per request in µs.
    cpu: f64,
    requests_per_second: f64,
    /// Latency in µs: median for HTTP/1.1, mean for HTTP/2, because each tool prints only one of
    /// them.
    latency: f64,
}

async fn bench() -> Result<()> {
    let namespace = Namespace::new()?;
    let cluster = Cluster::start().await?;
    let folder = cluster.folder.path();
    let serving = cluster
        .ca
        .server(folder, "bench", &["localhost", "127.0.0.1"])?;
    cluster.kubectl(&["apply", "-k", "deploy/"])?;
    let objects = Objects::new(&cluster.client, "bench").await?;
    // The endpointslice controller ignores pods on unknown nodes.
    objects.node("node-1", namespace.address(2)).await?;
    objects
        .service(
            "web",
            json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}),
        )
        .await?;
    let backends: Vec<SocketAddr> = (11..14)
        .map(|last| (namespace.address(last), 8080).into())
        .collect();
    for (index, backend) in backends.iter().enumerate() {
        let ports = json!([{"containerPort": 8080}]);
        let SocketAddr::V4(address) = backend else {
            continue;
        };
        objects
            .pod(
                &format!("web-{index}"),
                json!({"app": "web"}),
                *address.ip(),
                ports,
            )
            .await?;
    }
    let caller = json!({"kind": "ServiceAccount", "name": "default", "namespace": "bench"});
    objects
        .allow("caller", caller, &["services/proxy"], &["get"])
        .await?;
    let token = cluster.token("bench", "default", None).await?;
    let own = cluster
        .bastion_kubeconfig("bastion", &cluster.server)
        .await?;

    let _backends = Group(vec![start(
        Command::new("ip")
            .args(["netns", "exec", namespace.name(), "nginx", "-c"])
            .arg(backend_conf(folder, &backends)?),
    )?]);
    let flags = [
        format!("--kubeconfig={}", own.display()),
        format!("--tls-cert-file={}", serving.certificate.display()),
        format!("--tls-private-key-file={}", serving.key.display()),
    ];
    let builds = [
        (
            "kube-bastion",
            Some(env!("CARGO_BIN_EXE_kube-bastion").into()),
        ),
        ("baseline", baseline()),
    ];
    let mut bastions = Vec::new();
    for (name, binary) in builds {
        let Some(binary) = binary else { continue };
        let mut command = Command::new::<PathBuf>(binary);
        command.arg("serve").args(&flags);
        bastions.push((name, Bastion::run(command)?));
    }
    let [haproxy, nginx] = [free_port()?, free_port()?];
    let peers = Group(vec![
        start(
            Command::new("haproxy")
                .arg("-f")
                .arg(haproxy_conf(folder, haproxy, &serving, &backends)?),
        )?,
        start(
            Command::new("nginx")
                .arg("-c")
                .arg(nginx_conf(folder, nginx, &serving, &backends)?),
        )?,
    ]);

    let path = "/api/v1/namespaces/bench/services/web/proxy/";
    let mut measured = Vec::new();
    for (name, bastion) in &bastions {
        bastion.ready().await?;
        let mut probe =
            Client::connect(bastion.secure, &cluster.ca.file, Some(&token), None).await?;
        let mut last = String::new();
        let reached = eventually("the bastion to reach the backends", async || {
            let answer = probe.get(path).await?;
            last = answer.body;
            Ok(answer.status == 200)
        });
        reached.await.with_context(|| last)?;
        measured.push(Peer::new(
            name,
            format!("https://{}{path}", bastion.secure),
            vec![bastion.pid()],
        ));
    }
    for port in [haproxy, nginx] {
        let listens = async || Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        eventually("HAProxy and nginx to listen", listens).await?;
    }
    measured.push(Peer::new(
        REFERENCE,
        format!("https://127.0.0.1:{haproxy}/"),
        peers.pids(0),
    ));
    measured.push(Peer::new(
        "nginx",
        format!("https://127.0.0.1:{nginx}/"),
        peers.pids(1),
    ));
    let apiserver = format!(
        "{}/api/v1/namespaces/bench/services/web:80/proxy/",
        cluster.server
    );
    measured.push(Peer::new(
        "kube-apiserver",
        apiserver,
        vec![cluster.apiserver_pid()],
    ));

    let (rounds, seconds) = (setting("BENCH_ROUNDS", 5)?, setting("BENCH_SECONDS", 5)?);
    ensure!(
        rounds > 0 && seconds > 0,
        "BENCH_ROUNDS and BENCH_SECONDS are 1 at least"
    );
    for round in 0..=rounds {
        for (index, load) in LOADS.iter().enumerate() {
            for peer in &mut measured {
                let figures = load.run(peer, seconds, &token)?;
                // The first round warms caches and pools.
                if round > 0 {
                    peer.rounds[index].push(figures);
                }
            }
        }
    }
    println!("Small responses, {rounds} interleaved rounds of {seconds} s; medians (range)");
    for (index, load) in LOADS.iter().enumerate() {
        load.report(index, &measured)?;
    }
    Ok(())
}

/// Returns another build of the bastion for comparison, if any.
fn baseline() -> Option<PathBuf> {
    std::env::var_os("KUBE_BASTION_BASELINE")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(value) => value
            .parse()
            .with_context(|| format!("{name} is {value:?}; give a whole number")),
        Err(_) => Ok(default),
    }
}

/// Returns a port that is free now. HAProxy and nginx read theirs from a file, so it cannot be
/// reserved.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Peer {
    fn new(name: &'static str, url: String, pids: Vec<u32>) -> Self {
        Self {
            name,
            url,
            pids,
            rounds: Default::default(),
        }
    }
}

impl Load {
    fn run(self, peer: &Peer, seconds: u64, token: &str) -> Result<Figures> {
        let authorization = format!("Authorization: Bearer {token}");
        let (connections, streams) = (
            format!("-c{}", self.connections),
            format!("-m{}", self.streams),
        );
        let before = cpu_micros(&peer.pids)?;
        let (mut command, package) = match self.version {
            Version::Http1 => {
                let mut command = Command::new("wrk");
                command.args(["-t2", &connections, &format!("-d{seconds}s"), "--latency"]);
                (command, "wrk")
            }
            Version::Http2 => {
                let mut command = Command::new("h2load");
                command.args(["-t2", &connections, &streams, &format!("-D{seconds}")]);
                (command, "nghttp2-client")
            }
        };
        let output = command.args(["-H", &authorization, &peer.url]).output();
        let output = output.with_context(|| {
            format!("{command:?}: install it (on Debian: apt-get install {package})")
        })?;
        let spent = cpu_micros(&peer.pids)? - before;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{}: {printed}{}",
            peer.name,
            String::from_utf8_lossy(&output.stderr)
        );
        let read = match self.version {
            Version::Http1 => read_wrk(&printed),
            Version::Http2 => read_h2load(&printed),
        };
        let (requests, figures) = read.with_context(|| format!("{}: {printed}", peer.name))?;
        Ok(Figures {
            cpu: spent / requests,
            ..figures
        })
    }

    fn report(self, index: usize, peers: &[Peer]) -> Result<()> {
        let version = if self.version == Version::Http1 {
            "HTTP/1.1"
        } else {
            "HTTP/2"
        };
        println!(
            "\n{version}, {} connections x {}",
            self.connections, self.streams
        );
        println!(
            "{:15} {:>26} {:>22} {:>10} {:>10}",
            "", "CPU µs/request", "x HAProxy", "requests/s", "latency µs"
        );
        let reference = peers
            .iter()
            .find(|peer| peer.name == REFERENCE)
            .context("HAProxy is measured")?;
        for peer in peers {
            let rounds = &peer.rounds[index];
            let (cpu, low, high) = median(rounds.iter().map(|figures| figures.cpu));
            // The ratio of each round, because the load of the machine changes between rounds.
            let ratios = rounds
                .iter()
                .zip(&reference.rounds[index])
                .map(|(own, other)| own.cpu / other.cpu);
            let (ratio, least, most) = median(ratios);
            let (rate, ..) = median(rounds.iter().map(|figures| figures.requests_per_second));
            let (latency, ..) = median(rounds.iter().map(|figures| figures.latency));
            println!(
                "{:15} {cpu:>8.1} ({low:>6.1}-{high:>7.1}) {ratio:>8.2} ({least:>4.2}-{most:>5.2}) {rate:>10.0} {latency:>10.0}",
                peer.name
            );
        }
        Ok(())
    }
}

/// Returns median, minimum and maximum.
fn median(figures: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut all: Vec<f64> = figures.collect();
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[0], all[all.len() - 1])
}

/// Returns a word of the first line with a prefix.
fn word<'a>(printed: &'a str, prefix: &str, index: usize) -> Result<&'a str> {
    let line = printed
        .lines()
        .find(|line| line.trim_start().starts_with(prefix));
    line.and_then(|line| line.split_whitespace().nth(index))
        .with_context(|| format!("the output has no line with {prefix:?}"))
}

/// Parses the output of wrk. Fails if a response was not 2xx.
fn read_wrk(printed: &str) -> Result<(f64, Figures)> {
    ensure!(!printed.contains("Non-2xx"), "some answers are errors");
    let line = printed
        .lines()
        .find(|line| line.contains(" requests in "))
        .context("wrk counts requests")?;
    let requests = line
        .split_whitespace()
        .next()
        .context("a number")?
        .parse()?;
    let requests_per_second = word(printed, "Requests/sec:", 1)?.parse()?;
    Ok((
        requests,
        Figures {
            cpu: 0.0,
            requests_per_second,
            latency: micros(word(printed, "50%", 1)?),
        },
    ))
}

/// Parses the output of h2load. Fails if a response was not 2xx.
fn read_h2load(printed: &str) -> Result<(f64, Figures)> {
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
    let requests = word(printed, "status codes:", 2)?.parse()?;
    ensure!(requests > 0.0, "no request was answered");
    let requests_per_second = word(printed, "finished in", 3)?.parse()?;
    Ok((
        requests,
        Figures {
            cpu: 0.0,
            requests_per_second,
            latency: micros(word(printed, "time for request:", 5)?),
        },
    ))
}

/// Parses `1.23ms`, `45.00us` or `1.02s` into µs.
fn micros(text: &str) -> f64 {
    let number: f64 = text
        .trim_end_matches(|c: char| c.is_alphabetic())
        .parse()
        .unwrap_or(f64::NAN);
    match text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.') {
        "us" => number,
        "ms" => number * 1e3,
        _ => number * 1e6,
    }
}

/// Returns user and system time of processes, with a resolution of 10 ms.
fn cpu_micros(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .context("a stat line")?
            .1
            .split_whitespace()
            .collect();
        ticks += fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    }
    Ok(f64::from(ticks) * 1e4)
}

/// Servers that are killed on drop, including their workers.
struct Group(Vec<Child>);

impl Group {
    /// Returns the process ids of a server and its workers.
    fn pids(&self, index: usize) -> Vec<u32> {
        let parent = self.0[index].id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
            .unwrap_or_default();
        children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .chain([parent])
            .collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for index in 0..self.0.len() {
            for pid in self.pids(index) {
                let _ = Command::new("kill").arg(pid.to_string()).status();
            }
            let _ = self.0[index].wait();
        }
    }
}

fn start(command: &mut Command) -> Result<Child> {
    let name = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| name)
}

/// Peer with which the others are compared.
const REFERENCE: &str = "HAProxy";

fn backend_conf(folder: &Path, backends: &[SocketAddr]) -> Result<PathBuf> {
    let listen: String = backends
        .iter()
        .map(|backend| format!("listen {backend}; "))
        .collect();
    let text = format!(
        "daemon off; worker_processes 1; pid {}/backend.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000; server {{ {listen} location / {{ return 200 \"hello\\n\"; }} }} }}
",
        folder.display()
    );
    write(folder, "backend.conf", &text)
}

fn nginx_conf(
    folder: &Path,
    port: u16,
    serving: &Pair,
    backends: &[SocketAddr],
) -> Result<PathBuf> {
    let servers: String = backends
        .iter()
        .map(|backend| format!("server {backend}; "))
        .collect();
    let text = format!(
        "daemon off; worker_processes 2; pid {}/nginx.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000;
  upstream backends {{ {servers} keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {}; ssl_certificate_key {};
    location / {{ proxy_pass http://backends; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
  }}
}}
",
        folder.display(),
        serving.certificate.display(),
        serving.key.display()
    );
    write(folder, "nginx.conf", &text)
}

fn haproxy_conf(
    folder: &Path,
    port: u16,
    serving: &Pair,
    backends: &[SocketAddr],
) -> Result<PathBuf> {
    let both = fs::read_to_string(&serving.certificate)? + &fs::read_to_string(&serving.key)?;
    let pem = write(folder, "haproxy.pem", &both)?;
    let servers: String = backends
        .iter()
        .enumerate()
        .map(|(i, backend)| format!("  server s{i} {backend}\n"))
        .collect();
    let text = format!(
        "global
  nbthread 2
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:{port} ssl crt {} alpn h2,http/1.1
  default_backend b
backend b
  balance roundrobin
{servers}",
        pem.display()
    );
    write(folder, "haproxy.cfg", &text)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(path)
}
