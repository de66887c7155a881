//! TCP relays and UDP flows: peers, and their load.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use crate::conf;
use crate::generators::in_threads;
use crate::peer::{Peer, bastion, free_port, plain_peer};
use crate::process::{CpuTime, Server};
use crate::stage::{BODY_BYTES, LARGE, SMALL, Stage};
use crate::statistics::Sample;
use crate::support::eventually;
use crate::workloads::{BASTION, HAPROXY, L4, NGINX};

/// Class of the Service.
const CLASS: &str = "kube-bastion.dev/bench";
/// Port of the UDP backends.
const ECHO_PORT: u16 = 8053;
/// Size in bytes of a datagram.
const DATAGRAM: usize = 200;

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
    stage
        .objects
        .create::<Service>(json!({
            "metadata": {"name": "l4"},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": CLASS, "selector": {"app": "web"},
                "allocateLoadBalancerNodePorts": false,
                "ports": [
                    {"name": "tcp", "port": port, "protocol": "TCP", "targetPort": 8080},
                    {"name": "udp", "port": port, "protocol": "UDP", "targetPort": ECHO_PORT},
                ],
            },
        }))
        .await?;
    let rbac = "deploy/components/load-balancer-controller/rbac.yaml";
    stage.cluster.kubectl(&["apply", "-f", rbac])?;
    let own = Path::new(env!("CARGO_BIN_EXE_kube-bastion"));
    let class = format!("--load-balancer-class={CLASS}");
    let flags = [
        &*class,
        "--load-balancer-address=127.0.0.1",
        "--load-balancer-bind-address=127.0.0.1",
    ];
    let mut balancer = bastion(stage, BASTION, own, &flags)?;
    balancer.address.set_port(port);
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
pub fn measure(peer: &Peer, what: L4, duration: Duration) -> Result<Sample> {
    let before = CpuTime::of(&peer.process.ids())?;
    let began = Instant::now();
    let count = match what {
        L4::Transfer => transfers(peer.address, duration)?,
        L4::Connection => connections(peer.address, duration)?,
        L4::Datagram => datagrams(peer.address, duration)?,
    };
    let elapsed = began.elapsed().as_secs_f64();
    ensure!(count > 0, "nothing has passed");
    let count = f64::from(u32::try_from(count)?);
    let spent = before.spent(&peer.process.ids(), count)?;
    Ok(Sample {
        figure: spent.total(),
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
