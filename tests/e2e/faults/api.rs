//! Failures of the API server and of the network in front of it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::rbac::v1::RoleBinding;
use serde_json::json;

use crate::fixture::{Fixture, SHOP, acceptor, bastion, path};
use crate::support::bastion::Bastion;
use crate::support::client::Client;
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::load::{Load, Shape};
use crate::support::relay::Relay;
use crate::support::{eventually, within};

/// Enough connections to keep all results in the cache, and few enough not to starve the API
/// server.
const SHAPE: Shape = Shape {
    http1: 8,
    http2: 4,
    pause: Duration::from_millis(20),
    per_connection: 0,
};

/// Time after which cached results have expired.
const CACHE_EXPIRY: Duration = Duration::from_secs(13);

pub(super) async fn fault_proxy(fixture: &Fixture) -> Result<FaultProxy> {
    let tls =
        fixture
            .cluster
            .ca
            .server(fixture.cluster.folder.path(), "fault-proxy", &["127.0.0.1"])?;
    FaultProxy::start(api(fixture)?, &fixture.cluster.ca.file, acceptor(&tls)?).await
}

fn api(fixture: &Fixture) -> Result<std::net::SocketAddr> {
    Ok(fixture
        .cluster
        .server
        .trim_start_matches("https://")
        .parse()?)
}

async fn bastion_by(
    fixture: &Fixture,
    name: &str,
    address: std::net::SocketAddr,
) -> Result<Bastion> {
    let kubeconfig = fixture
        .cluster
        .bastion_kubeconfig(name, &format!("https://{address}"))
        .await?;
    bastion(&kubeconfig, &fixture.serving, &[])
}

/// Watches are retried at growing intervals of at most 15 s.
async fn watches_recover(bastion: &Bastion) -> Result<()> {
    const RECOVERY_TIMEOUT: Duration = Duration::from_secs(45);
    within(RECOVERY_TIMEOUT, "healthy watches", async || {
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

/// First during the initial list, then during a relist under load.
pub async fn hanging_list_does_not_stop_other_watches(fixture: &mut Fixture) -> Result<()> {
    /// A LIST times out after a minute and is retried.
    const RECOVERY_TIMEOUT: Duration = Duration::from_secs(100);
    let proxy = fault_proxy(fixture).await?;
    proxy.inject(|request| is_list(request, "/pods").then_some(Fault::Hang));
    let hung = bastion_by(fixture, "hung", proxy.address).await?;
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
        RECOVERY_TIMEOUT,
        "a retry of the hanging LIST",
        async || Ok(hung.readyz().await?.0 == 200),
    )
    .await?;

    let load = Load::start(&fixture.target(&hung), SHAPE).await?;
    load.wait_for_requests(200).await;
    let before = proxy.faults();
    proxy.inject(|request| {
        let pods = request.uri().path().ends_with("/pods");
        // The watch cannot be resumed, which forces a relist.
        pods.then(|| {
            if is_list(request, "/pods") {
                Fault::Hang
            } else {
                Fault::Status(StatusCode::GONE)
            }
        })
    });
    proxy.cut();
    eventually("a hanging LIST", async || Ok(proxy.faults() >= before + 2)).await?;
    let service = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
    fixture.objects.service("meanwhile", service).await?;
    let mut client = Client::connect(
        hung.secure,
        &fixture.cluster.ca.file,
        Some(&fixture.token),
        None,
    )
    .await?;
    let known = eventually(
        "a service that was created during the failure",
        async || {
            Ok(client
                .get(&path("services/meanwhile/proxy/name"))
                .await?
                .status
                == 200)
        },
    )
    .await;
    proxy.heal();
    let outcome = load.stop().await;
    println!("     the LIST of pods hung: {outcome}");
    known?;
    outcome.ensure_none_failed()
}

/// Cached results stay valid while the API rejects reviews; later results replace them.
pub async fn rejected_reviews_fail_no_cached_caller(fixture: &mut Fixture) -> Result<()> {
    let proxy = fault_proxy(fixture).await?;
    let faulty = bastion_by(fixture, "faulty", proxy.address).await?;
    faulty.ready().await?;
    let leaver = fixture.account("faulty-leaver").await?;
    let target = fixture.target(&faulty);
    let load = Load::start(&target, SHAPE).await?;
    let mut leaver = Client::connect(faulty.secure, &target.ca, Some(&leaver), None).await?;
    ensure!(leaver.get(&target.path).await?.status == 200);
    load.wait_for_requests(200).await;

    let mut failed = 0;
    for fault in [
        Fault::RetryAfter(StatusCode::TOO_MANY_REQUESTS, 1),
        Fault::Status(StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let is_last = fault == Fault::Status(StatusCode::INTERNAL_SERVER_ERROR);
        let (began, before, name) = (Instant::now(), proxy.faults(), format!("{fault:?}"));
        proxy.inject(move |request| is_review(request).then(|| fault.clone()));
        if is_last {
            // The object changes while the API rejects reviews.
            fixture
                .objects
                .delete::<RoleBinding>("faulty-leaver")
                .await?;
        }
        let newcomer = fixture.cluster.token(SHOP, "caller", None).await?;
        let mut newcomer =
            Client::connect(faulty.secure, &target.ca, Some(&newcomer), None).await?;
        let mut refused = 0;
        while began.elapsed() < CACHE_EXPIRY {
            if leaver.get(&target.path).await?.status != 200 {
                failed += 1;
            }
            let response = newcomer.get(&target.path).await?;
            ensure!(
                [429, 500, 503].contains(&response.status.as_u16()),
                "{name}: an unknown one: {response:?}"
            );
            refused += 1;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        println!(
            "     {name}: {} reviews, {refused} refused requests of a new caller",
            proxy.faults() - before
        );
        ensure!(proxy.faults() > before, "no review was sent");
        proxy.heal();
        eventually("access of the new caller", async || {
            Ok(newcomer.get(&target.path).await?.status == 200)
        })
        .await?;
    }
    eventually("the revoked permission to be denied", async || {
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
    outcome.ensure_none_failed()
}

/// All connections to the API become silent, including those of reviews.
pub async fn replaces_silently_dead_connections_to_the_api(fixture: &mut Fixture) -> Result<()> {
    /// Bookmarks arrive every minute, and silence is detected after about 90 s.
    const RECOVERY_TIMEOUT: Duration = Duration::from_secs(150);
    let relay = Relay::start(api(fixture)?).await?;
    let frozen = bastion_by(fixture, "frozen", relay.address).await?;
    frozen.ready().await?;
    let target = fixture.target(&frozen);
    let load = Load::start(&target, SHAPE).await?;
    load.wait_for_requests(200).await;
    // Many concurrent new callers leave many idle connections for reviews.
    let newcomers = (0..8).map(async |_| -> Result<()> {
        let token = fixture.cluster.token(SHOP, "caller", None).await?;
        let mut client = Client::connect(frozen.secure, &target.ca, Some(&token), None).await?;
        ensure!(client.get(&target.path).await?.status == 200);
        Ok(())
    });
    futures::future::try_join_all(newcomers).await?;
    relay.freeze();
    println!("     {} connections to the API frozen", relay.open());
    let ports = json!([{"containerPort": 8080}]);
    fixture
        .objects
        .pod(
            "after-freeze",
            json!({}),
            fixture.namespace.address(11),
            ports,
        )
        .await?;
    let mut client = Client::connect(frozen.secure, &target.ca, Some(&fixture.token), None).await?;
    let began = Instant::now();
    let known = within(
        RECOVERY_TIMEOUT,
        "a pod made after the freeze",
        async || {
            Ok(client
                .get(&path("pods/after-freeze/proxy/name"))
                .await?
                .body
                == "web-1")
        },
    )
    .await;
    let outcome = load.stop().await;
    println!(
        "     connections to the API frozen for {:.0?}: {outcome}",
        began.elapsed()
    );
    relay.cut();
    fixture.objects.delete_pod("after-freeze").await?;
    known?;
    watches_recover(&frozen).await?;
    outcome.ensure_none_failed()
}

/// Uses the default cache TTLs.
pub async fn api_outage_of_a_minute_fails_no_request(fixture: &mut Fixture) -> Result<()> {
    const OUTAGE: Duration = Duration::from_mins(1);
    let target = fixture.target(&fixture.bastion);
    let leaver = fixture.account("leaver").await?;
    let mut leaver = Client::connect(target.address, &target.ca, Some(&leaver), None).await?;
    eventually("access of the caller that will be removed", async || {
        Ok(leaver.get(&target.path).await?.status == 200)
    })
    .await?;
    let load = Load::start(&target, SHAPE).await?;
    load.wait_for_requests(200).await;

    fixture.cluster.stop_apiserver();
    let began = Instant::now();
    let mut unauthenticated =
        Client::connect(target.address, &target.ca, Some("unknown"), None).await?;
    let mut failed = 0;
    while began.elapsed() < OUTAGE {
        let response = unauthenticated.get(&target.path).await?;
        ensure!(
            [401, 429, 500, 503].contains(&response.status.as_u16()),
            "an unknown caller has access: {response:?}"
        );
        if leaver.get(&target.path).await?.status != 200 {
            failed += 1;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    fixture.cluster.start_apiserver().await?;
    load.wait_for_requests(500).await;

    let newcomer = fixture.cluster.token(SHOP, "caller", None).await?;
    let mut newcomer = Client::connect(target.address, &target.ca, Some(&newcomer), None).await?;
    eventually("a new token", async || {
        Ok(newcomer.get(&target.path).await?.status == 200)
    })
    .await?;
    fixture.objects.delete::<RoleBinding>("leaver").await?;
    eventually("the revoked permission to be denied", async || {
        Ok(leaver.get(&target.path).await?.status == 403)
    })
    .await?;
    let outcome = load.stop().await;
    println!(
        "     the API server down for {OUTAGE:?}: {outcome}; of a slow caller, {failed} failed"
    );
    watches_recover(&fixture.bastion).await?;
    ensure!(
        failed == 0,
        "{failed} requests of a caller who asks twice a second failed"
    );
    outcome.ensure_none_failed()
}

/// The API server keeps running without its store.
pub async fn etcd_restart_fails_no_request(fixture: &mut Fixture) -> Result<()> {
    let target = fixture.target(&fixture.bastion);
    let load = Load::start(&target, SHAPE).await?;
    load.wait_for_requests(200).await;
    fixture.cluster.stop_etcd();
    tokio::time::sleep(CACHE_EXPIRY).await;
    fixture.cluster.start_etcd().await?;
    load.wait_for_requests(500).await;
    let outcome = load.stop().await;
    println!("     etcd down for {CACHE_EXPIRY:?}: {outcome}");
    let newcomer = fixture.cluster.token(SHOP, "caller", None).await?;
    let mut newcomer = Client::connect(target.address, &target.ca, Some(&newcomer), None).await?;
    eventually("a new token", async || {
        Ok(newcomer.get(&target.path).await?.status == 200)
    })
    .await?;
    watches_recover(&fixture.bastion).await?;
    outcome.ensure_none_failed()
}
