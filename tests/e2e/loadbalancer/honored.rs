//! Fields of a Service that decide who is served, and by which endpoint.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::traffic::Echoes;
use super::{PATIENCE, Services, start, stop};
use crate::fixture::Fixture;
use crate::support::client::get_plain_over;
use crate::support::eventually;

/// Client in the source ranges.
const ALLOWED: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Client beyond them.
const DENIED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

/// Sends a request from an address. Returns the name of the endpoint.
async fn name(from: IpAddr, listener: SocketAddr) -> Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(listener).await?;
    Ok(get_plain_over(stream, "web", "/name").await?.1)
}

/// Names of the endpoints of nine connections.
async fn names(from: IpAddr, listener: SocketAddr) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for _ in 0..9 {
        names.insert(name(from, listener).await?);
    }
    Ok(names)
}

pub async fn listeners_honor_ranges_affinity_and_unready_addresses(
    fixture: &mut Fixture,
) -> Result<()> {
    let services = Services::new(fixture);
    let listener = SocketAddr::from(([127, 0, 0, 5], 98));
    let settings = json!({"bindAddresses": [listener.ip()]});
    let running = start(fixture, "lb-honored", settings).await?;
    let ports = [(98, "TCP"), (98, "UDP")];
    let ranges = json!({"loadBalancerSourceRanges": ["127.0.0.0/29", " fd00::/8 "]});
    services.create("lb-honored", &ports, ranges).await?;
    services.reason("lb-honored", "Ready").await?;
    eventually("the listener to be open", async || {
        Ok(name(ALLOWED, listener).await.is_ok())
    })
    .await?;
    let denied = name(DENIED, listener).await;
    ensure!(denied.is_err(), "a client beyond the ranges: {denied:?}");

    let echoes = Echoes::start(fixture)?;
    let ask = async |from: IpAddr, datagram: &[u8]| -> Result<UdpSocket> {
        let client = UdpSocket::bind((from, 0)).await?;
        client.connect(listener).await?;
        client.send(datagram).await?;
        Ok(client)
    };
    let unanswered = ask(DENIED, b"denied").await?;
    // A flow to each endpoint, behind the datagram.
    for _ in 0..3 {
        let client = ask(ALLOWED, b"allowed").await?;
        let mut answer = [0; 64];
        timeout(PATIENCE, client.recv(&mut answer)).await??;
    }
    ensure!(echoes.has_received(b"allowed") && !echoes.has_received(b"denied"));
    ensure!(unanswered.try_recv(&mut [0; 64]).is_err());
    drop(echoes);

    let all: BTreeSet<_> = ["web-1", "web-2", "web-3"].map(String::from).into();
    ensure!(names(ALLOWED, listener).await? == all);
    let affinity = json!({"loadBalancerSourceRanges": null, "sessionAffinity": "ClientIP"});
    services.patch("lb-honored", affinity).await?;
    eventually("one endpoint for one client", async || {
        Ok(names(ALLOWED, listener).await?.len() == 1)
    })
    .await?;
    let mut of_all = BTreeSet::new();
    for last in 1..=12 {
        let client = Ipv4Addr::new(127, 0, 1, last).into();
        let names = names(client, listener).await?;
        ensure!(names.len() == 1, "endpoints of {client}: {names:?}");
        of_all.extend(names);
    }
    ensure!(of_all == all, "endpoints of twelve clients: {of_all:?}");

    let none = json!({"sessionAffinity": "None", "sessionAffinityConfig": null});
    services.patch("lb-honored", none).await?;
    fixture.objects.set_ready("web-2", false).await?;
    let followed = follow_readiness(&services, listener, &all).await;
    fixture.objects.set_ready("web-2", true).await?;
    services.delete("lb-honored").await?;
    followed?;
    fixture.endpoints("services/web", 3).await?;
    stop(running).await
}

async fn follow_readiness(
    services: &Services,
    listener: SocketAddr,
    all: &BTreeSet<String>,
) -> Result<()> {
    eventually("the ready endpoints only", async || {
        let names = names(ALLOWED, listener).await?;
        Ok(names.len() == 2 && !names.contains("web-2"))
    })
    .await?;
    let unready = json!({"publishNotReadyAddresses": true});
    services.patch("lb-honored", unready).await?;
    eventually("the endpoint that is not ready, too", async || {
        Ok(names(ALLOWED, listener).await? == *all)
    })
    .await
}
