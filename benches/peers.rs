//! CPU per request of the bastion beside HAProxy's, nginx's and the apiserver's own proxy's, in one interleaved run.
//!
//! All of them speak TLS to the client and plain HTTP to the same three nginx backends, which live in a network
//! namespace. The bastion does what it does in production: real TokenReviews and SubjectAccessReviews behind its
//! caches, RBAC of deploy/, metrics and the access log. HAProxy and nginx are near-default and authenticate nobody.
//! Quote ratios of one run: absolute figures belong to the machine of that hour.
//!
//! `make bench`; it needs root, Go, and Debian's haproxy, nginx and wrk.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use support::bastion::Bastion;
use support::client::Client;
use support::cluster::Cluster;
use support::eventually;
use support::net::Namespace;
use support::objects::Objects;
use support::pki::Pair;

/// Interleaved rounds; medians of them are printed.
const ROUNDS: usize = 5;
const SECONDS: u64 = 5;
const CONNECTIONS: u32 = 64;

fn main() -> Result<()> {
    // `cargo test --benches` runs it too: a benchmark is for who asks for it.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    kube_bastion::tls::install_provider();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench())
}

/// One proxy under load.
struct Peer {
    name: &'static str,
    url: String,
    pids: Vec<u32>,
    /// Per round: CPU µs a request, requests a second, p50 and p99 in µs.
    rounds: Vec<[f64; 4]>,
}

async fn bench() -> Result<()> {
    let namespace = Namespace::new()?;
    let cluster = Cluster::start().await?;
    let folder = cluster.folder.path();
    let serving = cluster.ca.server(folder, "bench", &["localhost", "127.0.0.1"])?;
    cluster.kubectl(&["apply", "-k", "deploy/"])?;
    let objects = Objects::new(&cluster.client, "bench").await?;
    // The endpointslice controller passes over pods whose node it does not know.
    objects.node("node-1", namespace.address(2)).await?;
    objects.service("web", json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]})).await?;
    let backends: Vec<SocketAddr> = (11..14).map(|last| (namespace.address(last), 8080).into()).collect();
    for (index, backend) in backends.iter().enumerate() {
        let ports = json!([{"containerPort": 8080}]);
        let SocketAddr::V4(address) = backend else { continue };
        objects.pod(&format!("web-{index}"), json!({"app": "web"}), *address.ip(), ports).await?;
    }
    let caller = json!({"kind": "ServiceAccount", "name": "default", "namespace": "bench"});
    objects.allow("caller", caller, &["services/proxy"], &["get"]).await?;
    let token = cluster.token("bench", "default", None).await?;
    let own = cluster.bastion_kubeconfig("bastion", &cluster.server).await?;

    let _backends = Group(vec![start(
        Command::new("ip")
            .args(["netns", "exec", namespace.name(), "nginx", "-c"])
            .arg(backend_conf(folder, &backends)?),
    )?]);
    let bastion = Bastion::start(&[
        &format!("--kubeconfig={}", own.display()),
        &format!("--tls-cert-file={}", serving.certificate.display()),
        &format!("--tls-private-key-file={}", serving.key.display()),
    ])?;
    bastion.ready().await?;
    let peers = Group(vec![
        start(Command::new("haproxy").arg("-f").arg(haproxy_conf(folder, &serving, &backends)?))?,
        start(Command::new("nginx").arg("-c").arg(nginx_conf(folder, &serving, &backends)?))?,
    ]);
    tokio::time::sleep(Duration::from_secs(2)).await;

    let path = "/api/v1/namespaces/bench/services/web/proxy/";
    let apiserver = format!("{}/api/v1/namespaces/bench/services/web:80/proxy/", cluster.server);
    let mut measured = [
        Peer::new("kube-bastion", format!("https://{}{path}", bastion.secure), vec![bastion.pid()]),
        Peer::new("HAProxy", format!("https://127.0.0.1:{HAPROXY_PORT}/"), peers.pids(0)),
        Peer::new("nginx", format!("https://127.0.0.1:{NGINX_PORT}/"), peers.pids(1)),
        Peer::new("kube-apiserver", apiserver, vec![cluster.apiserver_pid()]),
    ];
    let mut probe = Client::connect(bastion.secure, &cluster.ca.file, Some(&token), None).await?;
    let mut last = String::new();
    let reached = eventually("the bastion to reach the backends", async || {
        let answer = probe.get(path).await?;
        last = answer.body;
        Ok(answer.status == 200)
    });
    reached.await.with_context(|| last)?;
    for round in 0..=ROUNDS {
        for peer in &mut measured {
            let figures = peer.load(&token)?;
            // The first round warms caches and pools.
            if round > 0 {
                peer.rounds.push(figures);
            }
        }
    }
    report(&measured);
    Ok(())
}

impl Peer {
    fn new(name: &'static str, url: String, pids: Vec<u32>) -> Self {
        Self { name, url, pids, rounds: Vec::new() }
    }

    fn load(&self, token: &str) -> Result<[f64; 4]> {
        let before = cpu_micros(&self.pids)?;
        let output = Command::new("wrk")
            .args(["-t2", &format!("-c{CONNECTIONS}"), &format!("-d{SECONDS}s"), "--latency"])
            .args(["-H", &format!("Authorization: Bearer {token}"), &self.url])
            .output()
            .context("no wrk: install it (on Debian: apt-get install wrk)")?;
        let spent = cpu_micros(&self.pids)? - before;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && !said.contains("Non-2xx"), "{}: {said}", self.name);
        let word = |prefix: &str, index: usize| {
            let line = said.lines().find(|line| line.trim_start().starts_with(prefix));
            line.and_then(|line| line.split_whitespace().nth(index)).unwrap_or_default().to_owned()
        };
        let requests: f64 = said
            .lines()
            .find(|line| line.contains(" requests in "))
            .and_then(|line| line.split_whitespace().next())
            .context("wrk counts requests")?
            .parse()?;
        Ok([spent / requests, word("Requests/sec:", 1).parse()?, micros(&word("50%", 1)), micros(&word("99%", 1))])
    }
}

fn report(peers: &[Peer]) {
    let medians = |peer: &Peer, figure: usize| {
        let mut all: Vec<f64> = peer.rounds.iter().map(|round| round[figure]).collect();
        all.sort_by(f64::total_cmp);
        (all[all.len() / 2], all[0], all[all.len() - 1])
    };
    println!("{CONNECTIONS} connections, small answers, {ROUNDS} interleaved rounds of {SECONDS} s; medians (range)");
    println!(
        "{:15} {:>26} {:>9} {:>10} {:>9} {:>9}",
        "", "CPU µs/request", "× HAProxy", "requests/s", "p50 µs", "p99 µs"
    );
    let (reference, ..) = medians(&peers[1], 0);
    for peer in peers {
        let (cpu, low, high) = medians(peer, 0);
        let figure = |index| medians(peer, index).0;
        println!(
            "{:15} {:>8.1} ({:>6.1}-{:>7.1}) {:>9.2} {:>10.0} {:>9.0} {:>9.0}",
            peer.name,
            cpu,
            low,
            high,
            cpu / reference,
            figure(1),
            figure(2),
            figure(3)
        );
    }
}

/// `1.23ms`, `45.00us` or `1.02s` in µs.
fn micros(text: &str) -> f64 {
    let number: f64 = text.trim_end_matches(|c: char| c.is_alphabetic()).parse().unwrap_or(f64::NAN);
    match text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.') {
        "us" => number,
        "ms" => number * 1e3,
        _ => number * 1e6,
    }
}

/// User and system time of processes, from their clock ticks of 10 ms.
fn cpu_micros(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("a stat line")?.1.split_whitespace().collect();
        ticks += fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    }
    Ok(f64::from(ticks) * 1e4)
}

/// Servers that end with the benchmark, workers included.
struct Group(Vec<Child>);

impl Group {
    /// A server and its workers.
    fn pids(&self, index: usize) -> Vec<u32> {
        let parent = self.0[index].id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([parent]).collect()
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
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().with_context(|| name)
}

const HAPROXY_PORT: u16 = 18_443;
const NGINX_PORT: u16 = 18_444;

fn backend_conf(folder: &Path, backends: &[SocketAddr]) -> Result<std::path::PathBuf> {
    let listen: String = backends.iter().map(|backend| format!("listen {backend}; ")).collect();
    let text = format!(
        "daemon off; worker_processes 1; pid {}/backend.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000; server {{ {listen} location / {{ return 200 \"hello\\n\"; }} }} }}
",
        folder.display()
    );
    write(folder, "backend.conf", &text)
}

fn nginx_conf(folder: &Path, serving: &Pair, backends: &[SocketAddr]) -> Result<std::path::PathBuf> {
    let servers: String = backends.iter().map(|backend| format!("server {backend}; ")).collect();
    let text = format!(
        "daemon off; worker_processes 2; pid {}/nginx.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000;
  upstream backends {{ {servers} keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{NGINX_PORT} ssl http2;
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

fn haproxy_conf(folder: &Path, serving: &Pair, backends: &[SocketAddr]) -> Result<std::path::PathBuf> {
    let both = fs::read_to_string(&serving.certificate)? + &fs::read_to_string(&serving.key)?;
    let pem = write(folder, "haproxy.pem", &both)?;
    let servers: String =
        backends.iter().enumerate().map(|(i, backend)| format!("  server s{i} {backend}\n")).collect();
    let text = format!(
        "global
  nbthread 2
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:{HAPROXY_PORT} ssl crt {} alpn h2,http/1.1
  default_backend b
backend b
  balance roundrobin
{servers}",
        pem.display()
    );
    write(folder, "haproxy.cfg", &text)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<std::path::PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(path)
}
