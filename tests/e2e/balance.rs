//! Round-robin, failover, and endpoints that come and go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;

use crate::support::backend::Backend;
use crate::support::eventually;
use crate::support::load::{Load, Shape};
use crate::world::{SHOP, World, path};

pub async fn ten_thousand_requests_go_round(world: &mut World) -> Result<()> {
    let mut client = world.client().await?;
    let mut counts = BTreeMap::new();
    for _ in 0..10_000 {
        let answer = client.get(&path("services/web/proxy/name")).await?;
        ensure!(answer.status == 200, "{answer:?}");
        *counts.entry(answer.body).or_insert(0) += 1;
    }
    let mut shares: Vec<i32> = counts.values().copied().collect();
    shares.sort_unstable();
    println!("     10,000 requests from one connection: {counts:?}");
    ensure!(shares == [3333, 3333, 3334], "{counts:?}");
    Ok(())
}

pub async fn a_killed_backend_fails_no_request(world: &mut World) -> Result<()> {
    let load = Load::start(
        &world.target(&world.bastion),
        Shape {
            http1: 16,
            ..Shape::default()
        },
    )
    .await?;
    load.more(2_000).await;
    // Connections, listener and all: what a killed process leaves. The API still lists its
    // endpoint.
    let killed = world.backends.remove("web-2").context("web-2 runs")?;
    drop(killed);
    load.more(8_000).await;
    let outcome = load.stop().await;
    println!("     over 16 connections, one of three backends killed on the way: {outcome}");
    outcome.none_failed()?;
    world.backends.insert(
        "web-2".into(),
        Backend::start(&world.namespace, 12, 8080, "web-2", None)?,
    );
    world.endpoints("services/web", 3).await
}

pub async fn endpoints_come_and_go_under_load(world: &mut World) -> Result<()> {
    let load = Load::start(
        &world.target(&world.bastion),
        Shape {
            http1: 8,
            ..Shape::default()
        },
    )
    .await?;
    for round in 0..5 {
        let name = format!("guest-{round}");
        let last = 20 + round;
        let backend = Backend::start(&world.namespace, last, 8080, &name, None)?;
        let ports = json!([{"containerPort": 8080}]);
        world
            .objects
            .pod(
                &name,
                json!({"app": "web"}),
                world.namespace.address(last),
                ports,
            )
            .await?;
        while backend.served() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.objects.delete_pod(&name).await?;
        // As a pod that ends does: it serves until everybody has heard, then goes.
        let served = Served(&backend);
        served.settle().await;
        drop(backend);
        load.more(500).await;
    }
    let outcome = load.stop().await;
    println!("     while five endpoints came and went: {outcome}");
    outcome.none_failed()?;
    world.endpoints("services/web", 3).await
}

/// The product's word is 100 ms. On a machine that does something else at the moment any single
/// figure may be worse: the best of some tries must keep it, and none may be so late that it was
/// not the watch that told of it.
pub async fn a_new_endpoint_is_used_at_once(world: &mut World) -> Result<()> {
    const TRIES: usize = 5;
    const WORD: Duration = Duration::from_millis(100);
    const LATE: Duration = Duration::from_secs(2);
    let mut lags = Vec::new();
    while lags.len() < TRIES && lags.iter().min().is_none_or(|best| *best > WORD) {
        lags.push(lag(world).await?);
    }
    println!("     a new endpoint served {lags:?} after the API told this test of it");
    ensure!(lags.iter().all(|lag| *lag < LATE), "{lags:?}");
    ensure!(
        lags.iter().any(|lag| *lag <= WORD),
        "not once within {WORD:?}: {lags:?}"
    );
    Ok(())
}

/// From the API's word to the first request; none where the bastion heard it first.
async fn lag(world: &World) -> Result<Duration> {
    let backend = Backend::start(&world.namespace, 30, 8080, "late", None)?;
    let slices = Api::<EndpointSlice>::namespaced(world.cluster.client.clone(), SHOP);
    let web = watcher::Config::default().labels("kubernetes.io/service-name=web");
    let mut told = watcher(slices, web).applied_objects().boxed();
    let address = world.namespace.address(30);
    let ports = json!([{"containerPort": 8080}]);
    let mut client = world.client().await?;
    let answered = tokio::spawn(async move {
        while let Some(slice) = told.next().await {
            let slice = slice?;
            let mut addresses = slice
                .endpoints
                .iter()
                .flatten()
                .flat_map(|endpoint| &endpoint.addresses);
            if addresses.any(|found| *found == address.to_string()) {
                return Ok(Instant::now());
            }
        }
        anyhow::bail!("the watch ended")
    });
    world
        .objects
        .pod("late", json!({"app": "web"}), address, ports)
        .await?;
    let used = async {
        while backend.served() == 0 {
            client.get(&path("services/web/proxy/name")).await?;
        }
        anyhow::Ok(Instant::now())
    };
    let used = tokio::time::timeout(Duration::from_secs(30), used)
        .await
        .context("it is never used")??;
    let answered = answered.await??;
    world.objects.delete_pod("late").await?;
    world.endpoints("services/web", 3).await?;
    Ok(used.saturating_duration_since(answered))
}

pub async fn a_slice_that_leaves_its_service_serves_no_more(world: &mut World) -> Result<()> {
    world
        .objects
        .service("left", json!({"ports": [{"port": 80}]}))
        .await?;
    let pod = json!({"kind": "Pod", "namespace": SHOP, "name": "web-1"});
    let slice = json!({
        "metadata": {"name": "left-1", "labels": {"kubernetes.io/service-name": "left"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [world.namespace.address(11)], "targetRef": pod}],
    });
    world.objects.create::<EndpointSlice>(slice).await?;
    world.endpoints("services/left", 1).await?;
    let slices = Api::<EndpointSlice>::namespaced(world.cluster.client.clone(), SHOP);
    let unlabelled = json!({"metadata": {"labels": {"kubernetes.io/service-name": null}}});
    slices
        .patch("left-1", &PatchParams::default(), &Patch::Merge(unlabelled))
        .await?;
    let mut client = world.client().await?;
    eventually("the service to be without endpoints", async || {
        Ok(client.get(&path("services/left/proxy/name")).await?.status == 503)
    })
    .await
}

/// Waits until a backend is no longer asked.
struct Served<'a>(&'a Backend);

impl Served<'_> {
    async fn settle(&self) {
        loop {
            let before = self.0.served();
            tokio::time::sleep(Duration::from_millis(200)).await;
            if self.0.served() == before {
                return;
            }
        }
    }
}
