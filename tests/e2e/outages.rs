//! The API goes away and comes back.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::support::client::Client;
use crate::support::eventually;
use crate::support::relay::Relay;
use crate::world::{World, bastion, path};

pub async fn a_broken_watch_is_resumed(world: &mut World) -> Result<()> {
    let relay = Relay::start(
        world
            .cluster
            .server
            .trim_start_matches("https://")
            .parse()?,
    )
    .await?;
    let server = format!("https://{}", relay.address);
    let kubeconfig = world.cluster.bastion_kubeconfig("relayed", &server).await?;
    let relayed = bastion(&kubeconfig, &world.serving, &[])?;
    relayed.ready().await?;
    let mut client = Client::connect(
        relayed.secure,
        &world.cluster.ca.file,
        Some(&world.token),
        None,
    )
    .await?;
    for round in 0..3 {
        relay.cut();
        let name = format!("after-cut-{round}");
        let ports = json!([{"containerPort": 8080}]);
        world
            .objects
            .pod(&name, json!({}), world.namespace.address(11), ports)
            .await?;
        eventually("a pod made after the cut", async || {
            Ok(client
                .get(&path(&format!("pods/{name}/proxy/name")))
                .await?
                .body
                == "web-1")
        })
        .await?;
        world.objects.delete_pod(&name).await?;
        eventually("a pod deleted after the cut", async || {
            Ok(client
                .get(&path(&format!("pods/{name}/proxy/name")))
                .await?
                .status
                == 404)
        })
        .await?;
    }
    eventually("the watches to be well", async || {
        Ok(!relayed.readyz().await?.1.contains("[!]"))
    })
    .await
}

pub async fn the_last_known_state_serves_without_the_api(world: &mut World) -> Result<()> {
    let kubeconfig = world
        .cluster
        .bastion_kubeconfig("patient", &world.cluster.server)
        .await?;
    // Answers are remembered for longer than the outage lasts.
    let patient = bastion(
        &kubeconfig,
        &world.serving,
        &[
            "--authentication-token-webhook-cache-ttl=10m",
            "--authorization-webhook-cache-authorized-ttl=10m",
        ],
    )?;
    patient.ready().await?;
    let mut client = Client::connect(
        patient.secure,
        &world.cluster.ca.file,
        Some(&world.token),
        None,
    )
    .await?;
    let target = path("services/web/proxy/name");
    ensure!(client.get(&target).await?.status == 200);

    world.cluster.stop_apiserver();
    eventually("the outage to be noticed", async || {
        Ok(patient.readyz().await?.1.contains("[!]pods impaired"))
    })
    .await?;
    let (code, report) = patient.readyz().await?;
    ensure!(
        code == 200,
        "an outage of the API takes no replica out of service: {report}"
    );
    let metrics = patient.metrics().await?;
    ensure!(
        metrics.contains(r#"kube_bastion_watch_up{resource="pods"} 0"#),
        "{metrics}"
    );
    ensure!(
        patient.said().contains("the last known state serves"),
        "{}",
        patient.said()
    );
    for _ in 0..100 {
        let answer = client.get(&target).await?;
        ensure!(
            answer.status == 200,
            "the last known state serves: {answer:?}"
        );
    }
    // Who is not known cannot be asked for: nobody gets through on an error.
    let mut stranger = Client::connect(
        patient.secure,
        &world.cluster.ca.file,
        Some("unknown"),
        None,
    )
    .await?;
    let answer = stranger.get(&target).await?;
    ensure!(
        answer.status == 500 && answer.body.contains("could not be reviewed"),
        "{answer:?}"
    );
    let answer = client.get(&path("services/never-asked/proxy/")).await?;
    ensure!(
        answer.status == 500 && answer.body.contains("could not be reviewed"),
        "{answer:?}"
    );

    world.cluster.start_apiserver().await?;
    let ports = json!([{"containerPort": 8080}]);
    world
        .objects
        .pod(
            "after-outage",
            json!({}),
            world.namespace.address(12),
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
    eventually("the watches to be well", async || {
        Ok(!patient.readyz().await?.1.contains("[!]"))
    })
    .await
}

pub async fn an_api_that_is_not_there_at_start_is_waited_for(world: &mut World) -> Result<()> {
    let kubeconfig = world
        .cluster
        .bastion_kubeconfig("early", &world.cluster.server)
        .await?;
    world.cluster.stop_apiserver();
    let early = bastion(&kubeconfig, &world.serving, &[])?;
    eventually("the API to be missed", async || {
        Ok(early.readyz().await?.1.contains("refused"))
    })
    .await?;
    let (code, report) = early.readyz().await?;
    ensure!(
        code == 503 && report.contains("[-]pods pending"),
        "{report}"
    );
    // The log says what is so: there is no last known state, nobody refused a right, and a failure
    // is one line.
    let said = early.said();
    let unready = "the bastion is not ready until the API answers";
    ensure!(
        said.contains(unready) && !said.contains("the last known state serves"),
        "{said}"
    );
    ensure!(
        !said.contains("extension-apiserver-authentication-reader")
            && !said.contains("kube_client"),
        "{said}"
    );
    let metrics = early.metrics().await?;
    ensure!(
        !metrics.contains("watch_events_total{"),
        "the API told nothing yet: {metrics}"
    );
    let mut client = Client::connect(
        early.secure,
        &world.cluster.ca.file,
        Some(&world.token),
        None,
    )
    .await?;
    let answer = client.get(&path("services/web/proxy/name")).await?;
    ensure!(
        answer.status == 503 && answer.body.contains("does not know the cluster yet"),
        "{answer:?}"
    );
    world.cluster.start_apiserver().await?;
    early.ready().await?;
    let answer = client.get(&path("services/web/proxy/name")).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}
