//! Upgrades: authorization, and responses that are not a 101.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::AsyncWriteExt;

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

#[tokio::test]
async fn requires_more_than_get_for_upgrade_to_node() -> Result<()> {
    let bed = TestBed::new().await?;
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
