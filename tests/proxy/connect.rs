//! Tunnels by CONNECT, over HTTP/1.1 and HTTP/2.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::connect_udp::{UDP_PATH, send_udp};
use crate::support::eventually;
use crate::support::test_bed::{TestBed, read_all, read_until};

/// Sends a CONNECT. `lines` follow its `Host` header and end with CRLF.
pub async fn send(bed: &TestBed, authority: &str, lines: &str) -> Result<TlsStream<TcpStream>> {
    let mut client = bed.client().await?;
    let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{lines}\r\n");
    client.write_all(head.as_bytes()).await?;
    Ok(client)
}

/// Returns the complete response to a CONNECT of a user with all rights that opens no tunnel.
pub async fn refused(bed: &TestBed, authority: &str) -> Result<String> {
    let mut client = send(bed, authority, "Proxy-Authorization: Bearer t\r\n").await?;
    // The connection ends without a further request.
    Ok(read_all(&mut client).await)
}

/// Port of the endpoint.
pub fn port(bed: &TestBed) -> Result<u16> {
    Ok(bed.backend.local_addr()?.port())
}

/// Opens an HTTP/2 connection. The task of the connection ends with its handles.
pub async fn http2(bed: &TestBed) -> Result<h2::client::SendRequest<Bytes>> {
    let stream = bed.http2_client().await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    Ok(sender.ready().await?)
}

/// Sends a CONNECT over HTTP/2, with the token as a bearer.
pub async fn send_http2(
    sender: &mut h2::client::SendRequest<Bytes>,
    authority: &str,
) -> Result<(Response<h2::RecvStream>, h2::SendStream<Bytes>)> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(Uri::builder().authority(authority).build()?)
        .header(header::PROXY_AUTHORIZATION, "Bearer t")
        .body(())?;
    let (response, stream) = sender.send_request(request, false)?;
    Ok((response.await?, stream))
}

pub async fn data(body: &mut h2::RecvStream) -> Result<Bytes> {
    let data = body.data().await.context("the stream goes on")??;
    body.flow_control().release_capacity(data.len())?;
    Ok(data)
}

#[tokio::test]
async fn opens_tunnel_by_name_and_by_address() -> Result<()> {
    let bed = TestBed::new().await?;
    let port = port(&bed)?;
    for authority in [
        "s.default.svc:80".to_owned(),
        "S.Default.SVC.cluster.local.:80".to_owned(),
        "10.96.0.7:80".to_owned(),
        format!("p.default.pod:{port}"),
        format!("127.0.0.1:{port}"),
        format!("127-0-0-1.default.pod:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        "host.default.pod:web".to_owned(),
        format!("host.default.pod:{port}"),
        "several.default.svc:db".to_owned(),
        "db-0.several.default.svc:27017".to_owned(),
        format!("db-0.several.default.svc.cluster.local:{port}"),
    ] {
        // Bytes behind the head belong to the tunnel.
        let mut client = bed.client().await?;
        let head = format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer t\r\n\r\nping"
        );
        client.write_all(head.as_bytes()).await?;
        let head = read_until(&mut client, "\r\n\r\n").await;
        let head = head.with_context(|| authority.clone())?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{authority}: {head}");
        let lower = head.to_ascii_lowercase();
        for absent in ["content-length", "transfer-encoding", "connection: close"] {
            ensure!(!lower.contains(absent), "{authority}: {head}");
        }
        let (mut backend, _) = bed.backend.accept().await?;
        read_until(&mut backend, "ping").await?;
        backend.write_all(b"pong").await?;
        read_until(&mut client, "pong").await?;
        // A half-close passes, and the other direction goes on.
        client.shutdown().await?;
        ensure!(read_all(&mut backend).await.is_empty());
        backend.write_all(b"rest").await?;
        drop(backend);
        ensure!(read_all(&mut client).await == "rest");
    }
    let counted = [("received", 4 * 12), ("sent", 8 * 12)];
    eventually("the bytes of the tunnels", async || {
        let metrics = bed.bastion.metrics().await?;
        let total = |direction: &str| -> u64 {
            let label = format!("direction=\"{direction}\"");
            let lines = metrics.lines().filter(|line| {
                line.starts_with("kube_bastion_body_bytes_total{") && line.contains(&label)
            });
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            values.sum()
        };
        Ok(counted
            .iter()
            .all(|(direction, bytes)| total(direction) == *bytes))
    })
    .await?;
    Ok(())
}

/// As OpenBSD's `nc` and `WinHTTP` send them.
#[tokio::test]
async fn opens_tunnel_for_http10_and_for_a_length_of_zero() -> Result<()> {
    let bed = TestBed::new().await?;
    for head in [
        "CONNECT s.default.svc:80 HTTP/1.0\r\n",
        "CONNECT s.default.svc:80 HTTP/1.0\r\nHost: s.default.svc:80\r\nContent-Length: 0\r\n",
        "CONNECT s.default.svc:80 HTTP/1.1\r\nHost: s.default.svc:80\r\nContent-Length: 0\r\n",
    ] {
        let mut client = bed.client().await?;
        let head = format!("{head}Proxy-Authorization: Bearer t\r\n\r\n");
        client.write_all(head.as_bytes()).await?;
        let response = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(response.contains(" 200 "), "{head}: {response}");
        let (mut backend, _) = bed.backend.accept().await?;
        client.write_all(b"ping").await?;
        read_until(&mut backend, "ping").await?;
    }
    Ok(())
}

#[tokio::test]
async fn opens_tunnels_beside_requests_on_one_http2_connection() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut sender = http2(&bed).await?;
    let mut tunnels = Vec::new();
    for number in 0..3_u8 {
        let (response, stream) = send_http2(&mut sender, "s.default.svc:80").await?;
        ensure!(response.status() == StatusCode::OK, "{response:?}");
        let (backend, _) = bed.backend.accept().await?;
        tunnels.push((number, response.into_body(), stream, backend));
    }
    for (number, body, stream, backend) in &mut tunnels {
        stream.send_data(Bytes::from(vec![*number; 100]), false)?;
        let mut received = [0; 100];
        backend.read_exact(&mut received).await?;
        ensure!(received == [*number; 100]);
        backend.write_all(&[*number; 7]).await?;
        ensure!(data(body).await? == vec![*number; 7]);
    }
    // END_STREAM is a half-close.
    let (_, mut body, mut stream, mut backend) = tunnels.remove(0);
    stream.send_data(Bytes::new(), true)?;
    ensure!(read_all(&mut backend).await.is_empty());
    backend.write_all(b"rest").await?;
    drop(backend);
    let mut rest = Vec::new();
    while let Some(data) = body.data().await {
        rest.extend_from_slice(&data?);
    }
    ensure!(rest == b"rest");
    // The others are not affected.
    let (_, body, stream, backend) = &mut tunnels[0];
    stream.send_data(Bytes::from_static(b"more"), false)?;
    read_until(backend, "more").await?;
    backend.write_all(b"back").await?;
    ensure!(data(body).await? == "back");
    Ok(())
}

/// As clients in Go, kubectl among them, send it to their `HTTPS_PROXY`.
#[tokio::test]
async fn opens_tunnel_over_http1_although_http2_was_negotiated() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed.http2_client().await?;
    let head = "CONNECT s.default.svc:80 HTTP/1.1\r\nHost: s.default.svc:80\r\n\
                Proxy-Authorization: Bearer t\r\n\r\n";
    client.write_all(head.as_bytes()).await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (mut backend, _) = bed.backend.accept().await?;
    backend.write_all(b"hello").await?;
    read_until(&mut client, "hello").await?;
    Ok(())
}

#[tokio::test]
async fn next_endpoint_gets_connection_that_one_refuses() -> Result<()> {
    let bed = TestBed::new().await?;
    for _ in 0..6 {
        let credentials = "Proxy-Authorization: Bearer t\r\n";
        let mut client = send(&bed, "several.default.svc:27017", credentials).await?;
        let head = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let (mut backend, _) = bed.backend.accept().await?;
        backend.write_all(b"hello").await?;
        read_until(&mut client, "hello").await?;
    }
    Ok(())
}

#[tokio::test]
async fn revoked_right_ends_open_tunnel() -> Result<()> {
    let bed = TestBed::with_sections(
        "authentication: {tokenReview: {cacheTTL: 1s}}\nauthorization: {allowedCacheTTL: 1s}",
    )
    .await?;
    let mut client = send(
        &bed,
        "s.default.svc:80",
        "Proxy-Authorization: Bearer f\r\n",
    )
    .await?;
    read_until(&mut client, "\r\n\r\n").await?;
    let (mut backend, _) = bed.backend.accept().await?;
    let file = bed.folder.path().join("manifests/all.yaml");
    let manifests = std::fs::read_to_string(&file)?;
    let revoked = manifests.replace("resourceNames: [s]", "resourceNames: [other]");
    ensure!(revoked != manifests);
    std::fs::write(&file, revoked)?;
    read_all(&mut client).await;
    read_all(&mut backend).await;
    let metrics = bed.bastion.metrics().await?;
    let closed = metrics
        .lines()
        .find(|line| line.contains(r#"tunnels_closed_total{reason="permit_revoked"}"#));
    ensure!(
        closed.is_some_and(|line| line.ends_with(" 1")),
        "{closed:?}"
    );
    Ok(())
}

#[tokio::test]
async fn limits_tunnels_of_a_user() -> Result<()> {
    let bed = TestBed::with_sections("tunnels: {maxPerCaller: 2}").await?;
    let open = async || -> Result<(String, TlsStream<TcpStream>)> {
        let credentials = "Proxy-Authorization: Bearer t\r\n";
        let mut client = send(&bed, "s.default.svc:80", credentials).await?;
        Ok((read_until(&mut client, "\r\n\r\n").await?, client))
    };
    let (_, _first) = open().await?;
    let (head, second) = open().await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (head, _) = open().await?;
    ensure!(
        head.starts_with("HTTP/1.1 429 ") && head.contains("error=connection_limit_reached"),
        "{head}"
    );
    // Nor does it help to act for another user, whose own limit is not used up.
    let lines = "Proxy-Authorization: Bearer t\r\nImpersonate-User: forwarder\r\n";
    let mut acting = send(&bed, "s.default.svc:80", lines).await?;
    let head = read_until(&mut acting, "\r\n\r\n").await?;
    ensure!(head.starts_with("HTTP/1.1 429 "), "{head}");
    // Other users have limits of their own.
    let mut other = send(
        &bed,
        "s.default.svc:80",
        "Proxy-Authorization: Bearer f\r\n",
    )
    .await?;
    let head = read_until(&mut other, "\r\n\r\n").await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    // Flows of datagrams count as well.
    let (response, _) = send_udp(&bed, UDP_PATH, "Proxy-Authorization: Bearer t\r\n").await?;
    ensure!(response.starts_with("HTTP/1.1 429 "), "{response}");
    drop(second);
    eventually("a tunnel for the one that ended", async || {
        Ok(open().await?.0.starts_with("HTTP/1.1 200 "))
    })
    .await
}

#[tokio::test]
async fn turned_off_by_configuration() -> Result<()> {
    let bed = TestBed::with_sections("tunnels: {enabled: false}").await?;
    let tcp = refused(&bed, "s.default.svc:80").await?;
    let (udp, _) = send_udp(&bed, UDP_PATH, "Proxy-Authorization: Bearer t\r\n").await?;
    for response in [tcp, udp] {
        ensure!(response.starts_with("HTTP/1.1 405 "), "{response}");
        ensure!(
            response.contains("Proxy-Status: kube-bastion; error=http_request_denied"),
            "{response}"
        );
    }
    Ok(())
}
