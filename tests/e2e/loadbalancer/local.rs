//! `externalTrafficPolicy: Local`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{ADDRESS, Services, events, start, stop};
use crate::fixture::Fixture;
use crate::support::backend::Backend;
use crate::support::client::get_plain;
use crate::support::eventually;

/// A pod on each of two nodes, and a bastion on the first one.
pub async fn local_policy_follows_the_endpoints(fixture: &mut Fixture) -> Result<()> {
    const OTHER_NODE: u8 = 52;
    const PODS: [(&str, &str, u8); 2] =
        [("local-1", "node-1", 53), ("local-2", "local-node-2", 54)];
    let (objects, namespace) = (&fixture.objects, &fixture.namespace);
    objects
        .node("local-node-2", namespace.address(OTHER_NODE))
        .await?;
    let mut backends = Vec::new();
    for (name, node, last) in PODS {
        let (labels, fields) = (json!({"app": "local"}), json!({"nodeName": node}));
        objects
            .pod_with(name, labels, namespace.address(last), json!([]), fields)
            .await?;
        backends.push(Backend::start(namespace, last, 8080, name, None)?);
    }
    let services = Services::new(fixture);
    let node = namespace.address(2).to_string();
    let listener = SocketAddr::from(([127, 0, 0, 8], 90));
    let settings = json!({
        "nodeName": "node-1", "addresses": [ADDRESS, node], "bindAddresses": [listener.ip()],
    });
    let running = start(fixture, "lb-local", settings).await?;
    let policy =
        |policy: &str| json!({"externalTrafficPolicy": policy, "selector": {"app": "local"}});
    services
        .create("lb-local", &[(90, "TCP")], policy("Local"))
        .await?;
    let status = services.reason("lb-local", "Ready").await?;
    endpoints_are(listener, &["local-1"]).await?;
    for (name, expected) in [
        ("Cluster", &["local-1", "local-2"][..]),
        ("Local", &["local-1"]),
    ] {
        services.patch("lb-local", policy(name)).await?;
        endpoints_are(listener, expected)
            .await
            .with_context(|| name)?;
    }
    let ingress = status["loadBalancer"]["ingress"].as_array();
    ensure!(
        ingress.is_some_and(|ingress| ingress.len() == 2),
        "{status:#}"
    );
    services
        .patch("lb-local", json!({"selector": {"app": "none"}}))
        .await?;
    let status = services.reason("lb-local", "NoLocalEndpoint").await?;
    ensure!(status["loadBalancer"]["ingress"].is_null(), "{status:#}");
    events(fixture, "lb-local", &["UnAvailableLoadBalancer"]).await?;
    ensure!(get_plain(listener, "/name").await.is_err());
    services.patch("lb-local", policy("Local")).await?;
    services.reason("lb-local", "Ready").await?;
    endpoints_are(listener, &["local-1"]).await?;
    stop(running).await?;
    for (name, ..) in PODS {
        objects.delete_pod(name).await?;
    }
    services.delete("lb-local").await
}

/// Waits until the connections of a listener reach exactly these endpoints.
async fn endpoints_are(listener: SocketAddr, expected: &[&str]) -> Result<()> {
    let mut names = BTreeSet::new();
    let waited = eventually("connections to the endpoints", async || {
        names.clear();
        for _ in 0..6 {
            if let Ok((_, name)) = get_plain(listener, "/name").await {
                names.insert(name);
            }
        }
        Ok(names.iter().eq(expected))
    });
    waited
        .await
        .with_context(|| format!("{names:?} instead of {expected:?}"))
}
