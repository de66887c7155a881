//! Settings of `apiServers`: the names of the servers, and requests without credentials.

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use serde_json::Value;

use super::server::{Received, Server, ok};
use super::{Setting, connect, exchange, get};
use crate::support::eventually;

#[tokio::test]
async fn each_server_is_verified_by_its_own_name() -> Result<()> {
    let names = ["a.test", "b.test"];
    let settings = |[a, b]: [String; 2]| {
        format!(
            "servers: [{{address: '{a}', tlsServerName: a.test}}, {{address: '{b}'}}], tlsServerName: b.test"
        )
    };
    let setting = Setting::with(names, settings, |_| ok("a"), |_| ok("b")).await?;
    for _ in 0..4 {
        let response = setting.send(get("/version")).await?;
        ensure!(response.status() == StatusCode::OK, "{response:?}");
    }
    ensure!(setting.counts() == [2, 2], "{:?}", setting.counts());
    for (server, name) in setting.servers.iter().zip(names) {
        for received in server.received() {
            ensure!(
                received.server_name.as_deref() == Some(name),
                "{received:?}"
            );
        }
    }
    Ok(())
}

/// The name is that of another server, so that no request reaches either. The client gets a 503, and
/// the log has the reason.
#[tokio::test]
async fn server_whose_certificate_has_another_name_gets_no_request() -> Result<()> {
    let settings = |[a, b]: [String; 2]| {
        format!(
            "servers: [{{address: '{a}', tlsServerName: b.test}}, {{address: '{b}', tlsServerName: a.test}}]"
        )
    };
    let setting = Setting::with(["a.test", "b.test"], settings, |_| ok("a"), |_| ok("b")).await?;
    let response = setting.send(get("/version")).await?;
    let status: Value = serde_json::from_slice(response.body())?;
    ensure!(
        response.status() == StatusCode::SERVICE_UNAVAILABLE,
        "{status}"
    );
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(message.contains("no API server can be reached"), "{status}");
    ensure!(setting.counts() == [0, 0], "{:?}", setting.counts());
    for (server, name) in setting.servers.iter().zip(["b.test", "a.test"]) {
        let server = format!(r#""server":"{}""#, server.address);
        let reason = format!(r#"certificate not valid for name \"{name}\""#);
        eventually("the reason in the log", async || {
            let log = setting.bed.bastion.log();
            let mut lines = log.lines();
            Ok(lines.any(|line| line.contains(&server) && line.contains(&reason)))
        })
        .await
        .with_context(|| setting.bed.bastion.log())?;
    }
    Ok(())
}

#[tokio::test]
async fn requests_without_credentials_reach_no_server_if_they_are_disabled() -> Result<()> {
    let list = |[a, b]: [String; 2], more: &str| {
        format!("servers: [{{address: '{a}'}}, {{address: '{b}'}}]{more}")
    };
    let names = ["kubernetes.default.svc"; 2];
    let is_anonymous = |received: &Received| !received.headers.contains_key("authorization");
    for (more, status, count) in [
        ("", StatusCode::OK, 1),
        (", anonymous: false", StatusCode::UNAUTHORIZED, 0),
    ] {
        let settings = |addresses| list(addresses, more);
        let setting = Setting::with(names, settings, |_| ok("a"), |_| ok("b")).await?;
        let mut client = connect(&setting.bed).await?;
        let response = exchange(&mut client, get("/version")).await?;
        ensure!(response.status() == status, "{response:?}");
        if status == StatusCode::UNAUTHORIZED {
            let body: Value = serde_json::from_slice(response.body())?;
            ensure!(
                body["kind"] == "Status" && body["reason"] == "Unauthorized",
                "{body}"
            );
            ensure!(
                response.headers().contains_key("www-authenticate"),
                "{response:?}"
            );
        }
        // Those with a token pass.
        let response = setting.send(get("/version")).await?;
        ensure!(response.status() == StatusCode::OK, "{response:?}");
        let received = setting.servers.iter().flat_map(Server::received);
        let anonymous = received.filter(is_anonymous).count();
        ensure!(anonymous == count, "{anonymous} requests: {more:?}");
    }
    Ok(())
}
