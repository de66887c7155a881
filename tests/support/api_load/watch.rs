//! Watches that are resumed as client-go resumes them.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::timeout;

use super::{ApiTarget, Counts, Kind, RECONNECT_PAUSE};
use crate::support::client::Client;

/// Time without an event after which a watch has failed: the load changes objects all the time.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(40);

/// Lists once, and then watches from the last version that it knows.
pub(super) async fn keep_watching(target: ApiTarget, http2: bool, counts: Arc<Counts>) {
    let mut version = None;
    while counts.is_running() {
        let connected = target.connect(http2).await;
        let mut client = match connected {
            Ok(client) => client,
            Err(error) => {
                counts.fail(Kind::Watch, &format!("no connection: {error:#}"));
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            }
        };
        if version.is_none() {
            version = counts.count(Kind::List, list(&mut client, &target)).await;
        }
        let Some(from) = version.clone() else {
            continue;
        };
        let opened = open(&mut client, &target, &from);
        let Some(body) = counts.count(Kind::Watch, opened).await else {
            tokio::time::sleep(RECONNECT_PAUSE).await;
            continue;
        };
        if let Err(error) = follow(body, &mut version, &counts).await {
            counts.fail(Kind::Watch, &format!("{error:#}"));
            version = None;
        }
    }
}

async fn list(client: &mut Client, target: &ApiTarget) -> Result<String> {
    let response = client.get(&target.path("configmaps")).await?;
    let status = response.status;
    ensure!(status == 200, "{status} {}", response.body);
    let list: Value = serde_json::from_str(&response.body)?;
    let version = list["metadata"]["resourceVersion"].as_str();
    Ok(version.context("a list has a version")?.to_owned())
}

async fn open(client: &mut Client, target: &ApiTarget, version: &str) -> Result<Incoming> {
    let path = target.path(&format!(
        "configmaps?watch=1&allowWatchBookmarks=true&resourceVersion={version}"
    ));
    let response = client.open(&path, Request::new(Bytes::new())).await?;
    let (status, body) = (response.status(), response.into_body());
    if status != 200 {
        let body = body.collect().await?.to_bytes();
        anyhow::bail!("{status} {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}

/// Reads events until the watch ends, and keeps the version of the last one.
///
/// # Errors
/// Returns an error if the server reports one, or sends something else than events.
async fn follow(mut body: Incoming, version: &mut Option<String>, counts: &Counts) -> Result<()> {
    let mut buffer = Vec::new();
    while counts.is_running() {
        let frame = tokio::select! {
            // Without the load, no object changes.
            () = counts.stop.cancelled() => return Ok(()),
            frame = timeout(SILENCE, body.frame()) => frame,
        };
        let frame = match frame {
            // As client-go, which resumes after either.
            Ok(None) => {
                counts.with(Kind::Watch, |results| results.ended += 1);
                return Ok(());
            }
            Ok(Some(Err(_))) => {
                counts.with(Kind::Watch, |results| results.cut += 1);
                return Ok(());
            }
            Ok(Some(Ok(frame))) => frame,
            Err(_) => anyhow::bail!("no event within {SILENCE:?}"),
        };
        buffer.extend_from_slice(&frame.into_data().unwrap_or_default());
        while let Some(end) = memchr::memchr(b'\n', &buffer) {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).context("an event is JSON")?;
            ensure!(event["type"] != "ERROR", "{event}");
            let new = event["object"]["metadata"]["resourceVersion"].as_str();
            *version = Some(new.context("an object has a version")?.to_owned());
        }
    }
    Ok(())
}
