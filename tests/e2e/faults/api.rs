//! Faults of the API server and of the network before it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::rbac::v1::RoleBinding;
use serde_json::json;

use crate::support::bastion::Bastion;
use crate::support::client::Client;
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::load::{Load, Shape};
use crate::support::relay::Relay;
use crate::support::{eventually, within};
use crate::world::{SHOP, World, acceptor, bastion, path};

/// Enough callers to keep every answer in use, and few enough to leave the machine to the API
/// server.
const SHAPE: Shape = Shape {
    http1: 8,
    http2: 4,
    pause: Duration::from_millis(20),
    per_connection: 0,
};

/// Longer than an answer of the API is remembered.
const PAST_CACHE: Duration = Duration::from_secs(13);

pub(super) async fn fault_proxy(world: &World) -> Result<FaultProxy> {
    let tls =
        world
            .cluster
            .ca
            .server(world.cluster.folder.path(), "fault-proxy", &["127.0.0.1"])?;
    FaultProxy::start(api(world)?, &world.cluster.ca.file, acceptor(&tls)?).await
}

fn api(world: &World) -> Result<std::net::SocketAddr> {
    Ok(world
        .cluster
        .server
        .trim_start_matches("https://")
        .parse()?)
}

async fn bastion_by(world: &World, name: &str, address: std::net::SocketAddr) -> Result<Bastion> {
    let kubeconfig = world
        .cluster
        .bastion_kubeconfig(name, &format!("https://{address}"))
        .await?;
    bastion(&kubeconfig, &world.serving, &[])
}

/// Watches are tried again at growing intervals of at most 15 s.
async fn watches_recover(bastion: &Bastion) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(45);
    within(PATIENCE, "the watches to be well", async || {
        Ok(!bastion.readyz().await?.1.contains("[!]"))
    })
    .await
}

fn is_list(request: &Request<Incoming>, resource: &str) -> bool {
    request.uri().path().ends_with(resource)
        && !request.uri().query().unwrap_or_default().contains("watch")
}

fn is_review(request: &Request<Incoming>) -> bool {
    let path = request.uri().path();
    request.method() == Method::POST
        && (path.ends_with("/tokenreviews") || path.ends_with("/subjectaccessreviews"))
}

/// FINDINGS S11. First where it never was known, then on a relist with requests flowing.
pub async fn a_hanging_list_stops_no_other_watch(world: &mut World) -> Result<()> {
    /// A LIST is given up after a minute, and asked for again.
    const PATIENCE: Duration = Duration::from_secs(100);
    let proxy = fault_proxy(world).await?;
    proxy.inject(|request| is_list(request, "/pods").then_some(Fault::Hang));
    let hung = bastion_by(world, "hung", proxy.address).await?;
    eventually("the other watches to be up", async || {
        let report = hung.readyz().await?.1;
        let up = [
            "[+]nodes ok",
            "[+]services ok",
            "[+]endpointslices ok",
            "[-]pods pending",
        ];
        Ok(up.iter().all(|line| report.contains(line)))
    })
    .await?;
    proxy.heal();
    within(
        PATIENCE,
        "a LIST that hung to be asked for again",
        async || Ok(hung.readyz().await?.0 == 200),
    )
    .await?;

    let load = Load::start(&world.target(&hung), SHAPE).await?;
    load.more(200).await;
    let before = proxy.faults();
    proxy.inject(|request| {
        let pods = request.uri().path().ends_with("/pods");
        // Its watch cannot be resumed, so that it must list again.
        pods.then(|| {
            if is_list(request, "/pods") {
                Fault::Hang
            } else {
                Fault::Status(StatusCode::GONE)
            }
        })
    });
    proxy.cut();
    eventually("a LIST to hang", async || Ok(proxy.faults() >= before + 2)).await?;
    let service = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
    world.objects.service("meanwhile", service).await?;
    let mut client = Client::connect(
        hung.secure,
        &world.cluster.ca.file,
        Some(&world.token),
        None,
    )
    .await?;
    let known = eventually("a service that was made meanwhile", async || {
        Ok(client
            .get(&path("services/meanwhile/proxy/name"))
            .await?
            .status
            == 200)
    })
    .await;
    proxy.heal();
    let outcome = load.stop().await;
    println!("     the LIST of pods hung: {outcome}");
    known?;
    outcome.none_failed()
}

/// FINDINGS S1, L2: what is known stays in force while the API cannot answer; what it answers then
/// counts.
pub async fn reviews_answered_429_and_500_fail_no_hot_caller(world: &mut World) -> Result<()> {
    let proxy = fault_proxy(world).await?;
    let faulty = bastion_by(world, "faulty", proxy.address).await?;
    faulty.ready().await?;
    let leaver = world.account("faulty-leaver").await?;
    let target = world.target(&faulty);
    let load = Load::start(&target, SHAPE).await?;
    let mut leaver = Client::connect(faulty.secure, &target.ca, Some(&leaver), None).await?;
    ensure!(leaver.get(&target.path).await?.status == 200);
    load.more(200).await;

    let mut failed = 0;
    for fault in [
        Fault::RetryAfter(StatusCode::TOO_MANY_REQUESTS, 1),
        Fault::Status(StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let is_last = fault == Fault::Status(StatusCode::INTERNAL_SERVER_ERROR);
        let (began, before, name) = (Instant::now(), proxy.faults(), format!("{fault:?}"));
        proxy.inject(move |request| is_review(request).then(|| fault.clone()));
        if is_last {
            // The API knows, and cannot say it yet.
            world.objects.delete::<RoleBinding>("faulty-leaver").await?;
        }
        let newcomer = world.cluster.token(SHOP, "caller", None).await?;
        let mut newcomer =
            Client::connect(faulty.secure, &target.ca, Some(&newcomer), None).await?;
        let mut refused = 0;
        while began.elapsed() < PAST_CACHE {
            if leaver.get(&target.path).await?.status != 200 {
                failed += 1;
            }
            let answer = newcomer.get(&target.path).await?;
            ensure!(
                [429, 500, 503].contains(&answer.status.as_u16()),
                "{name}: an unknown one: {answer:?}"
            );
            refused += 1;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        println!(
            "     {name}: {} reviews, {refused} refused requests of a new caller",
            proxy.faults() - before
        );
        ensure!(
            proxy.faults() > before,
            "no review was asked for: nothing was tested"
        );
        proxy.heal();
        eventually("the newcomer to be let in", async || {
            Ok(newcomer.get(&target.path).await?.status == 200)
        })
        .await?;
    }
    eventually("the lost right to count", async || {
        Ok(leaver.get(&target.path).await?.status == 403)
    })
    .await?;
    let outcome = load.stop().await;
    println!(
        "     reviews answered with 429 and 500: {outcome}; of a slow caller, {failed} failed"
    );
    ensure!(
        failed == 0,
        "{failed} requests of a caller who asks four times a second failed"
    );
    outcome.none_failed()
}

/// FINDINGS S11: every connection to the API falls silent, those of reviews included.
pub async fn silently_dead_connections_to_the_api_are_replaced(world: &mut World) -> Result<()> {
    /// Bookmarks come every minute, so silence is noticed after some 90 s.
    const PATIENCE: Duration = Duration::from_secs(150);
    let relay = Relay::start(api(world)?).await?;
    let frozen = bastion_by(world, "frozen", relay.address).await?;
    frozen.ready().await?;
    let target = world.target(&frozen);
    let load = Load::start(&target, SHAPE).await?;
    load.more(200).await;
    // Callers who are new at the same time leave the bastion with many idle connections for
    // reviews.
    let newcomers = (0..8).map(async |_| -> Result<()> {
        let token = world.cluster.token(SHOP, "caller", None).await?;
        let mut client = Client::connect(frozen.secure, &target.ca, Some(&token), None).await?;
        ensure!(client.get(&target.path).await?.status == 200);
        Ok(())
    });
    futures::future::try_join_all(newcomers).await?;
    relay.freeze();
    println!("     {} connections to the API frozen", relay.open());
    let ports = json!([{"containerPort": 8080}]);
    world
        .objects
        .pod(
            "after-freeze",
            json!({}),
            world.namespace.address(11),
            ports,
        )
        .await?;
    let mut client = Client::connect(frozen.secure, &target.ca, Some(&world.token), None).await?;
    let began = Instant::now();
    let known = within(PATIENCE, "a pod made after the freeze", async || {
        Ok(client
            .get(&path("pods/after-freeze/proxy/name"))
            .await?
            .body
            == "web-1")
    })
    .await;
    let outcome = load.stop().await;
    println!(
        "     connections to the API frozen for {:.0?}: {outcome}",
        began.elapsed()
    );
    relay.cut();
    world.objects.delete_pod("after-freeze").await?;
    known?;
    watches_recover(&frozen).await?;
    outcome.none_failed()
}

/// FINDINGS L2, with the default cache times.
pub async fn an_api_server_down_for_a_minute_fails_no_request(world: &mut World) -> Result<()> {
    const OUTAGE: Duration = Duration::from_mins(1);
    let target = world.target(&world.bastion);
    let leaver = world.account("leaver").await?;
    let mut leaver = Client::connect(target.address, &target.ca, Some(&leaver), None).await?;
    eventually("the leaver to be let in", async || {
        Ok(leaver.get(&target.path).await?.status == 200)
    })
    .await?;
    let load = Load::start(&target, SHAPE).await?;
    load.more(200).await;

    world.cluster.stop_apiserver();
    let began = Instant::now();
    let mut stranger = Client::connect(target.address, &target.ca, Some("unknown"), None).await?;
    let mut failed = 0;
    while began.elapsed() < OUTAGE {
        let answer = stranger.get(&target.path).await?;
        ensure!(
            [401, 429, 500, 503].contains(&answer.status.as_u16()),
            "a stranger is let in: {answer:?}"
        );
        if leaver.get(&target.path).await?.status != 200 {
            failed += 1;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    world.cluster.start_apiserver().await?;
    load.more(500).await;

    let newcomer = world.cluster.token(SHOP, "caller", None).await?;
    let mut newcomer = Client::connect(target.address, &target.ca, Some(&newcomer), None).await?;
    eventually("a new token", async || {
        Ok(newcomer.get(&target.path).await?.status == 200)
    })
    .await?;
    world.objects.delete::<RoleBinding>("leaver").await?;
    eventually("the lost right to count", async || {
        Ok(leaver.get(&target.path).await?.status == 403)
    })
    .await?;
    let outcome = load.stop().await;
    println!(
        "     the API server down for {OUTAGE:?}: {outcome}; of a slow caller, {failed} failed"
    );
    watches_recover(&world.bastion).await?;
    ensure!(
        failed == 0,
        "{failed} requests of a caller who asks twice a second failed"
    );
    outcome.none_failed()
}

/// The API server runs on without its store, and answers reviews as it can.
pub async fn an_etcd_restart_fails_no_request(world: &mut World) -> Result<()> {
    let target = world.target(&world.bastion);
    let load = Load::start(&target, SHAPE).await?;
    load.more(200).await;
    world.cluster.stop_etcd();
    tokio::time::sleep(PAST_CACHE).await;
    world.cluster.start_etcd().await?;
    load.more(500).await;
    let outcome = load.stop().await;
    println!("     etcd down for {PAST_CACHE:?}: {outcome}");
    let newcomer = world.cluster.token(SHOP, "caller", None).await?;
    let mut newcomer = Client::connect(target.address, &target.ca, Some(&newcomer), None).await?;
    eventually("a new token", async || {
        Ok(newcomer.get(&target.path).await?.status == 200)
    })
    .await?;
    watches_recover(&world.bastion).await?;
    outcome.none_failed()
}
