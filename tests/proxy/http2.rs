//! HTTP/2 clients.

use std::time::Duration;

use anyhow::{Result, ensure};
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use crate::OK_RESPONSE;
use crate::support::test_bed::{PREFIX, TestBed, read_all};

#[tokio::test]
async fn serves_http2_clients_from_http1_endpoints() -> Result<()> {
    let bed = TestBed::new().await?;
    let stream = bed.http2_client().await?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    let request = http::Request::get(format!("https://bastion.test{PREFIX}/x?y"))
        .header("authorization", "Bearer t")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let response = tokio::spawn(async move { sender.send_request(request).await });
    let (mut backend, head) = bed.accept().await?;
    ensure!(
        head.starts_with("GET /x?y HTTP/1.1\r\n") && head.contains("Host: bastion.test"),
        "{head}"
    );
    ensure!(head.contains("Cookie: a=1; b=2"), "{head}");
    backend
        .write_all(b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n")
        .await?;
    let response = response.await??;
    ensure!(
        response.status() == 200 && response.headers().get("connection").is_none(),
        "{response:?}"
    );
    let body = response.into_body().collect().await?;
    ensure!(
        body.trailers()
            .is_some_and(|trailers| trailers["x-sum"] == "7"),
        "{body:?}"
    );
    ensure!(body.to_bytes() == "ok");
    Ok(())
}

#[tokio::test]
async fn closes_idle_http2_connections() -> Result<()> {
    let bed = TestBed::serving("idleTimeout: 200ms", &[]).await?;
    let mut silent = bed.http2_client().await?;
    read_all(&mut silent).await;
    let io = hyper_util::rt::TokioIo::new(bed.http2_client().await?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await?;
    let ended = tokio::spawn(connection);
    let request = http::Request::get(format!("https://bastion.test{PREFIX}/slow"))
        .header("authorization", "Bearer t")
        .body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let response = tokio::spawn(async move { (sender.send_request(request).await, sender) });
    let (mut backend, _) = bed.accept().await?;
    // Longer than the idle timeout: a connection with a request is not idle.
    tokio::time::sleep(Duration::from_secs(1)).await;
    backend.write_all(OK_RESPONSE).await?;
    let (response, _sender) = response.await?;
    ensure!(response?.into_body().collect().await?.to_bytes() == "ok");
    // Idle again, the connection is closed.
    ended.await??;
    Ok(())
}
