//! Connections and datagrams of the clients of a Service.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{PATIENCE, Services, start, stop};
use crate::faults::WEB;
use crate::fixture::{Fixture, SHOP};
use crate::support::client::get_plain;
use crate::support::connect::Version;
use crate::support::connect_udp::UdpTunnel;
use crate::support::eventually;
use crate::tunnels;

/// Length of a datagram that does not fit into a packet to the pods.
const ABOVE_MTU: usize = 2000;
/// Number of reports of a smaller MTU for one flow. The flow may receive or send first.
const ROUNDS: usize = 50;

/// Datagram of a flow at its endpoint.
#[derive(Clone)]
struct Received {
    from: SocketAddr,
    endpoint: SocketAddr,
    bytes: Vec<u8>,
}

/// UDP servers of the pods of `services/web`, which send datagrams back. Dropping it stops them.
pub(super) struct Echoes {
    received: Arc<Mutex<Vec<Received>>>,
    _tasks: JoinSet<()>,
}

impl Echoes {
    pub(super) fn start(fixture: &Fixture) -> Result<Self> {
        let received = Arc::<Mutex<Vec<_>>>::default();
        let mut tasks = JoinSet::new();
        for (_, last) in WEB {
            let address: SocketAddr = (fixture.namespace.address(last), 8080).into();
            let socket = UdpSocket::from_std(fixture.namespace.bind_udp(address)?)?;
            let received = Arc::clone(&received);
            tasks.spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                    let datagram = &buffer[..length];
                    received
                        .lock()
                        .expect("no thread panics with it")
                        .push(Received {
                            from,
                            endpoint: address,
                            bytes: datagram.to_vec(),
                        });
                    let _ = socket.send_to(datagram, from).await;
                }
            });
        }
        Ok(Self {
            received,
            _tasks: tasks,
        })
    }

    /// Returns true if an endpoint has received the datagram.
    pub(super) fn has_received(&self, datagram: &[u8]) -> bool {
        self.received(datagram).is_some()
    }

    fn received(&self, datagram: &[u8]) -> Option<Received> {
        let received = self.received.lock().expect("no thread panics with it");
        received.iter().find(|it| it.bytes == datagram).cloned()
    }
}

pub async fn listeners_carry_tcp_and_udp(fixture: &mut Fixture) -> Result<()> {
    let services = Services::new(fixture);
    let address = SocketAddr::from(([127, 0, 0, 5], 95));
    let settings = json!({"bindAddresses": [address.ip()]});
    let running = start(fixture, "lb-traffic", settings).await?;
    let ports = [(95, "TCP"), (95, "UDP")];
    services.create("lb-traffic", &ports, json!({})).await?;
    services.reason("lb-traffic", "Ready").await?;
    eventually("the listener to be open", async || {
        Ok(get_plain(address, "/name").await.is_ok())
    })
    .await?;
    let mut names = Vec::new();
    for _ in 0..6 {
        names.push(get_plain(address, "/name").await?.1);
    }
    names.sort();
    let expected = ["web-1", "web-1", "web-2", "web-2", "web-3", "web-3"];
    ensure!(names == expected, "{names:?}");

    let servers = Echoes::start(fixture)?;
    let client = UdpSocket::bind("127.0.0.1:0").await?;
    client.connect(address).await?;
    let mut answer = [0; 4096];
    // The second one in fragments, as with kube-proxy.
    for question in [&b"question"[..], &[1; ABOVE_MTU]] {
        client.send(question).await?;
        let length = timeout(PATIENCE, client.recv(&mut answer)).await??;
        ensure!(answer[..length] == *question, "{length} bytes");
    }
    drops_datagrams_above_the_mtu(fixture, &servers).await?;
    // A socket of its own for each client socket: all endpoints serve within three flows.
    for _ in 0..3 {
        let client = UdpSocket::bind("127.0.0.1:0").await?;
        client.connect(address).await?;
        client.send(b"x").await?;
        ensure!(timeout(PATIENCE, client.recv(&mut answer)).await?? == 1);
    }

    flows_survive_a_smaller_mtu_on_their_path(fixture, &servers, &client).await?;

    services.delete("lb-traffic").await?;
    eventually("the listener to be closed", async || {
        Ok(TcpStream::connect(address).await.is_err())
    })
    .await?;
    drop(servers);
    stop(running).await
}

/// A tunnel must not fragment datagrams (RFC 9298 section 6).
async fn drops_datagrams_above_the_mtu(fixture: &Fixture, servers: &Echoes) -> Result<()> {
    let token = tunnels::account(fixture, "above-mtu").await?;
    let (bastion, ca) = (fixture.bastion.secure, &fixture.cluster.ca.file);
    let target = format!("lb-traffic.{SHOP}.svc/95");
    let mut tunnel = UdpTunnel::open(bastion, ca, &token, Version::Http2, &target).await?;
    let long = [2; ABOVE_MTU];
    tunnel.send(&long).await?;
    tunnel.send(b"short").await?;
    let received = timeout(PATIENCE, tunnel.receive()).await??;
    ensure!(received[..] == *b"short", "{} bytes", received.len());
    ensure!(!servers.has_received(&long), "sent in fragments");
    Ok(())
}

/// A router reports that it cannot forward a datagram: that datagram alone is lost, not the next one.
async fn flows_survive_a_smaller_mtu_on_their_path(
    fixture: &Fixture,
    servers: &Echoes,
    client: &UdpSocket,
) -> Result<()> {
    let mut answer = [0; 64];
    let before = servers.received(b"question").context("a flow")?;
    for round in 0..ROUNDS {
        report_smaller_mtu(&before)?;
        let payload = format!("after {round}");
        client.send(payload.as_bytes()).await?;
        let received = timeout(PATIENCE, client.recv(&mut answer)).await;
        let length = received.with_context(|| format!("no answer to {payload:?}"))??;
        ensure!(answer[..length] == *payload.as_bytes());
        let after = servers
            .received(payload.as_bytes())
            .context("the same flow")?;
        ensure!((after.from, after.endpoint) == (before.from, before.endpoint));
    }

    let token = tunnels::account(fixture, "smaller-mtu").await?;
    let (bastion, ca) = (fixture.bastion.secure, &fixture.cluster.ca.file);
    let target = format!("lb-traffic.{SHOP}.svc/95");
    let mut tunnel = UdpTunnel::open(bastion, ca, &token, Version::Http2, &target).await?;
    for round in 0..ROUNDS {
        let payload = format!("tunnel {round}");
        tunnel.send(payload.as_bytes()).await?;
        let received = timeout(PATIENCE, tunnel.receive()).await;
        let received = received.with_context(|| format!("no answer to {payload:?}"))??;
        ensure!(received[..] == *payload.as_bytes());
        let sent = servers.received(payload.as_bytes()).context("a datagram")?;
        report_smaller_mtu(&sent)?;
    }
    Ok(())
}

/// Sends an ICMP message "fragmentation needed" (RFC 792, RFC 1191) for a datagram to its sender.
fn report_smaller_mtu(datagram: &Received) -> Result<()> {
    const MTU: u16 = 1490;
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (datagram.from, datagram.endpoint) else {
        bail!("not IPv4");
    };
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(MTU.to_be_bytes());
    // The heads of the datagram: IPv4 without options, whose checksum is not read, and UDP.
    message.extend([0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    message.extend(from.ip().octets());
    message.extend(to.ip().octets());
    message.extend(from.port().to_be_bytes());
    message.extend(to.port().to_be_bytes());
    message.extend([5, 0xc8, 0, 0]);
    let words = message.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16))?;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.send_to(&message, &SocketAddr::from((*from.ip(), 0)).into())?;
    Ok(())
}
