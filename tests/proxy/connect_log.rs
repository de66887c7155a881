//! Lines of tunnels in the access log.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::connect::{http2, send, send_http2};
use crate::connect_udp::{UDP_PATH, capsule, receive, send_udp, udp_bed};
use crate::support::access_log::AccessLog;
use crate::support::test_bed::{TestBed, read_all, read_until};

const CREDENTIALS: &str = "Proxy-Authorization: Bearer t\r\n";

/// Checks fields of a line.
fn ensure_fields(line: &Value, expected: &[(&str, Value)]) -> Result<()> {
    for (key, expected) in expected {
        ensure!(line[*key] == *expected, "{key}: {line}");
    }
    Ok(())
}

#[tokio::test]
async fn line_of_a_tunnel_has_caller_target_endpoint_and_bytes() -> Result<()> {
    let mut bed = TestBed::new().await?;
    let endpoint = bed.backend.local_addr()?.to_string();
    let log = AccessLog::of(&mut bed).await?;
    let lines = format!("{CREDENTIALS}Impersonate-User: forwarder\r\nAudit-Id: first\r\n");
    let mut client = send(&bed, "s.default.svc:80", &lines).await?;
    read_until(&mut client, "\r\n\r\n").await?;
    let (mut backend, _) = bed.backend.accept().await?;
    client.write_all(b"hello").await?;
    read_until(&mut backend, "hello").await?;
    backend.write_all(b"good day").await?;
    read_until(&mut client, "good day").await?;
    client.shutdown().await?;
    drop(backend);
    read_all(&mut client).await;
    let line = &log.lines(1).await?[0];
    ensure_fields(
        line,
        &[
            ("user", json!("jane")),
            ("impersonatedUser", json!("forwarder")),
            ("client", json!("127.0.0.1")),
            ("method", json!("CONNECT")),
            ("verb", json!("create")),
            ("resource", json!("services")),
            ("namespace", json!("default")),
            ("name", json!("s:80")),
            ("path", json!("s.default.svc:80")),
            ("protocol", json!("HTTP/1.1")),
            ("endpoint", json!(endpoint)),
            ("endpointName", json!("p")),
            ("code", json!(200)),
            ("received", json!(5)),
            ("sent", json!(8)),
            ("auditId", json!("first")),
            ("error", Value::Null),
        ],
    )
}

#[tokio::test]
async fn line_of_a_refused_tunnel_has_the_endpoint_and_the_error() -> Result<()> {
    let mut bed = TestBed::new().await?;
    let log = AccessLog::of(&mut bed).await?;
    let mut sender = http2(&bed).await?;
    let (response, _stream) = send_http2(&mut sender, "p.default.pod:1").await?;
    ensure!(response.status() == 502, "{response:?}");
    drop(response);
    let line = &log.lines(1).await?[0];
    ensure_fields(
        line,
        &[
            ("path", json!("p.default.pod:1")),
            ("protocol", json!("HTTP/2.0")),
            ("resource", json!("pods")),
            ("endpoint", json!("127.0.0.1:1")),
            ("code", json!(502)),
            ("received", json!(0)),
        ],
    )?;
    let error = line["error"].as_str().unwrap_or_default();
    ensure!(error.contains("onnection refused"), "{line}");
    Ok(())
}

#[tokio::test]
async fn line_and_metrics_of_a_udp_flow_count_its_payloads() -> Result<()> {
    let (mut bed, endpoint) = udp_bed().await?;
    let log = AccessLog::of(&mut bed).await?;
    let (_, mut client) = send_udp(&bed, UDP_PATH, CREDENTIALS).await?;
    let (query, answer) = (b"query", b"the answer");
    client.write_all(&capsule(query)).await?;
    let (_, from) = receive(&endpoint).await?;
    endpoint.send_to(answer, from).await?;
    client.read_exact(&mut capsule(answer)).await?;
    client.shutdown().await?;
    read_all(&mut client).await;
    let line = &log.lines(1).await?[0];
    ensure_fields(
        line,
        &[
            ("user", json!("jane")),
            ("path", json!(UDP_PATH)),
            ("method", json!("GET")),
            ("resource", json!("services")),
            ("name", json!("dns:53")),
            ("endpoint", json!(endpoint.local_addr()?.to_string())),
            ("code", json!(101)),
            ("received", json!(query.len())),
            ("sent", json!(answer.len())),
            ("error", Value::Null),
        ],
    )?;
    let metrics = bed.bastion.metrics().await?;
    for (direction, bytes) in [("received", query.len()), ("sent", answer.len())] {
        let counted = metrics.lines().any(|line| {
            line.starts_with("kube_bastion_body_bytes_total{")
                && line.contains(&format!("direction=\"{direction}\""))
                && line.ends_with(&format!(" {bytes}"))
        });
        ensure!(counted, "{direction}: {metrics}");
    }
    Ok(())
}
