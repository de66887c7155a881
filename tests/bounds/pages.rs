//! Memory of pages that are rewritten.

use std::io::Write;

use anyhow::{Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::MIB;
use crate::support::test_bed::{TestBed, read_until};

/// Three times the budget for rewriting. Without bounds, each attack takes at least twice as much.
const LIMIT: usize = 96 * MIB;

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Starts a page. Returns the backend side, and a task that reads the response and returns its
/// length.
async fn page(bed: &TestBed, headers: &str) -> Result<(TcpStream, JoinHandle<u64>)> {
    let mut client = bed
        .request("GET /page", "Connection: close\r\n\r\n")
        .await?;
    let (mut backend, _) = bed.accept().await?;
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n{headers}\r\n");
    backend.write_all(head.as_bytes()).await?;
    let read = tokio::spawn(async move {
        let mut read = 0;
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(more @ 1..) = client.read(&mut buffer).await {
            read += more as u64;
        }
        read
    });
    Ok((backend, read))
}

fn grown(bed: &TestBed, before: usize) -> Result<usize> {
    Ok(bed.bastion.peak()?.saturating_sub(before))
}

fn begin(bed: &TestBed) -> Result<usize> {
    bed.bastion.reset_peak()?;
    bed.bastion.resident()
}

#[tokio::test]
async fn bounds_memory_of_huge_srcset() -> Result<()> {
    let bed = TestBed::new().await?;
    let candidates = "/a 1x,".repeat(15 * MIB / 6);
    let zipped = gzip(format!("<img srcset=\"{candidates}\">").as_bytes())?;
    let before = begin(&bed)?;
    let (mut backend, read) = page(&bed, "Content-Encoding: gzip\r\n").await?;
    backend.write_all(&zipped).await?;
    drop(backend);
    let read = read.await?;
    let grown = grown(&bed, before)?;
    println!(
        "a srcset of 15 MiB, {} bytes as gzip: {} KiB at the peak, {read} bytes out",
        zipped.len(),
        grown / 1024
    );
    ensure!(read > 0 && grown < LIMIT, "{grown} bytes");
    Ok(())
}

#[tokio::test]
async fn bounds_memory_of_pages_stalled_in_a_tag() -> Result<()> {
    const PAGES: usize = 20;
    const SIZE: usize = 8 * MIB;
    let bed = TestBed::new().await?;
    let before = begin(&bed)?;
    let start = format!("<a title=\"{}", "x".repeat(SIZE));
    let mut stalled = Vec::new();
    for _ in 0..PAGES {
        let (mut backend, read) = page(&bed, "").await?;
        backend.write_all(start.as_bytes()).await?;
        stalled.push((backend, read));
    }
    let grown = grown(&bed, before)?;
    println!(
        "{PAGES} pages stalled in a tag of {SIZE} bytes: {} KiB at the peak",
        grown / 1024
    );
    ensure!(grown < LIMIT, "{grown} bytes");
    // Stalled pages are not aborted, so the rest arrives.
    for (mut backend, read) in stalled {
        backend.write_all(b"\">end</a>").await?;
        drop(backend);
        ensure!(read.await? > SIZE as u64);
    }
    Ok(())
}

#[tokio::test]
async fn bounds_memory_of_unclosed_elements_with_long_names() -> Result<()> {
    const TOTAL: usize = 80 * MIB;
    const NAME: usize = 60_000;
    let bed = TestBed::new().await?;
    let before = begin(&bed)?;
    let (mut backend, read) = page(&bed, "").await?;
    for n in 0..TOTAL / NAME {
        backend
            .write_all(format!("<n{n:06}{}>", "x".repeat(NAME)).as_bytes())
            .await?;
    }
    drop(backend);
    let read = read.await?;
    let grown = grown(&bed, before)?;
    println!(
        "{TOTAL} bytes of unclosed names: {} KiB at the peak, {read} bytes out",
        grown / 1024
    );
    ensure!(read > TOTAL as u64 && grown < LIMIT, "{grown} bytes");
    Ok(())
}

#[tokio::test]
async fn bounds_memory_of_empty_gzip_members() -> Result<()> {
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let member = gzip(b"")?;
    let members = member.repeat(4 * MIB / member.len());
    let before = begin(&bed)?;
    let (mut hostile, read) = page(&bed, "Content-Encoding: gzip\r\n").await?;
    // Complete members only, so that the page has no end.
    hostile.write_all(&members).await?;
    let mut neighbor = bed.request("GET /", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await?;
    read_until(&mut neighbor, "ok").await?;
    drop(hostile);
    read.await?;
    let grown = grown(&bed, before)?;
    println!(
        "{} bytes of empty gzip members: {} KiB at the peak",
        members.len(),
        grown / 1024
    );
    ensure!(grown < LIMIT, "{grown} bytes");
    Ok(())
}
