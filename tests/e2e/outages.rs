//! Outages of the API server.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::fixture::{Fixture, bastion, path};
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::relay::Relay;

pub async fn resumes_broken_watch(fixture: &mut Fixture) -> Result<()> {
    let relay = Relay::start(
        fixture
            .cluster
            .server
            .trim_start_matches("https://")
            .parse()?,
    )
    .await?;
    let server = format!("https://{}", relay.address);
    let kubeconfig = fixture
        .cluster
        .bastion_kubeconfig("relayed", &server)
        .await?;
    let relayed = bastion(&kubeconfig, &fixture.serving, &[])?;
    relayed.ready().await?;
    let mut client = Client::connect(
        relayed.secure,
        &fixture.cluster.ca.file,
        Some(&fixture.token),
        None,
    )
    .await?;
    for round in 0..3 {
        relay.cut();
        let name = format!("after-cut-{round}");
        let ports = json!([{"containerPort": 8080}]);
        fixture
            .objects
            .pod(&name, json!({}), fixture.namespace.address(11), ports)
            .await?;
        eventually("a pod made after the cut", async || {
            Ok(client
                .get(&path(&format!("pods/{name}/proxy/name")))
                .await?
                .body
                == "web-1")
        })
        .await?;
        fixture.objects.delete_pod(&name).await?;
        eventually("a pod deleted after the cut", async || {
            Ok(client
                .get(&path(&format!("pods/{name}/proxy/name")))
                .await?
                .status
                == 404)
        })
        .await?;
    }
    eventually("healthy watches", async || {
        Ok(!relayed.readyz().await?.1.contains("[!]"))
    })
    .await
}

pub async fn serves_last_known_state_without_the_api(fixture: &mut Fixture) -> Result<()> {
    let kubeconfig = fixture
        .cluster
        .bastion_kubeconfig("patient", &fixture.cluster.server)
        .await?;
    // Results are cached for longer than the outage.
    let patient = bastion(
        &kubeconfig,
        &fixture.serving,
        &[
            "--authentication-token-webhook-cache-ttl=10m",
            "--authorization-webhook-cache-authorized-ttl=10m",
        ],
    )?;
    patient.ready().await?;
    let mut client = Client::connect(
        patient.secure,
        &fixture.cluster.ca.file,
        Some(&fixture.token),
        None,
    )
    .await?;
    let target = path("services/web/proxy/name");
    ensure!(client.get(&target).await?.status == 200);

    fixture.cluster.stop_apiserver();
    eventually("the outage to be detected", async || {
        Ok(patient.readyz().await?.1.contains("[!]pods degraded"))
    })
    .await?;
    let (code, report) = patient.readyz().await?;
    ensure!(
        code == 200,
        "the outage makes the replica unready: {report}"
    );
    let metrics = patient.metrics().await?;
    ensure!(
        metrics.contains(r#"kube_bastion_watch_up{resource="pods"} 0"#),
        "{metrics}"
    );
    eventually("the outage in the log", async || {
        Ok(patient.log().contains("serving the last known state"))
    })
    .await?;
    for _ in 0..100 {
        let response = client.get(&target).await?;
        ensure!(
            response.status == 200,
            "the last known state is not used: {response:?}"
        );
    }
    // A caller without a cached result is rejected, not allowed.
    let mut unauthenticated = Client::connect(
        patient.secure,
        &fixture.cluster.ca.file,
        Some("unknown"),
        None,
    )
    .await?;
    let response = unauthenticated.get(&target).await?;
    ensure!(
        response.status == 500 && response.body.contains("could not be reviewed"),
        "{response:?}"
    );
    let response = client.get(&path("services/never-cached/proxy/")).await?;
    ensure!(
        response.status == 500 && response.body.contains("could not be reviewed"),
        "{response:?}"
    );

    fixture.cluster.start_apiserver().await?;
    let ports = json!([{"containerPort": 8080}]);
    fixture
        .objects
        .pod(
            "after-outage",
            json!({}),
            fixture.namespace.address(12),
            ports,
        )
        .await?;
    eventually("a pod made after the outage", async || {
        Ok(client
            .get(&path("pods/after-outage/proxy/name"))
            .await?
            .body
            == "web-2")
    })
    .await?;
    eventually("healthy watches", async || {
        Ok(!patient.readyz().await?.1.contains("[!]"))
    })
    .await
}

pub async fn waits_for_the_api_at_start(fixture: &mut Fixture) -> Result<()> {
    let kubeconfig = fixture
        .cluster
        .bastion_kubeconfig("early", &fixture.cluster.server)
        .await?;
    fixture.cluster.stop_apiserver();
    let early = bastion(&kubeconfig, &fixture.serving, &[])?;
    eventually("the missing API to be reported", async || {
        Ok(early.readyz().await?.1.contains("refused"))
    })
    .await?;
    let (code, report) = early.readyz().await?;
    ensure!(
        code == 503 && report.contains("[-]pods pending"),
        "{report}"
    );
    // One line of the log for all watches, with the address, and without a last known state or a
    // missing permission.
    let unready = format!(
        "cannot reach the API server {}; not ready until the initial list succeeds; retrying",
        fixture.cluster.server
    );
    eventually("the missing API in the log", async || {
        Ok(early.log().contains(&unready))
    })
    .await?;
    let log = early.log();
    ensure!(
        log.matches("not ready until").count() == 1
            && !log.contains("serving the last known state")
            && !log.contains("ClusterRole")
            && !log.contains("kube_client"),
        "{log}"
    );
    let metrics = early.metrics().await?;
    ensure!(
        !metrics.contains("watch_events_total{"),
        "the API reported objects: {metrics}"
    );
    let mut client = Client::connect(
        early.secure,
        &fixture.cluster.ca.file,
        Some(&fixture.token),
        None,
    )
    .await?;
    let response = client.get(&path("services/web/proxy/name")).await?;
    ensure!(
        response.status == 503
            && response
                .body
                .contains("has not loaded the cluster state yet"),
        "{response:?}"
    );
    fixture.cluster.start_apiserver().await?;
    early.ready().await?;
    let response = client.get(&path("services/web/proxy/name")).await?;
    ensure!(response.status == 200, "{response:?}");
    Ok(())
}
