//! TCP relays and UDP flows: peers, and their load.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::conf;
use crate::generators::in_threads;
use crate::peer::{Peer, bastion, free_port, plain_peer};
use crate::process::{CpuTime, Server};
use crate::settings::Settings;
use crate::stage::{BODY_BYTES, LARGE, SMALL, Stage};
use crate::statistics::Sample;
use crate::support::connect::{self, TunnelClient};
use crate::support::{eventually, within};
use crate::workloads::{BASTION, ENVOY, HAPROXY, L4, NGINX, RELAY, Version};

/// Port of the UDP backends.
const ECHO_PORT: u16 = 8053;
/// Size in bytes of a datagram.
const DATAGRAM: usize = 200;

/// Authority of the tunnels.
pub const AUTHORITY: &str = "web.bench.svc:80";

/// Starts a bastion that allows one caller many tunnels.
///
/// # Errors
/// Returns an error if no tunnel opens.
pub async fn tunnel_peer(stage: &Stage) -> Result<Peer> {
    let config = json!({
        "apiVersion": "kube-bastion.dev/v1alpha1", "kind": "BastionConfiguration",
        "tunnels": {"maxPerCaller": 100_000},
    });
    let file = stage.folder().join("tunnels.yaml");
    std::fs::write(&file, config.to_string())?;
    let own = Path::new(env!("CARGO_BIN_EXE_kube-bastion"));
    let flag = format!("--config={}", file.display());
    let peer = bastion(stage, BASTION, own, &[&flag])?;
    reach_by_tunnel(stage, &peer).await?;
    Ok(peer)
}

async fn reach_by_tunnel(stage: &Stage, peer: &Peer) -> Result<()> {
    let client = tunnel_client(stage, peer, Version::Http2);
    let what = format!("a tunnel of {}", peer.name);
    eventually(&what, async || Ok(client.open(AUTHORITY).await.is_ok())).await
}

/// Returns a client with connections of its own.
pub fn tunnel_client(stage: &Stage, peer: &Peer, version: Version) -> TunnelClient {
    let version = match version {
        Version::Http1 => connect::Version::Http1,
        Version::Http2 => connect::Version::Http2,
    };
    let ca = stage.cluster.ca.file.clone();
    TunnelClient::new(peer.address, ca, &stage.token, version)
}

/// Starts the bastion, HAProxy and nginx, each with a port for TCP and one of the same number for
/// UDP, except for HAProxy.
///
/// # Errors
/// Returns an error if one of them does not reach the backends.
pub async fn peers(stage: &Stage) -> Result<Vec<Peer>> {
    let mut echoes = Vec::new();
    for backend in &stage.backends {
        let address = SocketAddr::new(backend.ip(), ECHO_PORT);
        echo(stage.namespace.bind_udp(address)?)?;
        echoes.push(address);
    }
    let port = free_port()?;
    let ports = json!([
        {"name": "tcp", "port": port, "protocol": "TCP", "targetPort": 8080},
        {"name": "udp", "port": port, "protocol": "UDP", "targetPort": ECHO_PORT},
    ]);
    let balancer = balancer(stage, BASTION, "l4", port, &ports).await?;
    let port = free_port()?;
    let file = conf::haproxy_tcp(stage.folder(), port, &stage.backends)?;
    let haproxy = Server::start(Command::new("haproxy").arg("-f").arg(file))?;
    let haproxy = plain_peer(HAPROXY, port, haproxy);
    let port = free_port()?;
    let file = conf::nginx_stream(stage.folder(), port, &stage.backends, &echoes)?;
    let nginx = Server::start(Command::new("nginx").arg("-c").arg(file))?;
    let peers = vec![balancer, haproxy, plain_peer(NGINX, port, nginx)];
    for peer in &peers {
        let what = format!("{} to relay", peer.name);
        eventually(&what, async || Ok(get(peer.address, SMALL, true).is_ok())).await?;
    }
    Ok(peers)
}

/// Starts the bastion, its relay of TCP, and Envoy if it is given.
///
/// # Errors
/// Returns an error if one of them does not reach the backends.
pub async fn tunnels_and_relay(stage: &Stage, settings: &Settings) -> Result<Vec<Peer>> {
    let port = free_port()?;
    let ports = json!([{"port": port, "targetPort": 8080}]);
    let relay = balancer(stage, RELAY, "relay", port, &ports).await?;
    eventually("the relay", async || {
        Ok(get(relay.address, SMALL, true).is_ok())
    })
    .await?;
    let mut peers = vec![tunnel_peer(stage).await?, relay];
    if let Some(binary) = &settings.envoy {
        let port = free_port()?;
        let file = conf::envoy_connect(stage.folder(), port, &stage.serving, &stage.backends)?;
        let mut command = Command::new(binary);
        command.arg("--config-path").arg(file);
        command.args(["--use-dynamic-base-id", "--concurrency", "2"]);
        command.args(["--log-level", "error"]);
        let envoy = plain_peer(ENVOY, port, Server::start(&mut command)?);
        reach_by_tunnel(stage, &envoy).await?;
        peers.push(envoy);
    }
    Ok(peers)
}

/// Starts a bastion that serves a Service of `type: LoadBalancer` on loopback.
async fn balancer(
    stage: &Stage,
    name: &'static str,
    service: &str,
    port: u16,
    ports: &Value,
) -> Result<Peer> {
    let class = format!("kube-bastion.dev/{service}");
    stage
        .objects
        .create::<Service>(json!({
            "metadata": {"name": service},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": class, "selector": {"app": "web"},
                "allocateLoadBalancerNodePorts": false, "ports": ports,
            },
        }))
        .await?;
    let rbac = "deploy/components/load-balancer-controller/rbac.yaml";
    stage.cluster.kubectl(&["apply", "-f", rbac])?;
    let own = Path::new(env!("CARGO_BIN_EXE_kube-bastion"));
    let class = format!("--load-balancer-class={class}");
    let flags = [
        &*class,
        "--load-balancer-address=127.0.0.1",
        "--load-balancer-bind-address=127.0.0.1",
    ];
    let mut peer = bastion(stage, name, own, &flags)?;
    peer.address.set_port(port);
    Ok(peer)
}

/// Starts a bastion with a UDP port whose endpoints never answer.
///
/// # Errors
/// Returns an error if the port is not served.
pub async fn flow_peer(stage: &Stage) -> Result<Peer> {
    let port = free_port()?;
    for backend in &stage.backends {
        // Held for the rest of the run.
        let address = SocketAddr::new(backend.ip(), port);
        std::mem::forget(stage.namespace.bind_udp(address)?);
    }
    let ports = json!([{"port": port, "protocol": "UDP", "targetPort": port}]);
    let peer = balancer(stage, BASTION, &format!("flows-{port}"), port, &ports).await?;
    let before = descriptors(&peer)?;
    let client = UdpSocket::bind("127.0.0.1:0")?;
    client.connect(peer.address)?;
    eventually("the first flow", async || {
        // While the port is not open, the kernel reports so before the send has returned. Descriptors
        // alone may be those of something else that has started.
        client.take_error()?;
        client.send(b"x")?;
        Ok(client.take_error()?.is_none() && descriptors(&peer)? > before)
    })
    .await?;
    Ok(peer)
}

/// Opens a number of UDP flows, and waits until all have expired.
///
/// # Errors
/// Returns an error if they do not open, or do not end.
pub async fn expire_flows(peer: &Peer, count: u32) -> Result<()> {
    /// A client address may have a quarter of all flows.
    const CLIENTS: u8 = 8;
    /// Number of datagrams after which the port gets time to take them.
    const TRAIN: usize = 32;
    /// Flows that expire later than those of this function, or descriptors of something else.
    const OTHERS: usize = 16;
    let before = descriptors(peer)?;
    let mut clients = Vec::new();
    for client in 1..=CLIENTS {
        for _ in 0..count / u32::from(CLIENTS) {
            let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 1, client), 0))?;
            socket.connect(peer.address)?;
            clients.push(socket);
        }
    }
    // A datagram may be lost.
    for _ in 0..2 {
        for train in clients.chunks(TRAIN) {
            for socket in train {
                socket.send(b"x")?;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let opened = before + clients.len() - OTHERS;
    eventually("the flows", async || Ok(descriptors(peer)? >= opened)).await?;
    drop(clients);
    within(Duration::from_mins(2), "the end of the flows", async || {
        Ok(descriptors(peer)? <= before + OTHERS)
    })
    .await
}

/// Number of open descriptors: each flow has one.
fn descriptors(peer: &Peer) -> Result<usize> {
    let mut count = 0;
    for id in peer.process.ids() {
        count += std::fs::read_dir(format!("/proc/{id}/fd"))?.count();
    }
    Ok(count)
}

/// Echoes datagrams for the rest of the run.
fn echo(socket: UdpSocket) -> Result<()> {
    socket.set_nonblocking(false)?;
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    Ok(())
}

/// Measures one peer.
///
/// # Errors
/// Returns an error if a transfer fails.
pub async fn measure(stage: &Stage, peer: &Peer, what: L4, duration: Duration) -> Result<Sample> {
    let before = CpuTime::of(&peer.process.ids())?;
    let began = Instant::now();
    let count = match what {
        L4::Transfer => transfers(peer.address, duration)?,
        L4::Connection => connections(peer.address, duration)?,
        L4::Datagram => datagrams(peer.address, duration)?,
        L4::Tunnels(version) => tunnels(stage, peer, version, duration).await?,
    };
    let elapsed = began.elapsed().as_secs_f64();
    ensure!(count > 0, "nothing has passed");
    let count = f64::from(u32::try_from(count)?);
    let spent = before.spent(&peer.process.ids(), count)?;
    Ok(Sample {
        figure: match what {
            L4::Tunnels(_) => elapsed * 1e6 / count,
            _ => spent.total(),
        },
        user: Some(spent.user),
        per_second: Some(count / elapsed),
        latency: None,
    })
}

/// Downloads of a large body on few connections. Returns their number.
fn transfers(address: SocketAddr, duration: Duration) -> Result<u64> {
    const CONNECTIONS: usize = 8;
    let end = Instant::now() + duration;
    let counts = in_threads(CONNECTIONS, |_| {
        let mut stream = TcpStream::connect(address)?;
        let mut count = 0;
        while count == 0 || Instant::now() < end {
            request(&mut stream, LARGE, false)?;
            let length = response(&mut stream)?;
            ensure!(length == BODY_BYTES, "a download has {length} bytes");
            count += 1;
        }
        Ok(count)
    })?;
    Ok(counts.iter().sum())
}

/// Downloads of a large body through 100 tunnels at the same time, or as many connections of the
/// relay. Returns their number.
async fn tunnels(stage: &Stage, peer: &Peer, version: Version, duration: Duration) -> Result<u64> {
    const TUNNELS: usize = 100;
    let end = Instant::now() + duration;
    let client = (peer.name != RELAY).then(|| tunnel_client(stage, peer, version));
    let mut tasks = JoinSet::new();
    for _ in 0..TUNNELS {
        let (client, address) = (client.clone(), peer.address);
        tasks.spawn(async move {
            let stream: Box<dyn Stream> = match client {
                Some(client) => Box::new(client.open(AUTHORITY).await?),
                None => Box::new(tokio::net::TcpStream::connect(address).await?),
            };
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let mut count = 0;
            while count == 0 || Instant::now() < end {
                let request = Request::get(LARGE).header(header::HOST, "bench");
                let request = request.body(Empty::<Bytes>::new())?;
                // After the body, the connection may still have to finish the response.
                sender.ready().await?;
                let mut body = sender.send_request(request).await?.into_body();
                let mut length = 0;
                while let Some(frame) = body.frame().await {
                    length += frame?.data_ref().map_or(0, Bytes::len) as u64;
                }
                ensure!(length == BODY_BYTES, "a download has {length} bytes");
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut sum = 0;
    while let Some(count) = tasks.join_next().await {
        sum += count??;
    }
    Ok(sum)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connections with one small request each. Returns their number.
fn connections(address: SocketAddr, duration: Duration) -> Result<u64> {
    const THREADS: usize = 4;
    let end = Instant::now() + duration;
    let counts = in_threads(THREADS, |_| {
        let mut count = 0;
        while Instant::now() < end {
            get(address, SMALL, true)?;
            count += 1;
        }
        Ok(count)
    })?;
    Ok(counts.iter().sum())
}

/// Datagrams of some flows, with several on their way in each. Returns the number of answers.
fn datagrams(address: SocketAddr, duration: Duration) -> Result<u64> {
    const FLOWS: usize = 8;
    const ON_THE_WAY: usize = 16;
    /// After a loss, the flow begins anew.
    const TIMEOUT: Duration = Duration::from_millis(200);
    let end = Instant::now() + duration;
    let counts = in_threads(FLOWS, |_| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let (mut buffer, mut count) = ([0; DATAGRAM], 0);
        while Instant::now() < end {
            for _ in 0..ON_THE_WAY {
                socket.send(&[b'x'; DATAGRAM])?;
            }
            for _ in 0..ON_THE_WAY {
                if socket.recv(&mut buffer).is_err() {
                    break;
                }
                count += 1;
            }
        }
        Ok(count)
    })?;
    Ok(counts.iter().sum())
}

fn get(address: SocketAddr, path: &str, close: bool) -> Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    request(&mut stream, path, close)?;
    response(&mut stream)
}

fn request(stream: &mut TcpStream, path: &str, close: bool) -> Result<()> {
    let connection = if close { "close" } else { "keep-alive" };
    let head = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: {connection}\r\n\r\n");
    Ok(stream.write_all(head.as_bytes())?)
}

/// Reads a response, and returns the length of its body.
fn response(stream: &mut TcpStream) -> Result<u64> {
    const NAME: &str = "content-length: ";
    let mut buffer = vec![0; 128 * 1024];
    let mut filled = 0;
    let (head, body) = loop {
        let read = stream.read(&mut buffer[filled..])?;
        ensure!(read > 0, "the connection ended within a head");
        filled += read;
        let mut windows = buffer[..filled].windows(4);
        if let Some(end) = windows.position(|window| window == b"\r\n\r\n") {
            let head = std::str::from_utf8(&buffer[..end])?.to_ascii_lowercase();
            break (head, filled - end - 4);
        }
    };
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix(NAME));
    let length: u64 = length.context("a length")?.trim().parse()?;
    let mut rest = length - body as u64;
    while rest > 0 {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the connection ended within a body");
        rest -= read as u64;
    }
    Ok(length)
}
