//! Memory of request heads and trailers near the limit of 1 MiB.

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::MIB;
use crate::support::eventually;
use crate::support::frames::{
    ACK, CONTINUATION, END_STREAM, ENHANCE_YOUR_CALM, FrameClient, GOAWAY, HEADERS,
    INITIAL_WINDOW_SIZE, MAX_PAYLOAD, PING, frame, header_block, literal,
};
use crate::support::test_bed::{PREFIX, TestBed, read_all, read_until};

/// Four times the budget for heads: an unfinished one of 1 MiB takes up to 2.4 MiB, and the
/// connections take memory, too.
const LIMIT: usize = 64 * MIB;

/// Number of fields of one byte each in a head that HTTP/2 counts as 1 MiB. They take 2.3 MiB.
const MAX_FIELDS: usize = 31_000;

/// Number of heads near 1 MiB for which the budget has room.
const IN_BUDGET: usize = 16;

/// Maximum number of concurrent streams of a connection.
const STREAMS: u32 = 100;

/// A response after which the bastion dials again: the endpoint gets a connection per request.
const CLOSING_RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Header block of a request with many fields: the first is indexed, and the others refer to it.
fn many_fields(start: &[u8], fields: usize) -> Vec<u8> {
    let mut block = start.to_vec();
    // A literal field `a` with an empty value, added to the dynamic table (RFC 7541 section 6.2.1).
    block.extend_from_slice(&[0x40, 1, b'a', 0]);
    // References to the newest entry.
    block.extend(std::iter::repeat_n(0xbe, fields - 1));
    block
}

fn request(path: &str, token: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "h"),
        (":path", &format!("{PREFIX}{path}")),
        ("authorization", &format!("Bearer {token}")),
    ] {
        literal(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

type Http2Client = FrameClient<TlsStream<TcpStream>>;

async fn connect(bed: &TestBed) -> Result<Http2Client> {
    FrameClient::new(bed.http2_client().await?, &[(INITIAL_WINDOW_SIZE, 0)]).await
}

/// Sends complete heads. Returns the connection after the bastion has processed them all, or has
/// closed it because the budget is used up by the others.
async fn send_heads(mut client: Http2Client, heads: Vec<u8>) -> Result<Http2Client> {
    // Fails if the connection is closed.
    let _ = client.send(&heads).await;
    let _ = client.send_ping().await;
    let mut responses = 0;
    loop {
        let frame = client
            .until(|frame| {
                matches!(frame.kind, HEADERS | GOAWAY) || frame.kind == PING && frame.flags == ACK
            })
            .await?;
        match frame.kind {
            HEADERS => responses += 1,
            PING => break,
            _ => {
                ensure!(frame.payload[4..8] == ENHANCE_YOUR_CALM.to_be_bytes());
                break;
            }
        }
    }
    println!("{responses} responses over HTTP/2");
    Ok(client)
}

fn begin(bed: &TestBed) -> Result<usize> {
    bed.bastion.reset_peak()?;
    bed.bastion.resident()
}

fn ensure_below(bed: &TestBed, what: &str, before: usize, limit: usize) -> Result<()> {
    let peak = bed.bastion.peak()?.saturating_sub(before);
    let now = bed.bastion.resident()?.saturating_sub(before);
    println!(
        "{what}: {} KiB at the peak, {} KiB now",
        peak / 1024,
        now / 1024
    );
    ensure!(peak < limit, "{what}: {peak} bytes");
    Ok(())
}

/// Heads that never end. The budget has room for 16 of them.
#[tokio::test]
async fn bounds_memory_of_unfinished_http2_heads() -> Result<()> {
    const CONNECTIONS: usize = 150;
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let before = begin(&bed)?;
    let block = many_fields(&request("/x", "t"), MAX_FIELDS);
    let mut sent = Vec::new();
    let mut kind = HEADERS;
    for part in block.chunks(MAX_PAYLOAD) {
        frame(&mut sent, kind, 0, 1, part);
        kind = CONTINUATION;
    }
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = connect(&bed).await?;
        client.send(&sent).await?;
        clients.push(client);
    }
    for client in &mut clients[IN_BUDGET..] {
        let goaway = client.until(|frame| frame.kind == GOAWAY).await?;
        ensure!(goaway.payload[4..8] == ENHANCE_YOUR_CALM.to_be_bytes());
    }
    ensure_below(&bed, "unfinished heads", before, LIMIT)?;
    ensure!(status_of_large_head(&bed).await? == 431);
    drop(clients);
    ensure_budget_released(&bed).await
}

/// Complete heads with many fields, which are rejected.
#[tokio::test]
async fn bounds_memory_of_http2_heads_with_many_fields() -> Result<()> {
    const CONNECTIONS: usize = 8;
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let before = begin(&bed)?;
    let first = many_fields(&request("/x", "t"), MAX_FIELDS);
    let mut further = request("/x", "t");
    further.extend(std::iter::repeat_n(0xbe, MAX_FIELDS));
    let mut sent = Vec::new();
    for n in 0..STREAMS {
        let block = if n == 0 { &first } else { &further };
        header_block(&mut sent, END_STREAM, 2 * n + 1, block);
    }
    let mut sending = Vec::new();
    for _ in 0..CONNECTIONS {
        sending.push(tokio::spawn(send_heads(connect(&bed).await?, sent.clone())));
    }
    let mut clients = Vec::new();
    for sending in sending {
        clients.push(sending.await??);
    }
    ensure_below(&bed, "heads with many fields", before, LIMIT)
}

/// Trailers of requests whose responses wait for a window, behind those or with their heads.
#[tokio::test]
async fn bounds_memory_of_http2_trailers() -> Result<()> {
    const CONNECTIONS: usize = 4;
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let before = begin(&bed)?;
    let (mut heads, mut trailers, mut together) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..STREAMS {
        let id = 2 * n + 1;
        let block = if n == 0 {
            many_fields(&[], MAX_FIELDS)
        } else {
            vec![0xbe; MAX_FIELDS]
        };
        header_block(&mut heads, 0, id, &request("/x", "unknown"));
        header_block(&mut trailers, END_STREAM, id, &block);
        header_block(&mut together, 0, id, &request("/x", "unknown"));
        header_block(&mut together, END_STREAM, id, &block);
    }
    let mut clients = Vec::new();
    for n in 0..CONNECTIONS {
        let mut client = connect(&bed).await?;
        if n % 2 == 0 {
            client.send(&heads).await?;
            for _ in 0..STREAMS {
                client.until(|frame| frame.kind == HEADERS).await?;
            }
        }
        let sent = if n % 2 == 0 { &trailers } else { &together };
        // Fails once the connection is closed.
        let _ = client.send(sent).await;
        let goaway = client.until(|frame| frame.kind == GOAWAY).await?;
        ensure!(goaway.payload[4..8] == ENHANCE_YOUR_CALM.to_be_bytes());
        clients.push(client);
    }
    ensure_below(&bed, "trailers", before, LIMIT)?;
    ensure_budget_released(&bed).await
}

/// Heads near 1 MiB over both protocols: complete ones of requests that are in flight, and
/// unfinished ones.
#[tokio::test]
async fn bounds_memory_of_large_heads_of_both_protocols() -> Result<()> {
    const HTTP2_CONNECTIONS: usize = 4;
    const HTTP1_CONNECTIONS: usize = 60;
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let before = begin(&bed)?;
    // The endpoint does not accept its connections, so that the requests stay in flight.
    let mut block = request("/silent", "t");
    for n in 0..10 {
        literal(
            &mut block,
            format!("x-{n}").as_bytes(),
            &vec![b'x'; 100_000],
        );
    }
    let mut sent = Vec::new();
    for n in 0..STREAMS {
        header_block(&mut sent, END_STREAM, 2 * n + 1, &block);
    }
    let mut http2 = Vec::new();
    for _ in 0..HTTP2_CONNECTIONS {
        http2.push(tokio::spawn(send_heads(connect(&bed).await?, sent.clone())));
    }
    let fields = format!("X-Large: {}\r\n", "x".repeat(100_000)).repeat(10);
    let mut http1 = JoinSet::new();
    for n in 0..HTTP1_CONNECTIONS {
        let end = if n % 2 == 0 { "\r\n" } else { "" };
        let mut client = bed.request("GET /silent", "").await?;
        let rest = [&fields, end].concat();
        http1.spawn(async move {
            // Fails when the connection is closed.
            let _ = client.write_all(rest.as_bytes()).await;
            let _ = client.flush().await;
            read_all(&mut client).await
        });
    }
    // The others wait: for the rest of their heads, or for their responses.
    for _ in IN_BUDGET..HTTP1_CONNECTIONS {
        let rejected = http1.join_next().await.context("a rejected head")??;
        ensure!(rejected.starts_with("HTTP/1.1 431 "), "{rejected}");
    }
    println!("large heads over HTTP/1.1: at most {} wait", http1.len());
    let mut clients = Vec::new();
    for client in http2 {
        clients.push(client.await??);
    }
    ensure_below(&bed, "large heads", before, LIMIT)?;
    drop((http1, clients));
    ensure_budget_released(&bed).await
}

/// Connections keep nothing of a large head: neither idle ones nor tunnels.
#[tokio::test]
async fn releases_memory_of_large_heads() -> Result<()> {
    const CONNECTIONS: usize = 40;
    const HEAD: usize = 900_000;
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let large = format!("X-Large: {}\r\n", "x".repeat(HEAD));
    let idle = async || -> Result<_> {
        let mut client = bed.request("GET /idle", &format!("{large}\r\n")).await?;
        let mut endpoint = accept(&bed).await?;
        endpoint.write_all(CLOSING_RESPONSE).await?;
        read_until(&mut client, "\r\n\r\n").await?;
        Ok((client, endpoint))
    };
    let idle_http2 = async || -> Result<_> {
        let mut client = connect(&bed).await?;
        let mut block = request("/idle", "t");
        literal(&mut block, b"x-large", &vec![b'x'; HEAD]);
        let mut sent = Vec::new();
        header_block(&mut sent, END_STREAM, 1, &block);
        client.send(&sent).await?;
        let mut endpoint = accept(&bed).await?;
        endpoint.write_all(CLOSING_RESPONSE).await?;
        client.until(|frame| frame.kind == HEADERS).await?;
        Ok((client, endpoint))
    };
    let tunnel = async || -> Result<_> {
        let upgrade = "Connection: Upgrade\r\nUpgrade: x\r\n";
        let mut client = bed
            .request("GET /tunnel", &format!("{upgrade}{large}\r\n"))
            .await?;
        let mut endpoint = accept(&bed).await?;
        endpoint
            .write_all(format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n").as_bytes())
            .await?;
        read_until(&mut client, "\r\n\r\n").await?;
        Ok((client, endpoint))
    };
    // The first requests grow the buffers that are reused.
    let first = (idle().await?, idle_http2().await?, tunnel().await?);
    let before = begin(&bed)?;
    let (mut http1, mut http2, mut tunnels) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        http1.push(idle().await?);
    }
    ensure_released(&bed, "idle connections after large heads", before).await?;
    for _ in 0..CONNECTIONS {
        http2.push(idle_http2().await?);
    }
    ensure_released(&bed, "idle HTTP/2 connections after large heads", before).await?;
    for _ in 0..CONNECTIONS {
        tunnels.push(tunnel().await?);
    }
    ensure_released(&bed, "tunnels after large heads", before).await?;
    drop((first, http1, http2, tunnels));
    Ok(())
}

/// Waits until the resident memory is near `before` again, because the allocator returns pages
/// later.
async fn ensure_released(bed: &TestBed, what: &str, before: usize) -> Result<()> {
    const RELEASED: usize = 16 * MIB;
    let mut grown = 0;
    let released = eventually(what, async || {
        grown = bed.bastion.resident()?.saturating_sub(before);
        Ok(grown < RELEASED)
    });
    let released = released.await;
    println!("{what}: {} KiB", grown / 1024);
    released
}

/// Accepts a connection to the endpoint and reads the head of its first request.
async fn accept(bed: &TestBed) -> Result<TcpStream> {
    let (mut stream, _) = bed.backend.accept().await?;
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut received).await? > 0, "no head");
    }
    Ok(stream)
}

async fn ensure_budget_released(bed: &TestBed) -> Result<()> {
    eventually("the budget to be released", async || {
        Ok(status_of_large_head(bed).await? == 401)
    })
    .await
}

/// Returns the status of a request with a head that counts against the budget.
async fn status_of_large_head(bed: &TestBed) -> Result<u16> {
    let mut client = bed.client().await?;
    let head = format!(
        "GET / HTTP/1.1\r\nHost: h\r\nX-Large: {}\r\n\r\n",
        "x".repeat(400_000)
    );
    client.write_all(head.as_bytes()).await?;
    client.flush().await?;
    let line = read_until(&mut client, "\r\n").await?;
    Ok(line.split(' ').nth(1).context("a status")?.parse()?)
}
