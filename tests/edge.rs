//! Requests and responses that the bastion rejects, drops or bounds.

#[path = "support/mod.rs"]
mod support;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use support::client::{tls, tls_over};
use support::eventually;
use support::test_bed::{PREFIX, TestBed, read_all, read_until};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

const H2C: &str = "/api/v1/namespaces/default/services/h2c/proxy";
/// Maximum number of names in an `http::HeaderMap`.
const MAX_MAP_NAMES: usize = 24_576;

/// Starts a test bed with further settings of `serving`.
async fn test_bed(settings: &str) -> Result<TestBed> {
    TestBed::serving(settings, &[]).await
}

/// Sends a GET to the pod with further headers.
async fn get(bed: &TestBed, path: &str, rest: &str) -> Result<TlsStream<TcpStream>> {
    bed.request(&format!("GET {path}"), &format!("{rest}\r\n"))
        .await
}

/// Connects an HTTP/2 client.
async fn http2(bed: &TestBed) -> Result<h2::client::SendRequest<Bytes>> {
    let stream = bed.http2_client().await?;
    let (sender, connection) = h2::client::Builder::new()
        .max_header_list_size(16 << 20)
        .handshake(stream)
        .await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(path: &str) -> Result<Request<()>> {
    let request =
        Request::get(format!("https://bastion.test{path}")).header("authorization", "Bearer t");
    Ok(request.body(())?)
}

/// Fills a map to `count` entries with the shortest names.
fn fill(headers: &mut HeaderMap, count: usize) -> Result<()> {
    for n in 0..count - headers.len() {
        headers.append(
            HeaderName::try_from(format!("{n:x}"))?,
            HeaderValue::from_static(""),
        );
    }
    Ok(())
}

async fn text(mut body: h2::RecvStream) -> Result<String> {
    let mut text = String::new();
    while let Some(data) = body.data().await {
        text += &String::from_utf8_lossy(&data?);
    }
    Ok(text)
}

#[tokio::test]
async fn rejects_requests_with_too_many_headers() -> Result<()> {
    let bed = test_bed("").await?;
    let mut sender = http2(&bed).await?;
    for count in [MAX_MAP_NAMES, 1001] {
        let mut request = request(&format!("{PREFIX}/"))?;
        fill(request.headers_mut(), count)?;
        let response = sender.send_request(request, true)?.0.await?;
        ensure!(
            response.status() == 431 && response.headers().contains_key("audit-id"),
            "{count}: {response:?}"
        );
        let body = text(response.into_body()).await?;
        ensure!(
            body.contains(r#""kind":"Status""#) && body.contains("more than 1000 header fields"),
            "{body}"
        );
    }
    // The same connection serves a request within the limit.
    let mut within = request(&format!("{H2C}/"))?;
    fill(within.headers_mut(), 1000)?;
    let response = sender.send_request(within, true)?.0;
    let mut backend = h2::server::handshake(bed.backend.accept().await?.0).await?;
    let (request, mut respond) = backend.accept().await.context("a request")??;
    ensure!(
        request.headers().len() >= 999,
        "{}",
        request.headers().len()
    );
    respond.send_response(Response::new(()), true)?;
    tokio::spawn(async move { while backend.accept().await.is_some() {} });
    ensure!(response.await?.status() == 200);
    let metrics = bed.bastion.metrics().await?;
    let recorded = r#"requests_total{kind="none",method="GET",code="431"} 2"#;
    ensure!(metrics.contains(recorded), "{recorded} in\n{metrics}");
    Ok(())
}

#[tokio::test]
async fn rejects_responses_with_too_many_headers_or_trailers() -> Result<()> {
    let bed = test_bed("").await?;
    let mut sender = http2(&bed).await?;
    let first = sender.send_request(request(&format!("{H2C}/"))?, true)?.0;
    let stream = bed.backend.accept().await?.0;
    let mut backend = h2::server::Builder::new()
        .handshake::<_, Bytes>(stream)
        .await?;
    let (_, mut respond) = backend.accept().await.context("a request")??;
    let mut response = Response::new(());
    fill(response.headers_mut(), MAX_MAP_NAMES)?;
    respond.send_response(response, true)?;
    let mut body = {
        let (requests, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(request)) = backend.accept().await {
                if requests.send(request).is_err() {
                    return;
                }
            }
        });
        let response = first.await?;
        ensure!(response.status() == 503, "{response:?}");
        let body = text(response.into_body()).await?;
        ensure!(
            body.contains("the response has more than 1000 header fields"),
            "{body}"
        );

        let second = sender.send_request(request(&format!("{H2C}/"))?, true)?.0;
        let (_, mut respond) = accepted.recv().await.context("a second request")?;
        let mut stream = respond.send_response(Response::new(()), false)?;
        stream.send_data("part".into(), false)?;
        // Read before the reset, which discards unread data.
        let mut body = second.await?.into_body();
        ensure!(body.data().await.context("a part")?? == "part");
        let mut trailers = HeaderMap::new();
        fill(&mut trailers, 1001)?;
        stream.send_trailers(trailers)?;
        body
    };
    let error = match body.data().await {
        Some(data) => data.err(),
        None => body.trailers().await.err(),
    };
    let error = error.context("the trailers passed")?;
    ensure!(error.is_reset() && error.is_remote(), "{error}");
    Ok(())
}

#[tokio::test]
async fn aborts_requests_with_too_many_trailers() -> Result<()> {
    let bed = test_bed("").await?;
    let mut sender = http2(&bed).await?;
    let mut post = request(&format!("{H2C}/"))?;
    *post.method_mut() = http::Method::POST;
    let (response, mut stream) = sender.send_request(post, false)?;
    let mut backend = h2::server::handshake(bed.backend.accept().await?.0).await?;
    let (request, _respond) = backend.accept().await.context("a request")??;
    tokio::spawn(async move { while backend.accept().await.is_some() {} });
    let mut trailers = HeaderMap::new();
    fill(&mut trailers, 1001)?;
    stream.send_trailers(trailers)?;
    let mut body = request.into_body();
    let error = match body.data().await {
        Some(data) => data.err(),
        None => body.trailers().await.err(),
    };
    ensure!(error.context("the trailers passed")?.is_reset());
    ensure!(response.await?.status() == 400);
    Ok(())
}

#[tokio::test]
async fn removes_offers_of_http_from_upgrades() -> Result<()> {
    // h2c smuggling: after such an upgrade, any request could follow without authorization.
    let bed = test_bed("").await?;
    for offer in [
        "Upgrade: websocket, h2c\r\n",
        "Upgrade: websocket\r\nUpgrade: h2c\r\n",
        "Upgrade: h2c\r\nUpgrade: websocket\r\n",
        "Upgrade: HTTP/2.0, TLS/1.3, websocket, H2\r\n",
    ] {
        let rest = format!(
            "Connection: Upgrade, HTTP2-Settings, X-Mine\r\n{offer}HTTP2-Settings: AAMAAABk\r\nX-Mine: 1\r\n\
             Proxy-Authorization: Basic x\r\nKeep-Alive: 5\r\n"
        );
        let mut client = get(&bed, "/ws", &rest).await?;
        let (mut backend, head) = bed.accept().await?;
        ensure!(
            head.contains("\r\nConnection: Upgrade\r\n")
                && head.contains("\r\nUpgrade: websocket\r\n"),
            "{head}"
        );
        let lower = head.to_lowercase();
        ensure!(
            lower.matches("\r\nupgrade:").count() == 1
                && lower.matches("\r\nconnection:").count() == 1,
            "{head}"
        );
        for absent in [
            "h2",
            "http2-settings",
            "proxy-authorization",
            "keep-alive",
            "x-mine",
            "tls",
            "http/2",
        ] {
            ensure!(!lower.contains(absent), "{absent} in {head}");
        }
        // A backend that switches to a protocol that was not offered, or names none, opens no
        // tunnel.
        let switch = if offer.contains("TLS") {
            ""
        } else {
            "Upgrade: h2c\r\n"
        };
        let head =
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{switch}\r\npipe");
        backend.write_all(head.as_bytes()).await?;
        client
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await?;
        ensure!(
            read_all(&mut backend).await.is_empty(),
            "bytes of the client reached the endpoint"
        );
        let response = read_until(&mut client, "}\n").await?;
        let chosen = if switch.is_empty() { "" } else { "h2c" };
        let message = format!(
            r#"backend tried to switch protocol \"{chosen}\" when \"websocket\" was requested"#
        );
        ensure!(
            response.starts_with("HTTP/1.1 500 ") && response.contains(&message),
            "{response}"
        );
        ensure!(!response.contains("pipe"), "{response}");
    }
    Ok(())
}

/// A redirect passes, too (CONFORMANCE C88, C106).
#[tokio::test]
async fn forwards_response_of_endpoint_that_ignores_offer() -> Result<()> {
    let bed = test_bed("").await?;
    // Offers that are removed (Java clients) leave a plain request. The endpoint may ignore others.
    for (offer, sent) in [
        ("TLS/1.2", None),
        ("h2c", None),
        ("odd/9", Some("Upgrade: odd/9")),
    ] {
        let mut client = get(
            &bed,
            "/ok",
            &format!("Connection: Upgrade\r\nUpgrade: {offer}\r\n"),
        )
        .await?;
        let (mut backend, head) = bed.accept().await?;
        ensure!(
            head.contains("Upgrade") == sent.is_some()
                && sent.is_none_or(|sent| head.contains(sent)),
            "{head}"
        );
        let response = "HTTP/1.1 302 Found\r\nLocation: /next\r\nKeep-Alive: 5\r\nAccess-Control-Allow-Origin: *\r\n\
                      Content-Length: 2\r\n\r\nok";
        backend.write_all(response.as_bytes()).await?;
        let head = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(
            head.starts_with("HTTP/1.1 302 ")
                && head.contains(&format!("Location: {PREFIX}/next\r\n")),
            "{head}"
        );
        ensure!(
            !head.contains("Keep-Alive") && !head.contains("Access-Control"),
            "{head}"
        );
        ensure!(read_until(&mut client, "ok").await? == "ok");
        // The connection of the client stays open.
        let again = format!(
            "GET {PREFIX}/again HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nConnection: close\r\n\r\n"
        );
        client.write_all(again.as_bytes()).await?;
        drop(backend);
        let (mut backend, _) = bed.accept().await?;
        backend
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain")
            .await?;
        ensure!(read_all(&mut client).await.ends_with("again"));
    }
    Ok(())
}

#[tokio::test]
async fn drops_identity_headers_with_underscores() -> Result<()> {
    let bed = test_bed("").await?;
    let rest = "X_Remote_User: admin\r\nX-Remote_Group: system:masters\r\nX_Forwarded_Host: evil.example\r\n\
                X-Forwarded_Proto: http\r\nImpersonate_User: admin\r\nAudit_Id: 1\r\nX_Request_Id: kept\r\n";
    let _client = get(&bed, "/", rest).await?;
    let (_backend, head) = bed.accept().await?;
    let lower = head.to_lowercase();
    for absent in [
        "admin",
        "masters",
        "evil.example",
        "x-forwarded_proto",
        "audit_id",
    ] {
        ensure!(!lower.contains(absent), "{absent} in {head}");
    }
    ensure!(lower.contains("\r\nx_request_id: kept\r\n"), "{head}");
    Ok(())
}

#[tokio::test]
async fn passes_the_whole_path_to_services_with_the_annotation() -> Result<()> {
    let bed = test_bed("").await?;
    let prefix = |service: &str| format!("/api/v1/namespaces/default/services/{service}/proxy");
    for (service, line) in [
        ("base", format!("GET {}/lab?q HTTP/1.1\r\n", prefix("base"))),
        (
            "http:base:80",
            format!("GET {}/lab?q HTTP/1.1\r\n", prefix("http:base:80")),
        ),
        ("s", "GET /lab?q HTTP/1.1\r\n".to_owned()),
    ] {
        let mut client = bed.client().await?;
        let path = prefix(service);
        let head =
            format!("GET {path}/a/../lab?q HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n");
        client.write_all(head.as_bytes()).await?;
        let (mut backend, head) = bed.accept().await?;
        ensure!(head.starts_with(&line), "{service}: {head}");
        // A link that has the prefix already does not get it twice.
        let location = if service == "s" {
            "/next"
        } else {
            &format!("{path}/next")
        };
        let response = format!(
            "HTTP/1.1 302 Found\r\nLocation: {location}\r\nConnection: close\r\n\
             Content-Length: 0\r\n\r\n"
        );
        backend.write_all(response.as_bytes()).await?;
        let received = read_until(&mut client, "\r\n\r\n").await?;
        let expected = format!("\r\nLocation: {path}/next\r\n");
        ensure!(received.contains(&expected), "{service}: {received}");
    }
    Ok(())
}

#[tokio::test]
async fn limits_connections_per_client_address() -> Result<()> {
    let bed = test_bed("maxConnectionsPerClient: 2").await?;
    let ca = &bed.ca.file;
    let first = tls(bed.bastion.secure, ca, None).await?;
    let _second = tls(bed.bastion.secure, ca, None).await?;
    let mut third = TcpStream::connect(bed.bastion.secure).await?;
    ensure!(
        read_all(&mut third).await.is_empty(),
        "the connection was not closed"
    );
    let rejected = r#"kube_bastion_connections_rejected_total{reason="client_share"} 1"#;
    let metrics = bed.bastion.metrics().await?;
    ensure!(metrics.contains(rejected), "{rejected} in\n{metrics}");

    let other = TcpSocket::new_v4()?;
    other.bind("127.0.0.2:0".parse()?)?;
    let other = other.connect(bed.bastion.secure).await?;
    tls_over(other, ca, None, &[])
        .await
        .context("another client address is rejected")?;
    drop(first);
    eventually("the connection to be released", async || {
        Ok(tls(bed.bastion.secure, ca, None).await.is_ok())
    })
    .await
}
