//! Resident memory per open connection: the slope between two numbers of connections of a process
//! that was started for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::http1::{Connection, client_config, head};
use crate::l4;
use crate::peer::Peer;
use crate::process::resident_kib;
use crate::stage::{SMALL, STALLED, Stage};
use crate::support::client::get_plain_over;
use crate::support::connect::Tunnel;
use crate::workloads::{Held, Version};

/// Opens connections to all peers, first a few for what the first ones cost alone, then `count`
/// more. Returns the KiB per connection of each peer.
///
/// # Errors
/// Returns an error if a connection does not reach its state, or does not hold it until the end.
pub async fn per_connection(stage: &Stage, peers: &[Peer], held: Held) -> Result<Vec<f64>> {
    let (first, count) = match held {
        Held::Idle | Held::Tunnel(Version::Http1) => (200, 1000),
        // The kernel holds up to 10 MiB for each, and lets connections starve beyond `tcp_mem`.
        Held::Stalled => (8, 32),
        Held::Tunnel(Version::Http2) => (1000, 9000),
    };
    let mut groups = Vec::new();
    for peer in peers {
        let group = open(stage, peer, held, first).await;
        groups.push(group.with_context(|| peer.name)?);
    }
    let before = settled(peers).await?;
    for (peer, group) in peers.iter().zip(&mut groups) {
        let more = open(stage, peer, held, count).await;
        group.extend(more.with_context(|| peer.name)?);
    }
    let after = settled(peers).await?;
    for (peer, group) in peers.iter().zip(groups) {
        check(stage, peer, held, group)
            .await
            .with_context(|| peer.name)?;
    }
    let slope = |(before, after): (&f64, &f64)| (after - before) / f64::from(count);
    Ok(before.iter().zip(&after).map(slope).collect())
}

/// Lets UDP flows expire, and as many once more. Returns the KiB by which each of the second ones has
/// increased the memory. The first ones leave what allocators keep.
///
/// # Errors
/// As [`l4::expire_flows`].
pub async fn growth_by_flows(peers: &[Peer]) -> Result<Vec<f64>> {
    const FLOWS: u32 = 10_000;
    /// jemalloc returns freed pages after 10 s, all at once after so many frees.
    const RETURN: Duration = Duration::from_secs(15);
    let mut memory = Vec::new();
    for _ in 0..2 {
        for peer in peers {
            l4::expire_flows(peer, FLOWS).await?;
        }
        tokio::time::sleep(RETURN).await;
        memory.push(settled(peers).await?);
    }
    let growth = memory[0].iter().zip(&memory[1]);
    let per_flow = growth.map(|(before, after)| (after - before) / f64::from(FLOWS));
    Ok(per_flow.collect())
}

/// An open connection or tunnel.
enum Open {
    Connection(Box<Connection>),
    Tunnel(Tunnel),
}

async fn open(stage: &Stage, peer: &Peer, held: Held, count: u32) -> Result<Vec<Open>> {
    /// The response is larger than this and the largest send buffer of the kernel.
    const STALLED_RECEIVE_BUFFER: usize = 64 << 10;
    if let Held::Tunnel(version) = held {
        return tunnels(stage, peer, version, count).await;
    }
    let config = client_config(&stage.cluster.ca.file, true)?;
    let request = request(stage, peer, held);
    let one = |_| {
        let connection = if held == Held::Stalled {
            let mut connection =
                Connection::open_small(&config, peer.address, STALLED_RECEIVE_BUFFER)?;
            connection.begin(&request)?;
            connection
        } else {
            let mut connection = Connection::open(&config, peer.address)?;
            connection.exchange(&request)?;
            connection
        };
        Ok(Open::Connection(Box::new(connection)))
    };
    (0..count).map(one).collect()
}

/// Opens tunnels, each on a connection of its own, or 100 on each connection of HTTP/2.
async fn tunnels(stage: &Stage, peer: &Peer, version: Version, count: u32) -> Result<Vec<Open>> {
    const STREAMS: u32 = 100;
    let mut open = Vec::new();
    let mut client = l4::tunnel_client(stage, peer, version);
    for number in 0..count {
        if number % STREAMS == 0 {
            client = l4::tunnel_client(stage, peer, version);
        }
        open.push(Open::Tunnel(client.open(l4::AUTHORITY).await?));
    }
    Ok(open)
}

/// Checks that the connections still work, so that none was measured after its peer had given it
/// up.
async fn check(stage: &Stage, peer: &Peer, held: Held, opened: Vec<Open>) -> Result<()> {
    /// More than the kernel can have buffered.
    const MORE_BYTES: u64 = 16 << 20;
    /// Number of downloads that are continued.
    const CONTINUED: usize = 4;
    let request = request(stage, peer, held);
    let count = match held {
        Held::Stalled => CONTINUED,
        Held::Idle | Held::Tunnel(_) => usize::MAX,
    };
    // The last downloads first: the others go on waiting.
    for one in opened.into_iter().rev().take(count) {
        match one {
            Open::Connection(mut connection) if held == Held::Stalled => {
                connection.skip(MORE_BYTES)?;
            }
            Open::Connection(mut connection) => {
                connection.exchange(&request)?;
            }
            Open::Tunnel(tunnel) => {
                let (status, _) = get_plain_over(tunnel, "bench", SMALL).await?;
                ensure!(status == 200, "status {status}");
            }
        }
    }
    Ok(())
}

fn request(stage: &Stage, peer: &Peer, held: Held) -> Vec<u8> {
    let suffix = match held {
        Held::Idle | Held::Tunnel(_) => SMALL,
        Held::Stalled => STALLED,
    };
    head("GET", &peer.path(suffix), &stage.token, "")
}

/// Waits until the memory of all peers is steady, because allocators return freed pages within
/// seconds, and returns it.
async fn settled(peers: &[Peer]) -> Result<Vec<f64>> {
    const INTERVAL: Duration = Duration::from_millis(500);
    /// Number of intervals without a change.
    const STEADY: u32 = 6;
    const MAX_INTERVALS: u32 = 50;
    const SAME_KIB: f64 = 128.0;
    let read = || -> Result<Vec<f64>> {
        peers
            .iter()
            .map(|peer| resident_kib(&peer.process.ids()))
            .collect()
    };
    let (mut last, mut steady) = (read()?, 0);
    for _ in 0..MAX_INTERVALS {
        tokio::time::sleep(INTERVAL).await;
        let now = read()?;
        let is_same = |(now, last): (&f64, &f64)| (now - last).abs() <= SAME_KIB;
        if now.iter().zip(&last).all(is_same) {
            steady += 1;
        } else {
            (last, steady) = (now, 0);
        }
        if steady == STEADY {
            break;
        }
    }
    let now = read()?;
    ensure!(!now.is_empty(), "there are peers");
    Ok(now)
}
