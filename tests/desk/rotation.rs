//! `proxy` while the credentials of its user change or are rejected.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::api::{Desk, ok, response};
use crate::proxy::Proxy;
use crate::support::test_bed::{read_all, read_until};
use crate::support::tls_endpoint::TlsEndpoint;

/// Client certificates are read again every 10 s.
#[tokio::test]
async fn rotated_client_certificate_closes_connections_with_the_earlier_one() -> Result<()> {
    let desk = Desk::new()?;
    let folder = desk.folder.path();
    let endpoint = TlsEndpoint::start_with_clients(&desk.ca, folder, &["127.0.0.1"]).await?;
    let pair = desk.ca.client(folder, "jane", "developers")?;
    let (certificate, key) = (pair.certificate.display(), pair.key.display());
    let user = format!("{{client-certificate: {certificate}, client-key: {key}}}");
    let kubeconfig = desk.kubeconfig(&format!("https://{}", endpoint.address()?), &user)?;
    let proxy = Proxy::start(&[&kubeconfig]).await?;
    let respond = async |stream: &mut TlsStream<TcpStream>| -> Result<()> {
        read_until(stream, "\r\n\r\n").await?;
        Ok(stream.write_all(&ok("ok")).await?)
    };
    // Returns the certificate of the next connection, after its first response.
    let serve = async || -> Result<_> {
        let mut stream = endpoint.accept_http1().await?;
        respond(&mut stream).await?;
        let shown = stream.get_ref().1.peer_certificates();
        let shown = shown.and_then(<[_]>::first).context("a certificate")?;
        Ok((shown.clone().into_owned(), stream))
    };
    let (answer, served) = tokio::join!(proxy.get("/api"), serve());
    let (first, mut stream) = served?;
    assert_eq!(answer?.status, 200);
    // Requests share a connection.
    let (answer, responded) = tokio::join!(proxy.get("/api"), respond(&mut stream));
    responded?;
    assert_eq!(answer?.status, 200);

    desk.ca.client(folder, "jane", "developers")?;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let (answer, served) = tokio::join!(proxy.get("/api"), serve());
    assert_eq!(answer?.status, 200);
    ensure!(served?.0 != first, "the earlier certificate was shown");
    // Before the idle timeout of a minute.
    let end = tokio::time::timeout(Duration::from_secs(30), read_all(&mut stream)).await;
    ensure!(end?.is_empty());
    Ok(())
}

/// A credential plugin whose tokens have no expiry, and a server that rejects the first one.
#[tokio::test]
async fn rejected_token_of_a_plugin_is_renewed_and_the_request_sent_again() -> Result<()> {
    let desk = Desk::new()?;
    let api = desk
        .api(|head, body| match head.value("authorization") {
            Some("Bearer token-1") => response("401 Unauthorized", "expired"),
            Some(authorization) => ok(&format!(
                "{authorization} {}",
                String::from_utf8_lossy(body)
            )),
            None => response("403 Forbidden", "anonymous"),
        })
        .await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", api.address), &desk.plugin()?)?;
    let proxy = Proxy::start(&[&kubeconfig]).await?;
    let answer = proxy.send("POST /api", "", "body").await?;
    assert_eq!(
        (answer.status.as_u16(), &*answer.body),
        (200, "Bearer token-2 body")
    );
    let answer = proxy.get("/api").await?;
    assert_eq!(
        (answer.status.as_u16(), &*answer.body),
        (200, "Bearer token-2 ")
    );
    assert_eq!(api.requests().len(), 3);
    assert_eq!(desk.plugin_runs()?, 2);
    Ok(())
}

/// A 401 of an application behind the API server's proxy does not concern the user's token.
#[tokio::test]
async fn rejection_by_an_application_is_passed_on_without_a_second_request() -> Result<()> {
    let desk = Desk::new()?;
    let status = r#"{"kind":"Status","apiVersion":"v1","reason":"Unauthorized","code":401}"#;
    let api = desk
        .api(move |head, _| match head.value("authorization") {
            Some("Bearer token-1") if head.line.contains("/proxy/expired ") => {
                response("401 Unauthorized", status)
            }
            _ => response("401 Unauthorized", "wrong password"),
        })
        .await?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", api.address), &desk.plugin()?)?;
    let proxy = Proxy::start(&[&kubeconfig]).await?;
    let web = "/api/v1/namespaces/shop/services/web/proxy";
    for (target, requests, runs) in [("login", 1, 1), ("expired", 3, 2)] {
        let answer = proxy
            .send(&format!("POST {web}/{target}"), "", "body")
            .await?;
        assert_eq!(
            (answer.status.as_u16(), &*answer.body),
            (401, "wrong password")
        );
        assert_eq!(
            (api.requests().len(), desk.plugin_runs()?),
            (requests, runs)
        );
    }
    Ok(())
}

#[tokio::test]
async fn failed_renewal_leaves_the_rejection_to_the_client() -> Result<()> {
    let desk = Desk::new()?;
    let api = desk
        .api(|_, _| response("401 Unauthorized", "expired"))
        .await?;
    let user = desk.plugin()?;
    let kubeconfig = desk.kubeconfig(&format!("https://{}", api.address), &user)?;
    let proxy = Proxy::start(&[&kubeconfig]).await?;
    assert_eq!(proxy.get("/version").await?.status, 401);
    std::fs::write(desk.path("plugin"), "#!/bin/sh\nexit 1\n")?;
    // Rejections renew at most every ten seconds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(proxy.get("/version").await?.status, 401);
    let output = proxy.stop().await?.join("\n");
    assert!(output.contains("cannot renew the credentials"), "{output}");
    Ok(())
}

/// The user logs in, which takes longer than a dial may while there is another server.
#[tokio::test]
async fn slow_plugin_runs_for_the_first_request_only_and_fails_no_server() -> Result<()> {
    let desk = Desk::new()?;
    let servers = [
        desk.api(|_, _| ok("ok")).await?,
        desk.api(|_, _| ok("ok")).await?,
    ];
    let user = desk.plugin()?;
    let path = desk.path("plugin");
    let plugin = std::fs::read_to_string(&path)?;
    std::fs::write(&path, plugin.replace("n=$(wc", "sleep 4\nn=$(wc"))?;
    let kubeconfig = desk.kubeconfig("https://unused.example", &user)?;
    let flags = servers
        .each_ref()
        .map(|api| format!("--server=https://{}", api.address));
    let proxy = Proxy::start(&[&kubeconfig, &flags[0], &flags[1]]).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        desk.plugin_runs().is_err(),
        "the plugin ran without a request"
    );
    for _ in 0..2 {
        assert_eq!(proxy.get("/api").await?.status, 200);
    }
    assert_eq!(desk.plugin_runs()?, 1);
    Ok(())
}
