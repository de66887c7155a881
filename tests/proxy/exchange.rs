//! Heads, bodies and streams between client and endpoint.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::OK_RESPONSE;
use crate::support::test_bed::{TestBed, read_all, read_until};

#[tokio::test]
async fn forwards_head_and_body_unmodified() -> Result<()> {
    let bed = TestBed::new().await?;
    let rest = "X-Odd: a\r\nX-Odd: b\r\nCookie: c=d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let mut client = bed.request("POST /a%2Fb//c;d?e=%20f&&g", rest).await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(
        head.starts_with("POST /a%2Fb//c;d?e=%20f&&g HTTP/1.1\r\n"),
        "{head}"
    );
    for line in [
        "Host: h",
        "X-Odd: a",
        "X-Odd: b",
        "Cookie: c=d",
        "Transfer-Encoding: chunked",
        "X-Forwarded-Proto: https",
    ] {
        ensure!(
            head.contains(&format!("\r\n{line}\r\n")),
            "{line} in {head}"
        );
    }
    ensure!(
        !head.contains("Authorization") && !head.contains("Bearer"),
        "{head}"
    );
    ensure!(
        !head.to_lowercase().contains("user-agent"),
        "a User-Agent was added: {head}"
    );
    ensure!(read_until(&mut backend, "0\r\n\r\n").await? == "3\r\nabc\r\n0\r\n\r\n");
    backend
        .write_all(b"HTTP/1.1 418 I'm odd\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\nKeep-Alive: x\r\nAccess-Control-Allow-Origin: *\r\n\r\nhi")
        .await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(head.starts_with("HTTP/1.1 418 "), "{head}");
    ensure!(
        head.contains("Set-Cookie: a=b")
            && head.contains("Audit-Id: ")
            && head.contains("Content-Length: 2"),
        "{head}"
    );
    ensure!(
        !head.contains("Keep-Alive") && !head.contains("Access-Control"),
        "{head}"
    );
    ensure!(read_until(&mut client, "hi").await? == "hi");
    Ok(())
}

#[tokio::test]
async fn forwards_large_headers() -> Result<()> {
    let bed = TestBed::new().await?;
    let many: String = (0..80)
        .map(|n| format!("X-{n}: {}\r\n", "v".repeat(12_000)))
        .collect();
    let mut client = bed.request("GET /", &format!("{many}\r\n")).await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(head.contains("\r\nX-79: v"), "{} bytes arrived", head.len());
    backend
        .write_all(format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n").as_bytes())
        .await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(head.starts_with("HTTP/1.1 200 ") && head.contains("X-79: v"));
    Ok(())
}

#[tokio::test]
async fn forwards_trailers_and_interim_responses() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed.request("GET /", "TE: trailers\r\n\r\n").await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(head.contains("TE: trailers"), "{head}");
    backend
        .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
        .await?;
    let hints = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(
        hints.starts_with("HTTP/1.1 103 ") && hints.contains("/proxy/a.css>; rel=preload\r\n"),
        "{hints}"
    );
    // An interim response in the same segment as the final response is forwarded before it.
    backend
        .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n")
        .await?;
    let hints = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(
        hints.starts_with("HTTP/1.1 103 ") && hints.contains("/proxy/b.css>\r\n"),
        "{hints}"
    );
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Trailer: X-Sum"),
        "{head}"
    );
    let body = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(body.to_lowercase().contains("x-sum: 7"), "{body}");
    Ok(())
}

#[tokio::test]
async fn streams_response_as_it_arrives() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed.request("GET /events", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    read_until(&mut client, "\r\n\r\n").await?;
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        backend
            .write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
            .await?;
        read_until(&mut client, event).await?;
    }
    // The end of the client closes the connection to the endpoint.
    drop(client);
    ensure!(backend.read(&mut [0]).await.unwrap_or(0) == 0);
    Ok(())
}

#[tokio::test]
async fn applies_backpressure_to_endpoint() -> Result<()> {
    let bed = TestBed::new().await?;
    let client = bed.request("GET /big", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let chunk = [b"10000\r\n", &vec![b'x'; 0x10000][..], b"\r\n"].concat();
    let mut sent = 0;
    // The client reads nothing, so only the buffers of the bastion and the kernel can fill up.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_secs(1), backend.write_all(&chunk)).await
    {
        written?;
        sent += chunk.len();
        ensure!(
            sent < 64 << 20,
            "64 MiB were read for a client that reads nothing"
        );
    }
    drop(client);
    Ok(())
}

#[tokio::test]
async fn bounds_memory_of_unread_interim_responses() -> Result<()> {
    let bed = TestBed::new().await?;
    let _client = bed.request("GET /", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    let hint = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n",
        "x".repeat(8000)
    )
    .repeat(100);
    let before = bed.bastion.resident()?;
    for _ in 0..64 {
        backend.write_all(hint.as_bytes()).await?;
    }
    let grown = bed.bastion.resident()?.saturating_sub(before);
    ensure!(
        grown < 16 << 20,
        "{grown} of 51 MB of interim responses are in memory"
    );
    Ok(())
}

#[tokio::test]
async fn serves_other_requests_while_a_page_decompresses() -> Result<()> {
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let page = "<a href=/x></a>".repeat(1 << 20);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, page.as_bytes())?;
    let page = encoder.finish()?;
    let mut page_client = bed.request("GET /page", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    let mut other_client = bed.request("GET /", "\r\n").await?;
    let (mut other, _) = bed.accept().await?;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        page.len()
    );
    backend.write_all(head.as_bytes()).await?;
    backend.write_all(&page).await?;
    let reading = tokio::spawn(async move {
        let mut first = [0; 1];
        let _ = page_client.read_exact(&mut first).await;
        // Reads as fast as it can, so that the page waits for its turn and not for the client.
        tokio::io::copy(&mut page_client, &mut tokio::io::sink()).await
    });
    other.write_all(OK_RESPONSE).await?;
    read_until(&mut other_client, "ok").await?;
    ensure!(
        !reading.is_finished(),
        "the other request waited for the whole page"
    );
    reading.abort();
    Ok(())
}

#[tokio::test]
async fn prevents_smuggling_by_length_and_transfer_encoding() -> Result<()> {
    // Request smuggling: client and endpoint must not disagree on the length of the body.
    let bed = TestBed::new().await?;
    let rest = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut client = bed.request("POST /", rest).await?;
    let accepted = tokio::time::timeout(Duration::from_millis(500), bed.accept()).await;
    if let Ok(accepted) = accepted {
        let (mut backend, head) = accepted?;
        ensure!(
            !head.contains("Content-Length"),
            "both lengths are forwarded: {head}"
        );
        backend
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await?;
        ensure!(!read_all(&mut backend).await.contains("smuggled"));
    }
    let response = read_all(&mut client).await;
    ensure!(response.matches("HTTP/1.1 ").count() <= 1, "{response}");
    Ok(())
}
