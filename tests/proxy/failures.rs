//! Failures of endpoints and clients in the middle of an exchange.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;

use crate::OK_RESPONSE;
use crate::support::test_bed::{PREFIX, TestBed, read_all, read_until};

#[tokio::test]
async fn reuses_idle_connection_and_replaces_stale_one() -> Result<()> {
    let bed = TestBed::new().await?;
    // The bastion has a pool per worker: one client connection stays on one worker.
    let mut client = bed.request("GET /1", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    backend.write_all(OK_RESPONSE).await?;
    read_until(&mut client, "ok").await?;
    let request =
        |n: u8| format!("GET {PREFIX}/{n} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n");
    client.write_all(request(2).as_bytes()).await?;
    ensure!(
        read_until(&mut backend, "\r\n\r\n")
            .await?
            .starts_with("GET /2 "),
        "the request did not reuse the connection"
    );
    backend.write_all(OK_RESPONSE).await?;
    read_until(&mut client, "ok").await?;
    // The connection is lost with the third request on it, which is retried on a new connection.
    client.write_all(request(3).as_bytes()).await?;
    read_until(&mut backend, "\r\n\r\n").await?;
    drop(backend);
    let (mut backend, head) = bed.accept().await?;
    ensure!(head.starts_with("GET /3 "), "{head}");
    backend.write_all(OK_RESPONSE).await?;
    ensure!(
        read_until(&mut client, "ok")
            .await?
            .starts_with("HTTP/1.1 200 ")
    );
    Ok(())
}

#[tokio::test]
async fn does_not_retry_post_after_connection_loss() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed
        .request("POST /", "Content-Length: 1\r\nConnection: close\r\n\r\nx")
        .await?;
    let (backend, _) = bed.accept().await?;
    drop(backend);
    let response = read_all(&mut client).await;
    ensure!(
        response.starts_with("HTTP/1.1 503 ")
            && response.contains("error trying to reach service: "),
        "{response}"
    );
    let again = tokio::time::timeout(Duration::from_millis(300), bed.accept()).await;
    ensure!(again.is_err(), "the request was sent a second time");
    Ok(())
}

#[tokio::test]
async fn retries_refused_upload_with_complete_body() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed.client().await?;
    let path = "/api/v1/namespaces/default/services/h2c/proxy/up";
    let pieces: Vec<String> = (0..60).map(|n| format!("{n:04}").repeat(256)).collect();
    let body = pieces.concat();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: {length}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(pieces[..50].concat().as_bytes()).await?;

    // The first endpoint refuses the stream after most of the body (RFC 9113 section 8.7).
    let mut first = h2::server::handshake(bed.backend.accept().await?.0).await?;
    let (mut request, mut respond) = first.accept().await.context("a request")??;
    let mut seen = 0;
    while seen < 50 * 1024 {
        let piece = tokio::select! {
            piece = request.body_mut().data() => piece.context("more of the body")??,
            _ = first.accept() => anyhow::bail!("one request is enough"),
        };
        request
            .body_mut()
            .flow_control()
            .release_capacity(piece.len())?;
        seen += piece.len();
    }
    respond.send_reset(h2::Reason::REFUSED_STREAM);
    let closed = tokio::spawn(async move { while first.accept().await.is_some() {} });

    // The second endpoint responds immediately and reads slowly: the response must not end the
    // replay of the body.
    let stream = bed.backend.accept().await?.0;
    let mut second = h2::server::Builder::new()
        .initial_window_size(1000)
        .handshake::<_, bytes::Bytes>(stream)
        .await?;
    let (mut request, mut respond) = second.accept().await.context("the request is retried")??;
    let mut response = respond.send_response(http::Response::new(()), false)?;
    let driven = tokio::spawn(async move { while second.accept().await.is_some() {} });
    client.write_all(pieces[50..].concat().as_bytes()).await?;
    let mut got = Vec::new();
    while let Some(piece) = request.body_mut().data().await {
        let piece = piece?;
        request
            .body_mut()
            .flow_control()
            .release_capacity(piece.len())?;
        got.extend_from_slice(&piece);
    }
    ensure!(
        got == body.as_bytes(),
        "{} bytes of {length} arrived",
        got.len()
    );
    response.send_data("ok".into(), true)?;
    let response = read_until(&mut client, "ok").await?;
    ensure!(response.starts_with("HTTP/1.1 200 "), "{response}");
    closed.abort();
    driven.abort();
    Ok(())
}

/// Proxies in front of an endpoint reset a stream in this way when theirs has failed.
#[tokio::test]
async fn cuts_response_whose_stream_is_reset_without_an_error() -> Result<()> {
    let bed = TestBed::new().await?;
    let path = "/api/v1/namespaces/default/services/h2c/proxy/log";
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n");
    for is_complete in [false, true] {
        let mut client = bed.client().await?;
        client.write_all(request.as_bytes()).await?;
        let mut backend = h2::server::handshake(bed.backend.accept().await?.0).await?;
        let (_, mut respond) = backend.accept().await.context("a request")??;
        let driven = tokio::spawn(async move { while backend.accept().await.is_some() {} });
        let mut body = respond.send_response(http::Response::new(()), false)?;
        body.send_data("part".into(), is_complete)?;
        let mut response = read_until(&mut client, "part").await?;
        if is_complete {
            response += &read_until(&mut client, "\r\n0\r\n\r\n").await?;
        } else {
            body.send_reset(h2::Reason::NO_ERROR);
            response += &read_all(&mut client).await;
        }
        ensure!(
            response.ends_with("\r\n0\r\n\r\n") == is_complete,
            "{response:?}"
        );
        driven.abort();
    }
    Ok(())
}

#[tokio::test]
async fn aborts_connection_on_truncated_response() -> Result<()> {
    let bed = TestBed::new().await?;
    for (head, part) in [
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
        ("Content-Length: 10", "hello"),
    ] {
        let mut client = bed.request("GET /", "\r\n").await?;
        let (mut backend, _) = bed.accept().await?;
        backend
            .write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{part}").as_bytes())
            .await?;
        read_until(&mut client, "hello").await?;
        drop(backend);
        let rest = read_all(&mut client).await;
        ensure!(!rest.contains("0\r\n\r\n"), "a clean end: {rest:?}");
    }
    Ok(())
}

#[tokio::test]
async fn resets_http2_stream_on_truncated_response() -> Result<()> {
    // CONFORMANCE C99: with a clean end the client would read a truncated body as complete.
    let bed = TestBed::new().await?;
    for (head, part) in [
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
        ("Content-Length: 10", "hello"),
    ] {
        let stream = bed.http2_client().await?;
        let (mut sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        let uri = format!("https://bastion.test{PREFIX}/");
        let request = http::Request::get(uri)
            .header("authorization", "Bearer t")
            .body(())?;
        let (response, _) = sender.send_request(request, true)?;
        let (mut backend, _) = bed.accept().await?;
        backend
            .write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{part}").as_bytes())
            .await?;
        let mut body = response.await?.into_body();
        let first = body.data().await.context("a first part")??;
        ensure!(first == "hello", "{first:?}");
        drop(backend);
        let end = body.data().await.context("the stream ends cleanly")?;
        let error = end.err().context("more of the body")?;
        ensure!(error.is_reset() && error.is_remote(), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn returns_400_for_upload_that_client_aborts() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed
        .request("POST /up", "Content-Length: 9\r\n\r\nhalf")
        .await?;
    let _backend = bed.accept().await?;
    client.shutdown().await?;
    let response = read_all(&mut client).await;
    ensure!(
        response.starts_with("HTTP/1.1 400 ")
            && response.contains("the client aborted the request body"),
        "{response}"
    );
    Ok(())
}

#[tokio::test]
async fn refuses_to_proxy_to_itself() -> Result<()> {
    // CONFORMANCE C110: the request would loop until no connection is left.
    let bed = TestBed::new().await?;
    for address in [bed.bastion.secure, bed.bastion.admin] {
        let mut client = bed.client().await?;
        let path = format!(
            "/api/v1/namespaces/default/pods/https:p:{}/proxy/",
            address.port()
        );
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nConnection: close\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await?;
        let response = read_all(&mut client).await;
        let message = "refusing to proxy to the bastion itself";
        ensure!(
            response.starts_with("HTTP/1.1 503 ") && response.contains(message),
            "{address}: {response}"
        );
    }
    Ok(())
}
