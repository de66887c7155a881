//! Upgrades: authorization, and responses that are not a 101.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::SWITCH_TO_X;
use crate::support::eventually;
use crate::support::test_bed::{PREFIX, TestBed, read_all, read_until};

#[tokio::test]
async fn closes_connection_after_refused_upgrade() -> Result<()> {
    // CVE-2018-1002105: bytes after a refused upgrade must not reach the endpoint.
    let bed = TestBed::new().await?;
    for code in ["400 Bad Request", "500 Oops"] {
        let mut client = bed
            .request(
                "GET /here",
                "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            )
            .await?;
        let (mut backend, head) = bed.accept().await?;
        ensure!(
            head.contains("Connection: Upgrade") && head.contains("Upgrade: websocket"),
            "{head}"
        );
        backend
            .write_all(format!("HTTP/1.1 {code}\r\nContent-Length: 4\r\n\r\nnope").as_bytes())
            .await?;
        client
            .write_all(b"GET /there HTTP/1.1\r\nHost: h\r\n\r\n")
            .await?;
        let response = read_all(&mut client).await;
        ensure!(
            response.starts_with(&format!("HTTP/1.1 {}", &code[..3])) && response.ends_with("nope"),
            "{response}"
        );
        ensure!(!read_all(&mut backend).await.contains("/there"));
    }
    Ok(())
}

#[tokio::test]
async fn rejects_success_and_redirect_in_response_to_websocket() -> Result<()> {
    // CVE-2020-8559: a redirect in response to a WebSocket must not reach the client.
    let bed = TestBed::new().await?;
    for code in [
        "200 OK",
        "300 Multiple Choices",
        "302 Found",
        "307 Temporary Redirect",
    ] {
        let mut client = bed
            .request("GET /", "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await?;
        let (mut backend, _) = bed.accept().await?;
        backend
            .write_all(
                format!("HTTP/1.1 {code}\r\nLocation: http://evil/\r\nContent-Length: 0\r\n\r\n")
                    .as_bytes(),
            )
            .await?;
        let head = read_until(&mut client, "\r\n\r\n").await?;
        let body = read_until(&mut client, "\n").await?;
        let message = format!("invalid upgrade response: status code {}", &code[..3]);
        ensure!(
            head.starts_with("HTTP/1.1 500 ") && body.contains(&message) && !head.contains("evil"),
            "{head}{body}"
        );
    }
    Ok(())
}

/// Sends a request with an offer, and the response of the endpoint. Returns the head that the
/// endpoint receives and the response that the client receives.
async fn offer(
    bed: &TestBed,
    client: &mut TlsStream<TcpStream>,
    offer: &str,
    response: &str,
) -> Result<(String, String)> {
    let head = format!(
        "GET {PREFIX}/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\
         Connection: Upgrade\r\nUpgrade: {offer}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await?;
    let (mut backend, received) = bed.accept().await?;
    let response =
        format!("HTTP/1.1 {response}\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    backend.write_all(response.as_bytes()).await?;
    backend.shutdown().await?;
    let head = read_until(client, "\r\n\r\n").await?;
    // A `Status` ends with a line feed.
    let end = if head.contains("application/json") {
        "\n"
    } else {
        "ok"
    };
    let body = read_until(client, end).await?;
    Ok((received, head + &body))
}

/// CONFORMANCE C84, C88, RFC 9110 section 7.8.
#[tokio::test]
async fn response_to_optional_offer_passes_as_that_of_plain_request() -> Result<()> {
    let bed = TestBed::new().await?;
    // All offers on one connection, which stays open.
    let mut client = bed.client().await?;
    for (offers, forwarded) in [
        ("TLS/1.2", None),
        ("TLS/1.0, HTTP/1.1", None),
        ("h2c", None),
        ("HTTP/2.0, h2", None),
        ("odd/9", Some("odd/9")),
        ("TLS/1.2, odd/9", Some("odd/9")),
        ("irc/6.9, RTA/x11", Some("irc/6.9, RTA/x11")),
    ] {
        for status in ["200 OK", "302 Found", "401 No", "404 None", "503 Busy"] {
            let response = format!("{status}\r\nLocation: /login\r\nAlt-Svc: clear");
            let (received, response) = offer(&bed, &mut client, offers, &response).await?;
            let upgrade = received
                .lines()
                .find_map(|line| line.strip_prefix("Upgrade: "));
            ensure!(upgrade == forwarded, "{offers}: {received}");
            ensure!(
                received.contains("Connection: Upgrade") == forwarded.is_some(),
                "{offers}: {received}"
            );
            ensure!(
                response.starts_with(&format!("HTTP/1.1 {status}\r\n"))
                    && response.contains(&format!("Location: {PREFIX}/login\r\n"))
                    && !response.contains("Alt-Svc")
                    && response.ends_with("ok"),
                "{offers}, {status}: {response}"
            );
        }
    }
    Ok(())
}

/// CONFORMANCE C88: another offer does not make that of a WebSocket or SPDY optional.
#[tokio::test]
async fn success_in_response_to_websocket_or_spdy_is_an_error() -> Result<()> {
    let bed = TestBed::new().await?;
    for offers in [
        "websocket",
        "TLS/1.2, websocket",
        "odd/9, WebSocket",
        "SPDY/3.1",
        "odd/9, spdy/3.1",
    ] {
        for status in ["200 OK", "204 None", "302 Found"] {
            let mut client = bed.client().await?;
            let (_, response) = offer(&bed, &mut client, offers, status).await?;
            let message = format!("invalid upgrade response: status code {}", &status[..3]);
            ensure!(
                response.starts_with("HTTP/1.1 500 ") && response.contains(&message),
                "{offers}, {status}: {response}"
            );
        }
        let mut client = bed.client().await?;
        let (_, response) = offer(&bed, &mut client, offers, "404 None").await?;
        ensure!(
            response.starts_with("HTTP/1.1 404 ") && response.contains("Connection: close\r\n"),
            "{offers}: {response}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn requires_more_than_get_for_upgrade_to_node() -> Result<()> {
    let bed = TestBed::new().await?;
    // No pod can be named by the address of a node, so it is not in all tests.
    let manifest = "kind: Node\nmetadata: {name: n}\n\
                    status: {addresses: [{type: InternalIP, address: 127.0.0.1}]}\n";
    std::fs::write(bed.folder.path().join("manifests/node.yaml"), manifest)?;
    eventually("the node", async || {
        Ok(bed.get("/api/v1/nodes/n/proxy").await?.status == 301)
    })
    .await?;
    let node = format!(
        "/api/v1/nodes/n:{}/proxy/exec",
        bed.backend.local_addr()?.port()
    );
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (token, target, upgrade, code) in [
        ("r", &*node, "", "200"),
        ("r", &*node, upgrade, "403"),
        ("t", &*node, upgrade, "101"),
        ("r", PREFIX, upgrade, "101"),
    ] {
        let mut client = bed.client().await?;
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n{upgrade}\r\n"
        );
        client.write_all(head.as_bytes()).await?;
        let response = read_until(&mut client, "\r\n\r\n");
        let serve = async {
            let (mut backend, _) = bed.accept().await?;
            let head = if upgrade.is_empty() {
                "200 OK\r\nContent-Length: 0"
            } else {
                "101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket"
            };
            backend
                .write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes())
                .await?;
            anyhow::Ok(backend)
        };
        let response = tokio::select! {
            response = response => response?,
            response = async { let _backend = serve.await; std::future::pending::<String>().await } => response,
        };
        ensure!(
            response.starts_with(&format!("HTTP/1.1 {code} ")),
            "{token} {target}: {response}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn authorizes_upgrade_by_its_method() -> Result<()> {
    let bed = TestBed::new().await?;
    for method in ["DELETE", "POST", "PROPFIND"] {
        let mut client = bed.client().await?;
        let head = format!(
            "{method} {PREFIX}/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer r\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await?;
        let response = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(
            response.starts_with("HTTP/1.1 403 "),
            "{method}: {response}"
        );
    }
    let seen = tokio::time::timeout(Duration::from_millis(100), bed.backend.accept()).await;
    ensure!(seen.is_err(), "the request reached the endpoint");
    Ok(())
}

#[tokio::test]
async fn counts_tunnels_as_connections() -> Result<()> {
    let bed = TestBed::serving(
        "maxConnections: 1, workers: 1",
        &["--insecure-listen-address=127.0.0.1:0"],
    )
    .await?;
    let mut client = bed
        .request("GET /", "Connection: Upgrade\r\nUpgrade: x\r\n\r\n")
        .await?;
    let (mut backend, _) = bed.accept().await?;
    backend.write_all(SWITCH_TO_X).await?;
    read_until(&mut client, "\r\n\r\n").await?;
    let open = "kube_bastion_connections_open 1\n";
    eventually("the tunnel to be counted", async || {
        Ok(bed.bastion.metrics().await?.contains(open))
    })
    .await?;
    let second = bed.client();
    ensure!(
        tokio::time::timeout(Duration::from_millis(300), second)
            .await
            .is_err(),
        "a second connection was accepted"
    );
    drop((client, backend));
    bed.client().await?;
    Ok(())
}
