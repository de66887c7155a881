//! Endpoints that select HTTP/2 and require HTTP/1.1 (CONFORMANCE C53).

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::OK_RESPONSE;
use crate::support::client::Client;
use crate::support::frames::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame, read_frame,
};
use crate::support::test_bed::{TestBed, read_until};
use crate::support::tls_endpoint::{TlsEndpoint, pod_path, read_preface, read_request, settings};

const HTTP_1_1_REQUIRED: [u8; 4] = 13_u32.to_be_bytes();
const WINDOW: [u8; 4] = (1_u32 << 20).to_be_bytes();
const H2C: &str = "/api/v1/namespaces/default/services/h2c/proxy";
/// Response after which the connection closes, so that the next request needs another one.
const LAST_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Response to the first request of an HTTP/2 connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Reset,
    /// GOAWAY whose last stream is the given one.
    GoAway(u8),
    /// GOAWAY, and the end of the connection.
    GoAwayAndClose(u8),
    /// GOAWAY before the request is read.
    EarlyGoAway,
    /// A response of HTTP/1.1, to the preface.
    Http1(&'static str),
}

fn goaway(last_stream: u8) -> Vec<u8> {
    let mut sent = Vec::new();
    let payload = [&[0, 0, 0, last_stream], &HTTP_1_1_REQUIRED[..]].concat();
    frame(&mut sent, GOAWAY, 0, 0, &payload);
    sent
}

fn reset(stream: u32) -> Vec<u8> {
    let mut sent = Vec::new();
    frame(&mut sent, RST_STREAM, 0, stream, &HTTP_1_1_REQUIRED);
    sent
}

async fn answer(endpoint: &TlsEndpoint, answer: Answer) -> Result<impl Sized + use<>> {
    let mut stream = endpoint.accept_http2().await?;
    if let Answer::Http1(response) = answer {
        stream.write_all(response.as_bytes()).await?;
        stream.flush().await?;
        return Ok(stream);
    }
    stream.write_all(&settings()).await?;
    if answer == Answer::EarlyGoAway {
        stream.write_all(&goaway(0)).await?;
        stream.flush().await?;
        return Ok(stream);
    }
    let request = read_request(&mut stream).await?;
    let sent = match answer {
        Answer::Reset => reset(request),
        Answer::GoAway(last) | Answer::GoAwayAndClose(last) => goaway(last),
        Answer::EarlyGoAway | Answer::Http1(_) => unreachable!("returned above"),
    };
    stream.write_all(&sent).await?;
    stream.flush().await?;
    if matches!(answer, Answer::GoAwayAndClose(_)) {
        stream.shutdown().await?;
    }
    Ok(stream)
}

/// Serves one request over HTTP/1.1. Returns its head.
async fn serve_http1(endpoint: &TlsEndpoint) -> Result<String> {
    let mut stream = endpoint.accept_http1().await?;
    let head = read_until(&mut stream, "\r\n\r\n").await?;
    stream.write_all(LAST_RESPONSE).await?;
    stream.flush().await?;
    Ok(head)
}

fn pod(endpoint: &TlsEndpoint) -> Result<String> {
    Ok(pod_path(endpoint.address()?.port()))
}

async fn endpoint(bed: &TestBed) -> Result<TlsEndpoint> {
    TlsEndpoint::start(&bed.ca, bed.folder.path(), &["127.0.0.1"]).await
}

async fn client(bed: &TestBed) -> Result<Client> {
    Client::connect(bed.bastion.secure, &bed.ca.file, Some("t"), None).await
}

fn spawn_get(mut client: Client, path: &str) -> JoinHandle<Result<(u16, String)>> {
    let path = path.to_owned();
    tokio::spawn(async move {
        let response = client.get(&path).await?;
        Ok((response.status.as_u16(), response.body))
    })
}

#[tokio::test]
async fn asks_endpoint_that_requires_http1_again_and_remembers_it() -> Result<()> {
    let bed = TestBed::new().await?;
    for first in [
        Answer::Reset,
        Answer::GoAway(0),
        Answer::GoAway(1),
        Answer::GoAwayAndClose(0),
        Answer::GoAwayAndClose(1),
        Answer::EarlyGoAway,
        Answer::Http1("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
        Answer::Http1("HTTP/1.0 505 HTTP Version Not Supported\r\n\r\n"),
    ] {
        let endpoint = endpoint(&bed).await?;
        let path = pod(&endpoint)?;
        let response = spawn_get(client(&bed).await?, &path);
        let _connection = answer(&endpoint, first).await?;
        let head = serve_http1(&endpoint)
            .await
            .with_context(|| format!("after {first:?}"))?;
        ensure!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
        let response = response.await??;
        ensure!(response == (200, "ok".into()), "{first:?}: {response:?}");
        // Any worker offers only HTTP/1.1 from now on.
        for _ in 0..3 {
            let response = spawn_get(client(&bed).await?, &path);
            serve_http1(&endpoint)
                .await
                .with_context(|| format!("later, after {first:?}"))?;
            ensure!(response.await??.0 == 200);
        }
    }
    let metrics = bed.bastion.metrics().await?;
    let repeated = r#"kube_bastion_retries_total{outcome="http1_required"} 8"#;
    ensure!(metrics.contains(repeated), "{repeated} in\n{metrics}");
    Ok(())
}

#[tokio::test]
async fn endpoint_may_require_http1_later_on_its_connection() -> Result<()> {
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let endpoint = endpoint(&bed).await?;
    let path = pod(&endpoint)?;
    let response = spawn_get(client(&bed).await?, &path);
    let mut stream = endpoint.accept_http2().await?;
    stream.write_all(&settings()).await?;
    let request = read_request(&mut stream).await?;
    let mut sent = Vec::new();
    // `:status: 204` of the static table (RFC 7541 appendix A).
    frame(
        &mut sent,
        HEADERS,
        END_HEADERS | END_STREAM,
        request,
        &[0x89],
    );
    stream.write_all(&sent).await?;
    stream.flush().await?;
    ensure!(response.await??.0 == 204);
    let response = spawn_get(client(&bed).await?, &path);
    let request = read_request(&mut stream).await?;
    stream.write_all(&reset(request)).await?;
    stream.flush().await?;
    serve_http1(&endpoint).await?;
    ensure!(response.await??.0 == 200);
    Ok(())
}

#[tokio::test]
async fn repeats_buffered_body_over_http1() -> Result<()> {
    let bed = TestBed::new().await?;
    for (length, repeated) in [(5, true), (60_000, true), (200_000, false)] {
        let endpoint = endpoint(&bed).await?;
        let path = pod(&endpoint)?;
        let body = "x".repeat(length);
        let sent = body.clone();
        let mut client = client(&bed).await?;
        let response =
            tokio::spawn(async move { client.send(http::Method::POST, &path, sent.into()).await });
        let mut stream = endpoint.accept_http2().await?;
        // Windows of 1 MiB for the stream and the connection.
        let mut settings = Vec::new();
        let window = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &WINDOW].concat();
        frame(&mut settings, SETTINGS, 0, 0, &window);
        frame(&mut settings, WINDOW_UPDATE, 0, 0, &WINDOW);
        stream.write_all(&settings).await?;
        stream.flush().await?;
        let request = read_request(&mut stream).await?;
        let mut received = 0;
        while received < length {
            let frame = read_frame(&mut stream).await.context("closed")?;
            if frame.kind == DATA {
                received += frame.payload.len();
            }
        }
        stream.write_all(&reset(request)).await?;
        stream.flush().await?;
        if repeated {
            let mut stream = endpoint.accept_http1().await?;
            let head = read_until(&mut stream, "\r\n\r\n").await?;
            ensure!(head.starts_with("POST /x HTTP/1.1\r\n"), "{head}");
            let mut received = vec![0; length];
            stream.read_exact(&mut received).await?;
            ensure!(received == body.as_bytes(), "{length} bytes");
            stream.write_all(OK_RESPONSE).await?;
            stream.flush().await?;
            ensure!(response.await??.status == 200);
        } else {
            let response = response.await??;
            ensure!(
                response.status == 503 && response.body.contains("HTTP/1.1"),
                "{response:?}"
            );
        }
    }
    Ok(())
}

/// A GOAWAY lets requests finish up to its last stream.
#[tokio::test]
async fn request_with_effect_is_not_repeated_if_goaway_covers_it() -> Result<()> {
    let bed = TestBed::new().await?;
    let endpoint = endpoint(&bed).await?;
    let path = pod(&endpoint)?;
    let mut client = client(&bed).await?;
    let response =
        tokio::spawn(async move { client.send(http::Method::POST, &path, "a".into()).await });
    let mut stream = endpoint.accept_http2().await?;
    let request = read_request(&mut stream).await?;
    let mut sent = [settings(), goaway(1)].concat();
    frame(
        &mut sent,
        HEADERS,
        END_HEADERS | END_STREAM,
        request,
        &[0x89],
    );
    stream.write_all(&sent).await?;
    stream.flush().await?;
    ensure!(response.await??.status == 204);
    Ok(())
}

#[tokio::test]
async fn falls_back_to_http1_without_tls() -> Result<()> {
    let bed = TestBed::new().await?;
    let response = spawn_get(client(&bed).await?, &format!("{H2C}/x"));
    let (mut stream, _) = bed.backend.accept().await?;
    read_preface(&mut stream).await?;
    stream.write_all(&settings()).await?;
    let request = read_request(&mut stream).await?;
    stream.write_all(&reset(request)).await?;
    let (mut stream, head) = bed.accept().await?;
    ensure!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
    stream.write_all(OK_RESPONSE).await?;
    ensure!(response.await??.0 == 200);
    Ok(())
}

/// The end of a connection does not tell which version the endpoint speaks.
#[tokio::test]
async fn endpoint_that_closes_new_connection_is_offered_http2_again() -> Result<()> {
    let bed = TestBed::new().await?;
    let endpoint = endpoint(&bed).await?;
    let path = pod(&endpoint)?;
    for _ in 0..2 {
        let response = spawn_get(client(&bed).await?, &path);
        drop(endpoint.accept_http2().await?);
        let (status, body) = response.await??;
        ensure!(
            status == 503 && body.contains("error trying to reach service: 127.0.0.1:"),
            "{status} {body}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn setting_turns_http2_off() -> Result<()> {
    let bed = TestBed::upstream("http2: false").await?;
    let endpoint = endpoint(&bed).await?;
    let response = spawn_get(client(&bed).await?, &pod(&endpoint)?);
    serve_http1(&endpoint).await?;
    ensure!(response.await??.0 == 200);
    let response = spawn_get(client(&bed).await?, &format!("{H2C}/x"));
    let (mut stream, head) = bed.accept().await?;
    ensure!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
    stream.write_all(OK_RESPONSE).await?;
    ensure!(response.await??.0 == 200);
    Ok(())
}
