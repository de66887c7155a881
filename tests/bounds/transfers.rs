//! Memory of bodies and interim responses that one side sends and the other does not read.

use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::support::test_bed::{PREFIX, TestBed, read_until};
use crate::{MIB, OK_RESPONSE};

/// Length of an upload.
const UPLOAD: usize = 500_000_000;
/// Time without progress after which a write waits for the other side to read.
const STALL: Duration = Duration::from_secs(1);
/// Memory of a transfer: both read sizes, windows and buffers, and pages that the allocator keeps.
const LIMIT: usize = 8 * MIB;

fn begin(bed: &TestBed) -> Result<usize> {
    bed.bastion.reset_peak()?;
    bed.bastion.resident()
}

fn ensure_below(bed: &TestBed, what: &str, before: usize) -> Result<()> {
    let grown = bed.bastion.peak()?.saturating_sub(before);
    println!("{what}: {} KiB at the peak", grown / 1024);
    ensure!(grown < LIMIT, "{what}: {grown} bytes");
    Ok(())
}

#[tokio::test]
async fn bounds_memory_of_uploads_to_an_endpoint_that_does_not_read() -> Result<()> {
    let bed = TestBed::new().await?;
    let before = begin(&bed)?;
    let length = format!("Content-Length: {UPLOAD}\r\n\r\n");
    for rest in [&length, "Transfer-Encoding: chunked\r\n\r\n1dcd6500\r\n"] {
        let mut client = bed.request("POST /stalled", rest).await?;
        let (_endpoint, _) = bed.accept().await?;
        let part = vec![b'x'; MIB];
        let mut sent = 0;
        while timeout(STALL, client.write_all(&part)).await.is_ok() {
            sent += part.len();
            ensure!(sent < UPLOAD, "the bastion has read the upload");
        }
        println!("upload: {sent} bytes sent");
        ensure_below(&bed, "upload", before)?;
    }
    Ok(())
}

#[tokio::test]
async fn bounds_memory_of_http2_uploads_to_an_endpoint_that_does_not_read() -> Result<()> {
    let bed = TestBed::new().await?;
    let before = begin(&bed)?;
    let (sender, connection) = h2::client::handshake(bed.http2_client().await?).await?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("https://bastion.test{PREFIX}/stalled"))
        .header("authorization", "Bearer t")
        .body(())?;
    let (_response, mut body) = sender.ready().await?.send_request(request, false)?;
    let (_endpoint, _) = bed.accept().await?;
    let mut sent = 0;
    loop {
        body.reserve_capacity(MIB);
        let capacity = std::future::poll_fn(|context| body.poll_capacity(context));
        let Ok(Some(capacity)) = timeout(STALL, capacity).await else {
            break;
        };
        let length = capacity?;
        body.send_data(Bytes::from(vec![b'x'; length]), false)?;
        sent += length;
        ensure!(sent < UPLOAD, "the bastion has read the upload");
    }
    println!("HTTP/2 upload: {sent} bytes sent");
    ensure_below(&bed, "HTTP/2 upload", before)
}

/// The endpoint sends interim responses, and the client reads nothing.
#[tokio::test]
async fn bounds_memory_of_interim_responses() -> Result<()> {
    const HINTS: usize = 200_000;
    let bed = TestBed::new().await?;
    let before = begin(&bed)?;
    let mut client = bed.request("GET /hints", "\r\n").await?;
    let (mut endpoint, _) = bed.accept().await?;
    let hint = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: <{}>\r\n\r\n",
        "x".repeat(1000)
    );
    let hints = hint.repeat(1000);
    for _ in 0..HINTS / 1000 {
        endpoint.write_all(hints.as_bytes()).await?;
    }
    endpoint.write_all(OK_RESPONSE).await?;
    read_until(&mut client, "HTTP/1.1 200 OK\r\n").await?;
    ensure_below(&bed, "200 MB of interim responses", before)
}
