//! Tunnels of datagrams by CONNECT-UDP (RFC 9298), over HTTP/1.1 and HTTP/2.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Method, Request, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::connect::{data, http2, port};
use crate::support::eventually;
use crate::support::test_bed::{TestBed, read_all, read_until};

/// Path of CONNECT-UDP to the UDP port of a service.
pub const UDP_PATH: &str = "/.well-known/masque/udp/dns.default.svc/53/";

/// A test bed with a UDP service, and its endpoint.
pub async fn udp_bed() -> Result<(TestBed, UdpSocket)> {
    udp_bed_with("").await
}

/// As [`udp_bed`], with further sections of the configuration.
async fn udp_bed_with(sections: &str) -> Result<(TestBed, UdpSocket)> {
    let bed = TestBed::with_sections(sections).await?;
    let endpoint = UdpSocket::bind("127.0.0.1:0").await?;
    let manifests = include_str!("../fixtures/udp.yaml");
    let port = endpoint.local_addr()?.port().to_string();
    std::fs::write(
        bed.folder.path().join("manifests/udp.yaml"),
        manifests.replace("PORT", &port),
    )?;
    eventually("the UDP service", async || {
        let known = send_udp(&bed, UDP_PATH, "Proxy-Authorization: Bearer t\r\n")
            .await?
            .0;
        Ok(known.starts_with("HTTP/1.1 101 "))
    })
    .await?;
    Ok((bed, endpoint))
}

/// Sends the upgrade of CONNECT-UDP. Returns the head of the response, and what is behind it unless
/// the tunnel opens.
pub async fn send_udp(
    bed: &TestBed,
    path: &str,
    lines: &str,
) -> Result<(String, TlsStream<TcpStream>)> {
    let mut client = bed.client().await?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\n\
         Capsule-Protocol: ?1\r\n{lines}\r\n"
    );
    client.write_all(head.as_bytes()).await?;
    let mut head = read_until(&mut client, "\r\n\r\n").await?;
    if !head.starts_with("HTTP/1.1 101 ") {
        head += &read_all(&mut client).await;
    }
    Ok((head, client))
}

/// Receives a datagram at the endpoint. Returns it with the address of its sender.
pub async fn receive(endpoint: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 65_536];
    let received = timeout(Duration::from_secs(30), endpoint.recv_from(&mut buffer)).await;
    let (length, from) = received.context("no datagram")??;
    buffer.truncate(length);
    Ok((buffer, from))
}

/// DATAGRAM capsule with context 0 of a payload of less than 63 bytes (RFC 9297 section 3.5).
pub fn capsule(payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len() + 1).expect("a short payload");
    [&[0, length, 0], payload].concat()
}

#[tokio::test]
async fn datagrams_pass_in_capsules_over_http1() -> Result<()> {
    let (bed, endpoint) = udp_bed().await?;
    for (path, lines) in [
        (UDP_PATH.to_owned(), "Proxy-Authorization: Bearer t\r\n"),
        // As a client of the bastion itself, and in absolute form.
        (
            format!("https://localhost{UDP_PATH}"),
            "Authorization: Bearer t\r\n",
        ),
    ] {
        let (head, mut client) = send_udp(&bed, &path, lines).await?;
        for expected in ["Capsule-Protocol: ?1\r\n", "Upgrade: connect-udp\r\n"] {
            ensure!(head.contains(expected), "{head}");
        }
        // A capsule of another type, and a datagram of another context, are skipped.
        let skipped = [&[0x17, 2, 1, 2][..], &[0, 3, 2, 9, 9]].concat();
        client
            .write_all(&[skipped, capsule(b"one"), capsule(b"two")].concat())
            .await?;
        for expected in [b"one", b"two"] {
            let (datagram, from) = receive(&endpoint).await?;
            ensure!(datagram == expected, "{datagram:?}");
            endpoint
                .send_to(&[b"re:", &expected[..]].concat(), from)
                .await?;
        }
        let mut received = vec![0; 18];
        client.read_exact(&mut received).await?;
        ensure!(received == [capsule(b"re:one"), capsule(b"re:two")].concat());
    }
    Ok(())
}

/// Right of the user `forwarder` to the UDP service.
const RIGHT: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: dns, namespace: default}
rules:
- {apiGroups: [''], resources: [services/portforward], resourceNames: [dns], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: dns, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: dns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: forwarder}]
";

#[tokio::test]
async fn revoked_right_ends_open_flow() -> Result<()> {
    let sections =
        "authentication: {tokenReview: {cacheTTL: 1s}}\nauthorization: {allowedCacheTTL: 1s}";
    let (bed, endpoint) = udp_bed_with(sections).await?;
    let right = bed.folder.path().join("manifests/right.yaml");
    std::fs::write(&right, RIGHT)?;
    let mut client = None;
    eventually("the right", async || {
        let lines = "Proxy-Authorization: Bearer f\r\n";
        let (head, opened) = send_udp(&bed, UDP_PATH, lines).await?;
        client = Some(opened);
        Ok(head.starts_with("HTTP/1.1 101 "))
    })
    .await?;
    let mut client = client.context("a tunnel")?;
    client.write_all(&capsule(b"hello")).await?;
    let (datagram, _) = receive(&endpoint).await?;
    ensure!(datagram == b"hello");
    std::fs::remove_file(&right)?;
    // Ends.
    read_all(&mut client).await;
    let metrics = bed.bastion.metrics().await?;
    let closed = r#"tunnels_closed_total{reason="permit_revoked"} 1"#;
    ensure!(metrics.contains(closed), "{metrics}");
    Ok(())
}

/// The address of a pod may be that of another one later.
#[tokio::test]
async fn flow_ends_with_the_pod_of_its_endpoint() -> Result<()> {
    let (bed, endpoint) = udp_bed().await?;
    let (_, mut client) = send_udp(&bed, UDP_PATH, "Proxy-Authorization: Bearer t\r\n").await?;
    let file = bed.folder.path().join("manifests/udp.yaml");
    let manifests = std::fs::read_to_string(&file)?;
    // An endpoint that is not ready keeps its flows.
    let not_ready = manifests.replace("targetRef:", "conditions: {ready: false}, targetRef:");
    std::fs::write(&file, &not_ready)?;
    eventually("the change", async || {
        let (head, _) = send_udp(&bed, UDP_PATH, "Proxy-Authorization: Bearer t\r\n").await?;
        Ok(head.starts_with("HTTP/1.1 503 "))
    })
    .await?;
    client.write_all(&capsule(b"still open")).await?;
    let (datagram, _) = receive(&endpoint).await?;
    ensure!(datagram == b"still open");

    std::fs::write(&file, not_ready.replace("ip: 127.0.0.1", "ip: 127.0.0.9"))?;
    read_all(&mut client).await;
    let metrics = bed.bastion.metrics().await?;
    let closed = r#"tunnels_closed_total{reason="endpoint_gone"} 1"#;
    ensure!(metrics.contains(closed), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn datagrams_pass_in_capsules_over_http2() -> Result<()> {
    let (bed, endpoint) = udp_bed().await?;
    let mut sender = http2(&bed).await?;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://localhost{UDP_PATH}"))
        .extension(h2::ext::Protocol::from_static("connect-udp"))
        .header(header::PROXY_AUTHORIZATION, "Bearer t")
        .header("capsule-protocol", "?1")
        .body(())?;
    let (response, mut stream) = sender.send_request(request, false)?;
    // Datagrams may precede the response.
    stream.send_data(capsule(b"early").into(), false)?;
    let (datagram, from) = receive(&endpoint).await?;
    ensure!(datagram == b"early");
    let response = response.await?;
    ensure!(response.status() == StatusCode::OK && response.headers()["capsule-protocol"] == "?1");
    endpoint.send_to(b"answer", from).await?;
    ensure!(data(&mut response.into_body()).await? == capsule(b"answer"));
    Ok(())
}

#[tokio::test]
async fn rejects_connect_udp_that_opens_no_flow() -> Result<()> {
    let (bed, endpoint) = udp_bed().await?;
    let udp = endpoint.local_addr()?.port();
    let tcp = port(&bed)?;
    for (rest, code) in [
        ("/0/".to_owned(), 400),
        ("dns.default.svc/0/".into(), 400),
        ("dns.default.svc/".into(), 400),
        ("dns.default.svc/53/more/".into(), 400),
        ("%FF/53/".into(), 400),
        ("example.com/53/".into(), 403),
        ("192.0.2.1/53/".into(), 403),
        ("x.default.svc/53/".into(), 404),
        // Ports of the other protocol.
        ("s.default.svc/80/".into(), 404),
        (format!("p.default.pod/{tcp}/"), 404),
        // UDP ports of pods must be declared.
        (format!("dns-0.default.pod/{}/", udp ^ 1), 404),
    ] {
        let path = format!("/.well-known/masque/udp/{rest}");
        let (response, _) = send_udp(&bed, &path, "Proxy-Authorization: Bearer t\r\n").await?;
        ensure!(
            response.starts_with(&format!("HTTP/1.1 {code} "))
                && response.contains("Connection: close\r\n")
                && response.contains("Proxy-Status: kube-bastion; error="),
            "{rest}: {response}"
        );
    }
    let (response, _) = send_udp(&bed, UDP_PATH, "").await?;
    ensure!(response.starts_with("HTTP/1.1 407 "), "{response}");
    let (response, _) = send_udp(&bed, UDP_PATH, "Proxy-Authorization: Bearer f\r\n").await?;
    ensure!(response.starts_with("HTTP/1.1 403 "), "{response}");
    // A plain request for the path is not passed on.
    let plain = bed.get(UDP_PATH).await?;
    ensure!(
        plain.status == StatusCode::BAD_REQUEST && plain.body.contains("Upgrade: connect-udp"),
        "{}",
        plain.body
    );
    // A malformed capsule ends the flow, and nothing behind it is sent.
    let (_, mut client) = send_udp(&bed, UDP_PATH, "Proxy-Authorization: Bearer t\r\n").await?;
    let malformed = [0, 0x80, 0xff, 0xff, 0xff, 0];
    client
        .write_all(&[&malformed[..], &capsule(b"behind")].concat())
        .await?;
    read_all(&mut client).await;
    let received = endpoint.try_recv(&mut [0; 64]);
    ensure!(
        received
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
        "{received:?}"
    );
    Ok(())
}
