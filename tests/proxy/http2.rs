//! HTTP/2 clients.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::OK_RESPONSE;
use crate::support::client::Client;
use crate::support::frames::{
    DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, FrameClient, GOAWAY, HEADERS, RST_STREAM,
    decode_status, frame, literal,
};
use crate::support::test_bed::{PREFIX, TestBed, read_all};

#[tokio::test]
async fn serves_http2_clients_from_http1_endpoints() -> Result<()> {
    let bed = TestBed::new().await?;
    let stream = bed.http2_client().await?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    let request = Request::get(format!("https://bastion.test{PREFIX}/x?y"))
        .header("authorization", "Bearer t")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(http_body_util::Empty::<Bytes>::new())?;
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
    let bed = TestBed::serving("idleTimeout: 2s", &[]).await?;
    let mut silent = bed.http2_client().await?;
    read_all(&mut silent).await;
    let io = hyper_util::rt::TokioIo::new(bed.http2_client().await?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await?;
    let ended = tokio::spawn(connection);
    let request = Request::get(format!("https://bastion.test{PREFIX}/slow"))
        .header("authorization", "Bearer t")
        .body(http_body_util::Empty::<Bytes>::new())?;
    let response = tokio::spawn(async move { (sender.send_request(request).await, sender) });
    let (mut backend, _) = bed.accept().await?;
    // Longer than the idle timeout: a connection with a request is not idle.
    tokio::time::sleep(Duration::from_secs(4)).await;
    backend.write_all(OK_RESPONSE).await?;
    let (response, _sender) = response.await?;
    ensure!(response?.into_body().collect().await?.to_bytes() == "ok");
    // Idle again, the connection is closed.
    ended.await??;
    Ok(())
}

/// Opens a connection whose client advertises `window` bytes for each stream.
async fn connect(
    bed: &TestBed,
    window: u32,
) -> Result<(SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>)> {
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .handshake(bed.http2_client().await?)
        .await?;
    Ok((sender.ready().await?, tokio::spawn(connection)))
}

fn request(method: &str, path: &str, token: &str) -> Result<Request<()>> {
    let request = Request::builder()
        .method(method)
        .uri(format!("https://bastion.test{PREFIX}{path}"));
    Ok(request
        .header("authorization", format!("Bearer {token}"))
        .body(())?)
}

/// CONFORMANCE C72.
#[tokio::test]
async fn passes_interim_responses_to_http2_clients() -> Result<()> {
    let bed = TestBed::new().await?;
    let (mut sender, _connection) = connect(&bed, 1 << 16).await?;
    let (mut response, _) = sender.send_request(request("GET", "/", "t")?, true)?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nKeep-Alive: 1\r\n\r\n")
        .await?;
    let hints = std::future::poll_fn(|context| response.poll_informational(context)).await;
    let hints = hints.context("no interim response")??;
    ensure!(
        hints.status() == StatusCode::EARLY_HINTS
            && hints.headers()["link"] == format!("<{PREFIX}/a.css>")
            && hints.headers().len() == 1,
        "{hints:?}"
    );
    backend.write_all(OK_RESPONSE).await?;
    ensure!(response.await?.status() == StatusCode::OK);
    Ok(())
}

/// An own response that the client does not read must not keep an unauthenticated connection open.
#[tokio::test]
async fn closes_http2_connection_that_reads_no_response() -> Result<()> {
    let bed = TestBed::serving("idleTimeout: 2s", &[]).await?;
    let (mut sender, connection) = connect(&bed, 0).await?;
    let (response, _) = sender.send_request(request("GET", "/", "unknown")?, true)?;
    let response = response.await?;
    ensure!(
        response.status() == StatusCode::UNAUTHORIZED,
        "{response:?}"
    );
    // The body waits for a window that never opens. The stream is reset, then the connection ends.
    let (_, mut body) = response.into_parts();
    ensure!(body.data().await.is_none_or(|part| part.is_err()));
    drop((sender, body));
    let _ = connection.await?;
    Ok(())
}

/// The connection window has room for the stream windows of all streams.
#[tokio::test]
async fn stalled_uploads_do_not_block_other_streams() -> Result<()> {
    let bed = TestBed::new().await?;
    let (sender, _connection) = connect(&bed, 1 << 16).await?;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut sender = sender.clone().ready().await?;
        let (response, mut body) = sender.send_request(request("POST", "/stalled", "t")?, false)?;
        let (backend, _) = bed.accept().await?;
        // Fills the windows: the backend reads nothing more. The sockets take the first part.
        body.send_data(Bytes::from(vec![b'x'; 16 << 20]), false)?;
        stalled.push((response, body, backend));
    }
    let mut sender = sender.ready().await?;
    let (response, mut body) = sender.send_request(request("POST", "/quick", "t")?, false)?;
    let (mut backend, _) = bed.accept().await?;
    body.send_data(Bytes::from_static(b"hello"), true)?;
    let mut received = String::new();
    while !received.contains("hello") {
        let mut part = [0; 1024];
        let length = backend.read(&mut part).await?;
        ensure!(length > 0, "{received}");
        received.push_str(&String::from_utf8_lossy(&part[..length]));
    }
    backend.write_all(OK_RESPONSE).await?;
    ensure!(response.await?.status() == StatusCode::OK);
    Ok(())
}

/// CONNECT and extended CONNECT (RFC 8441) that reach no endpoint and end their streams only.
#[tokio::test]
async fn rejects_connect_that_opens_no_tunnel() -> Result<()> {
    /// Outcome of a stream that is reset.
    const RESET: u16 = 0;
    let bed = TestBed::new().await?;
    let target = format!("{PREFIX}/x");
    let method = (":method", "CONNECT");
    let (scheme, path) = ((":scheme", "https"), (":path", &*target));
    let (authority, userinfo) = ((":authority", "h:443"), (":authority", "u:p@h:443"));
    let websocket = (":protocol", "websocket");
    let (length, invalid_length) = (("content-length", "5"), ("content-length", "x"));
    // The outcomes of requests with DATA, and of those that end with HEADERS.
    for (fields, outcomes) in [
        (&[method, authority][..], [407, 407]),
        (&[method, authority, length], [400, RESET]),
        (&[method, authority, ("content-length", "0")], [RESET, 400]),
        (&[method, authority, invalid_length], [RESET, RESET]),
        (&[method, authority, scheme, path], [RESET, RESET]),
        (&[method, authority, path], [RESET, RESET]),
        (&[method, authority, scheme], [RESET, RESET]),
        (&[method, userinfo], [400, 400]),
        (&[method], [400, 400]),
        (&[method, scheme, path, websocket, userinfo], [400, 400]),
        (&[method, scheme, path, websocket], [400, 400]),
        (&[method, scheme, websocket, authority], [RESET, RESET]),
        (&[method, path, websocket, authority], [RESET, RESET]),
        (&[method, websocket, authority], [RESET, RESET]),
        (
            &[method, scheme, path, websocket, authority, length],
            [400, RESET],
        ),
        (
            &[
                method,
                scheme,
                path,
                websocket,
                authority,
                ("content-length", "0"),
            ],
            [RESET, 400],
        ),
        (
            &[method, scheme, path, websocket, authority, invalid_length],
            [RESET, RESET],
        ),
        (
            &[(":method", "GET"), scheme, path, websocket, authority],
            [RESET, RESET],
        ),
        (&[(":method", "GET"), scheme, path, userinfo], [400, 400]),
    ] {
        let token = ("authorization", "Bearer t");
        let request = block(fields.iter().chain([&token]));
        for (flags, expected) in [0, END_STREAM].into_iter().zip(outcomes) {
            let mut client = FrameClient::new(bed.http2_client().await?, &[]).await?;
            let mut sent = Vec::new();
            frame(&mut sent, HEADERS, END_HEADERS | flags, 1, &request);
            if flags == 0 {
                frame(&mut sent, DATA, END_STREAM, 1, b"12345");
            }
            client.send(&sent).await?;
            let outcome = client.until(|frame| frame.stream == 1).await?;
            let status = match outcome.kind {
                HEADERS => decode_status(&outcome.payload)?,
                RST_STREAM => RESET,
                _ => bail!("{fields:?}: {outcome:?}"),
            };
            ensure!(status == expected, "{fields:?}, flags {flags}: {status}");
            // A further stream, without a token, is served.
            let mut sent = Vec::new();
            let request = block(&[(":method", "GET"), scheme, path, authority]);
            frame(&mut sent, HEADERS, END_HEADERS | END_STREAM, 3, &request);
            client.send(&sent).await?;
            client
                .until(|frame| frame.stream == 3 && frame.kind == HEADERS)
                .await
                .with_context(|| format!("{fields:?}, flags {flags}"))?;
        }
    }
    // The first connection that the endpoint gets is that of the last request.
    let _client = bed.request("GET /last", "\r\n").await?;
    let (_, head) = bed.accept().await?;
    ensure!(head.starts_with("GET /last "), "{head}");
    Ok(())
}

/// Header block of literal fields.
fn block<'a>(fields: impl IntoIterator<Item = &'a (&'a str, &'a str)>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        literal(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

/// A head that begins and never ends (`serving.headTimeout`).
#[tokio::test]
async fn closes_http2_connection_with_an_unfinished_head() -> Result<()> {
    let bed = TestBed::serving("headTimeout: 200ms", &[]).await?;
    for open_streams in [false, true] {
        let mut client = FrameClient::new(bed.http2_client().await?, &[]).await?;
        let path = (":path", &*format!("{PREFIX}/silent"));
        let mut request = block(&[(":method", "GET"), (":scheme", "https"), path]);
        request.extend(block(&[(":authority", "h"), ("authorization", "Bearer t")]));
        let mut sent = Vec::new();
        let mut endpoint = None;
        if open_streams {
            frame(&mut sent, HEADERS, END_HEADERS | END_STREAM, 1, &request);
            client.send(&sent).await?;
            endpoint = Some(bed.accept().await?);
            sent.clear();
        }
        frame(&mut sent, HEADERS, END_STREAM, 3, &request);
        client.send(&sent).await?;
        let goaway = client.until(|frame| frame.kind == GOAWAY).await?;
        ensure!(goaway.payload[4..8] == ENHANCE_YOUR_CALM.to_be_bytes());
        // The open request ends, too.
        if let Some((mut endpoint, _)) = endpoint {
            ensure!(endpoint.read(&mut [0]).await.unwrap_or(0) == 0);
        }
    }
    Ok(())
}

/// Serves the next request with the bytes of a response.
async fn serve_bytes(bed: &TestBed, response: &str) -> Result<()> {
    let (mut backend, _) = bed.accept().await?;
    backend.write_all(response.as_bytes()).await?;
    backend.shutdown().await?;
    Ok(())
}

/// CONFORMANCE C98: what is tolerated of HTTP/1.1 endpoints has a valid form in HTTP/2.
#[tokio::test]
async fn http2_clients_receive_repaired_responses() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client =
        Client::connect_http2(bed.bastion.secure, &bed.ca.file, Some("t"), None).await?;
    let length = "Content-Length: 2\r\n";
    for (lines, name, value) in [
        (
            format!("X-Frame-Options : DENY\r\n{length}"),
            "x-frame-options",
            Some("DENY"),
        ),
        (
            format!("X-Frame-Options\t \t:DENY\r\n{length}"),
            "x-frame-options",
            Some("DENY"),
        ),
        (format!("X-A: 1\r\n\t2\r\n{length}"), "x-a", Some("1 2")),
        (format!("X-A: 1\n{length}"), "x-a", Some("1")),
        (format!("X Feature Flag: on\r\n{length}"), "x", None),
        (format!("X(1): on\r\n{length}X-A: 1\r\n"), "x-a", Some("1")),
        (format!(": on\r\n{length}X-A: 1\r\n"), "x-a", Some("1")),
        (format!("no colon\r\n{length}X-A: 1\r\n"), "x-a", Some("1")),
        (
            format!("Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n{length}"),
            "x-hop",
            None,
        ),
        (length.repeat(2), "content-length", Some("2")),
        (length.repeat(3), "content-length", Some("2")),
        (
            "Content-Length: 2, 2\r\n".into(),
            "content-length",
            Some("2"),
        ),
        (
            format!("{length}Content-Length: 2,2 , 2\r\n"),
            "content-length",
            Some("2"),
        ),
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{lines}\r\nok");
        let path = format!("{PREFIX}/x");
        let (response, ()) = tokio::try_join!(client.get(&path), serve_bytes(&bed, &response))
            .with_context(|| lines.clone())?;
        ensure!(response.status == 200 && response.body == "ok", "{lines}");
        let values: Vec<_> = response.headers.get_all(name).iter().collect();
        ensure!(
            values == Vec::from_iter(value),
            "{lines}: {:?}",
            response.headers
        );
        ensure!(response.headers.get_all("content-length").iter().count() == 1);
    }
    for lines in [
        "Content-Length: 2, 3\r\n",
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2\r\nContent-Length: 2, 3\r\n",
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{lines}\r\nok");
        let path = format!("{PREFIX}/x");
        let (response, ()) = tokio::try_join!(client.get(&path), serve_bytes(&bed, &response))?;
        ensure!(
            response.status == 503 && response.body.contains("Content-Length"),
            "{lines}: {response:?}"
        );
    }
    Ok(())
}

/// As [`http2_clients_receive_repaired_responses`], for an HTTP/2 endpoint.
#[tokio::test]
async fn repeated_length_of_http2_endpoint_is_sent_once() -> Result<()> {
    let bed = TestBed::new().await?;
    let path = "/api/v1/namespaces/default/services/h2c/proxy/x";
    for http2 in [true, false] {
        let (address, ca) = (bed.bastion.secure, &bed.ca.file);
        let mut client = if http2 {
            Client::connect_http2(address, ca, Some("t"), None).await?
        } else {
            Client::connect(address, ca, Some("t"), None).await?
        };
        let serve = async {
            let mut backend = h2::server::handshake(bed.backend.accept().await?.0).await?;
            let (_, mut respond) = backend.accept().await.context("a request")??;
            let mut response = http::Response::new(());
            for _ in 0..2 {
                response
                    .headers_mut()
                    .append("content-length", "2".parse()?);
            }
            let mut body = respond.send_response(response, false)?;
            body.send_data(Bytes::from_static(b"ok"), true)?;
            backend.graceful_shutdown();
            while backend.accept().await.is_some() {}
            anyhow::Ok(())
        };
        let (response, ()) = tokio::try_join!(client.get(path), serve)?;
        ensure!(response.body == "ok", "{response:?}");
        let lengths = response.headers.get_all("content-length");
        ensure!(lengths.iter().eq(["2"].iter()), "{response:?}");
    }
    Ok(())
}
