//! A DNS server behind two Services of `type: LoadBalancer`, one for TCP and one for UDP.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{PATIENCE, Services, start, stop};
use crate::fixture::Fixture;
use crate::support::dns::{self, DNS_PORT, dnsmasq};
use crate::support::eventually;

/// Last octets of the pods' addresses, and the addresses that they answer with.
const PODS: [(u8, Ipv4Addr); 2] = [
    (48, Ipv4Addr::new(192, 0, 2, 48)),
    (49, Ipv4Addr::new(192, 0, 2, 49)),
];

/// Time without an answer after which a query is sent again.
const RESEND_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after an error of a socket, which may be the refusal of an earlier datagram.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Sends a query until it is answered, because a datagram is lost if it precedes the listener, or
/// the change of an endpoint. Returns the address in the answer.
async fn ask(socket: &UdpSocket, id: u16) -> Result<Ipv4Addr> {
    let query = dns::query(id);
    let answered = async {
        loop {
            let exchange = async {
                socket.send(&query).await?;
                receive(socket, id).await
            };
            match timeout(RESEND_INTERVAL, exchange).await {
                Ok(Ok(answer)) => return dns::address(&answer, id),
                Ok(Err(_)) => tokio::time::sleep(REFUSED_PAUSE).await,
                Err(_) => {}
            }
        }
    };
    timeout(PATIENCE, answered).await?
}

/// Receives the answer to a query. Ignores late answers to other queries.
async fn receive(socket: &UdpSocket, id: u16) -> std::io::Result<Vec<u8>> {
    let mut answer = vec![0; 512];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answer[..length].starts_with(&id.to_be_bytes()) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

/// Sends a query over TCP, where each message has its length before it (RFC 1035 section 4.2.2).
async fn ask_by_tcp(server: SocketAddr, id: u16) -> Result<Ipv4Addr> {
    let mut stream = TcpStream::connect(server).await?;
    let query = dns::query(id);
    stream.write_u16(query.len().try_into()?).await?;
    stream.write_all(&query).await?;
    let mut answer = vec![0; timeout(PATIENCE, stream.read_u16()).await??.into()];
    stream.read_exact(&mut answer).await?;
    dns::address(&answer, id)
}

/// A socket that accepts datagrams of the address that it asks only.
async fn socket(server: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// Both Services have the same address and number of the port (metallb/metallb issue 121). A client
/// keeps its source port while the pod is replaced (kubernetes/kubernetes issue 103857).
pub async fn dns_server_has_tcp_and_udp_on_one_address(fixture: &mut Fixture) -> Result<()> {
    let services = Services::new(fixture);
    let server = SocketAddr::from(([127, 0, 0, 6], DNS_PORT));
    let settings = json!({"bindAddresses": [server.ip()]});
    let running = start(fixture, "lb-dns", settings).await?;
    let pod = async |number: usize| {
        let (last, answer) = PODS[number];
        let address = fixture.namespace.address(last);
        let program = dnsmasq(&fixture.namespace, address, answer).await?;
        let (name, labels) = (format!("lb-dns-{number}"), json!({"app": "lb-dns"}));
        let objects = &fixture.objects;
        objects.pod(&name, labels, address, json!([])).await?;
        anyhow::Ok(program)
    };
    let old = pod(0).await?;
    for (name, protocol) in [("lb-dns-tcp", "TCP"), ("lb-dns-udp", "UDP")] {
        let ports = json!([{"port": DNS_PORT, "protocol": protocol}]);
        let more = json!({"selector": {"app": "lb-dns"}, "ports": ports});
        services.create(name, &[], more).await?;
        services.reason(name, "Ready").await?;
    }
    eventually("the listener to be open", async || {
        Ok(ask_by_tcp(server, 1).await.is_ok())
    })
    .await?;
    // The UDP socket may open after the TCP listener.
    ask(&socket(server).await?, 1).await?;
    let client = socket(server).await?;
    for id in 2..5 {
        ensure!(ask(&client, id).await? == PODS[0].1);
        ensure!(ask_by_tcp(server, id).await? == PODS[0].1);
    }

    let _new = pod(1).await?;
    fixture.objects.terminate("lb-dns-0").await?;
    drop(old);
    fixture.objects.delete_pod("lb-dns-0").await?;
    eventually("a new client to reach the new pod", async || {
        // Until the change is known, a datagram may be sent to the pod that is gone.
        let client = socket(server).await?;
        let answer = timeout(RESEND_INTERVAL, ask(&client, 5)).await;
        Ok(answer.is_ok_and(|answer| answer.is_ok_and(|it| it == PODS[1].1)))
    })
    .await?;
    ensure!(ask(&client, 6).await? == PODS[1].1);
    eventually("the new pod over TCP", async || {
        let answer = ask_by_tcp(server, 7).await;
        Ok(answer.is_ok_and(|it| it == PODS[1].1))
    })
    .await?;

    for name in ["lb-dns-tcp", "lb-dns-udp"] {
        services.delete(name).await?;
    }
    fixture.objects.delete_pod("lb-dns-1").await?;
    stop(running).await
}
