//! File descriptors are released when connections end, and incomplete requests time out.

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::eventually;
use crate::support::test_bed::{TestBed, read_until};

/// Allowance for pooled connections, connections of the test itself, and files that are read.
const SLACK: usize = 8;

/// Reads once: a part of a response, or nothing at the end.
async fn read_some(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut buffer = [0; 1024];
    let read = stream.read(&mut buffer).await.unwrap_or(0);
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

async fn returns_to(bed: &TestBed, before: usize, what: &str) -> Result<()> {
    let mut now = 0;
    let returned = eventually(what, async || {
        now = bed.bastion.descriptors()?;
        Ok(now <= before + SLACK)
    })
    .await;
    println!("descriptors, {what}: {before} before, {now} after");
    returned
}

#[tokio::test]
async fn releases_descriptors_of_closed_connections() -> Result<()> {
    const CONNECTIONS: usize = 200;
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let before = bed.idle_descriptors().await?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = bed.client().await?;
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            .await?;
        read_until(&mut client, "\r\n\r\n").await?;
        clients.push(client);
    }
    ensure!(
        bed.bastion.descriptors()? >= before + CONNECTIONS - SLACK,
        "the connections are not open"
    );
    drop(clients);
    returns_to(&bed, before, "closed connections").await
}

#[tokio::test]
async fn releases_descriptors_of_aborted_tunnels_and_uploads() -> Result<()> {
    const EACH: usize = 50;
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let before = bed.idle_descriptors().await?;
    for cut_by_client in [true, false] {
        let (mut clients, mut backends) = (Vec::new(), Vec::new());
        for _ in 0..EACH {
            let mut client = bed
                .request("GET /", "Connection: Upgrade\r\nUpgrade: x\r\n\r\n")
                .await?;
            let (mut backend, _) = bed.accept().await?;
            backend.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await?;
            read_until(&mut client, "\r\n\r\n").await?;
            clients.push(client);
            backends.push(backend);
            let mut client = bed
                .request("POST /", "Content-Length: 100\r\n\r\nhalf")
                .await?;
            let (mut backend, _) = bed.accept().await?;
            read_until(&mut backend, "half").await?;
            client.flush().await?;
            clients.push(client);
            backends.push(backend);
        }
        ensure!(
            bed.bastion.descriptors()? >= before + 4 * EACH - SLACK,
            "the connections are not open on both sides"
        );
        if cut_by_client {
            drop(clients);
            returns_to(&bed, before, "tunnels and uploads aborted by clients").await?;
        } else {
            drop(backends);
            // A tunnel whose backend closed stays open for the client's bytes until the client
            // closes, too.
            for mut client in clients {
                ensure!(!read_some(&mut client).await.contains("200 OK"));
            }
            returns_to(&bed, before, "tunnels and uploads aborted by backends").await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn incomplete_heads_do_not_block_the_admin_port() -> Result<()> {
    const HEADS: usize = 200;
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let before = bed.idle_descriptors().await?;
    let mut clients = Vec::new();
    for _ in 0..HEADS {
        let mut client = TcpStream::connect(bed.bastion.admin).await?;
        client
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: h\r\n")
            .await?;
        clients.push(client);
    }
    returns_to(&bed, before, "incomplete heads at the admin port").await?;
    ensure!(bed.bastion.readyz().await?.0 == 200);
    Ok(())
}
