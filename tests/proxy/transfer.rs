//! Bodies whose two ends have different speeds, and what follows a body that breaks off.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::test_bed::{TestBed, read_all, read_until};

/// More than the socket buffers of both connections take.
const LENGTH: usize = 24 << 20;

/// Bytes that differ from position to position, so that a lost or repeated part is found.
fn pattern() -> Vec<u8> {
    let words = 0..u32::try_from(LENGTH / 4).expect("fits");
    words.flat_map(u32::to_le_bytes).collect()
}

#[tokio::test]
async fn slow_reader_receives_every_byte() -> Result<()> {
    let bed = TestBed::new().await?;
    for chunked in [false, true] {
        let mut client = bed.request("GET /big", "Connection: close\r\n\r\n").await?;
        let (mut backend, _) = bed.accept().await?;
        let sent = tokio::spawn(async move {
            let body = pattern();
            if chunked {
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                backend.write_all(head).await?;
                for part in body.chunks(100_000) {
                    let size = format!("{:x}\r\n", part.len());
                    backend.write_all(size.as_bytes()).await?;
                    backend.write_all(part).await?;
                    backend.write_all(b"\r\n").await?;
                }
                backend.write_all(b"0\r\n\r\n").await
            } else {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
                backend.write_all(head.as_bytes()).await?;
                backend.write_all(&body).await
            }
        });
        let head = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        // The bastion finds the client's socket full.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut received = Vec::new();
        client.read_to_end(&mut received).await?;
        sent.await??;
        let body = if chunked {
            joined(&received)?
        } else {
            received
        };
        ensure!(body.len() == LENGTH, "{} of {LENGTH} bytes", body.len());
        ensure!(body == pattern(), "the bytes differ");
    }
    Ok(())
}

/// Joins the chunks of a body.
fn joined(mut chunked: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = chunked.split(|byte| *byte == b'\r').next().unwrap_or(b"");
        let size = usize::from_str_radix(str::from_utf8(line)?, 16)?;
        if size == 0 {
            return Ok(body);
        }
        let start = line.len() + 2;
        ensure!(chunked.len() > start + size + 2, "the last chunk is cut");
        body.extend_from_slice(&chunked[start..start + size]);
        chunked = &chunked[start + size + 2..];
    }
}

#[tokio::test]
async fn slow_endpoint_receives_every_byte() -> Result<()> {
    let bed = TestBed::new().await?;
    let rest = format!("Content-Length: {LENGTH}\r\n\r\n");
    let mut client = bed.request("POST /big", &rest).await?;
    let (mut backend, _) = bed.accept().await?;
    let sent = tokio::spawn(async move {
        client.write_all(&pattern()).await?;
        Ok::<_, std::io::Error>(client)
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut received = vec![0; LENGTH];
    backend.read_exact(&mut received).await?;
    ensure!(received == pattern(), "the bytes differ");
    let mut client = sent.await??;
    backend.write_all(crate::OK_RESPONSE).await?;
    ensure!(read_until(&mut client, "ok").await?.contains(" 200 "));
    Ok(())
}

#[tokio::test]
async fn nothing_behind_malformed_trailers_is_a_request() -> Result<()> {
    let bed = TestBed::new().await?;
    let rest = "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nno trailer line\r\n\r\n\r\nGET \
                /api/v1/namespaces/default/pods/p/proxy/smuggled HTTP/1.1\r\nHost: \
                h\r\nAuthorization: Bearer t\r\n\r\n";
    let mut client = bed.request("POST /first", rest).await?;
    let response = read_all(&mut client).await;
    ensure!(
        response.matches("HTTP/1.1 ").count() == 1
            && response.starts_with("HTTP/1.1 400 ")
            && response.contains("Connection: close"),
        "{response}"
    );
    // The connection was dialed before the body was read.
    let (mut backend, _) = bed.backend.accept().await?;
    let mut received = String::new();
    backend.read_to_string(&mut received).await?;
    ensure!(!received.contains("smuggled"), "{received}");
    Ok(())
}

/// CONFORMANCE C101, also behind further bytes, whatever fits the buffers.
#[tokio::test]
async fn client_that_leaves_cancels_its_request() -> Result<()> {
    let bed = TestBed::new().await?;
    let filler = vec![b'x'; 200_000];
    for behind in [&b""[..], b"G", &filler] {
        let mut client = bed.request("GET /silent", "\r\n").await?;
        let (mut backend, _) = bed.accept().await?;
        // Fails where the bastion does not read all of it.
        let sent = client.write_all(behind);
        let _ = tokio::time::timeout(Duration::from_millis(300), sent).await;
        drop(client);
        let length = backend.read(&mut [0]).await?;
        ensure!(length == 0, "behind {} bytes", behind.len());
    }
    Ok(())
}
