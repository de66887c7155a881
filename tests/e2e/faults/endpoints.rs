//! Failures of endpoints: killed and stopped processes, black holes, rolling updates, readiness
//! flaps.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::fixture::{Fixture, bastion, path};
use crate::support::backend::Backend;
use crate::support::eventually;
use crate::support::load::{Load, Shape};
use crate::support::process::BackendProcess;

/// Endpoints of `services/web`: pod and last octet of the address.
pub const WEB: [(&str, u8); 3] = [("web-1", 11), ("web-2", 12), ("web-3", 13)];

/// Interval of requests of a load at a fixed rate.
const INTERVAL: Duration = Duration::from_millis(5);
const CONNECTIONS: usize = 8;

/// Starts the backend of an endpoint again, and ends a running one before.
pub async fn restart(fixture: &mut Fixture, (name, last): (&str, u8)) -> Result<()> {
    if let Some(running) = fixture.backends.remove(name) {
        running.kill().await;
    }
    fixture.backends.insert(
        name.into(),
        Backend::start(&fixture.namespace, last, 8080, name, None)?,
    );
    Ok(())
}

/// Two of three processes are killed in quick succession. The third serves requests that both have
/// aborted.
pub async fn processes_killed_in_turn_fail_no_request(fixture: &mut Fixture) -> Result<()> {
    const ROUNDS: usize = 40;
    let mut target = fixture.target(&fixture.bastion);
    target.path = path("services/web/proxy/slow");
    let load = Load::start(
        &target,
        Shape {
            http1: 64,
            http2: 8,
            ..Shape::default()
        },
    )
    .await?;
    load.wait_for_requests(300).await;
    for round in 0..ROUNDS {
        let pair = [WEB[round % 3], WEB[(round + 1) % 3]];
        for (name, _) in pair {
            fixture
                .backends
                .remove(name)
                .context("the backend runs")?
                .kill()
                .await;
            load.wait_for_requests(30).await;
        }
        for endpoint in pair {
            restart(fixture, endpoint).await?;
        }
        load.wait_for_requests(300).await;
    }
    let outcome = load.stop().await;
    println!("     two of three processes killed and restarted in turn, {ROUNDS} times: {outcome}");
    fixture.endpoints("services/web", 3).await?;
    outcome.ensure_none_failed()
}

/// Two endpoints never respond to a SYN, and a serving one loses all packets for some seconds,
/// including those of open connections.
pub async fn black_holed_addresses_fail_no_request(fixture: &mut Fixture) -> Result<()> {
    const BLACKOUT: u64 = 800;
    const HOLES: [u8; 2] = [101, 102];
    for last in HOLES {
        let address = fixture.namespace.address(last);
        fixture.namespace.black_hole(address)?;
        let ports = json!([{"name": "http", "containerPort": 8080}]);
        fixture
            .objects
            .pod(
                &format!("hole-{last}"),
                json!({"app": "web"}),
                address,
                ports,
            )
            .await?;
    }
    let load =
        Load::start_at_rate(&fixture.target(&fixture.bastion), CONNECTIONS, INTERVAL).await?;
    load.wait_for_requests(400).await;
    let address = fixture.namespace.address(12);
    fixture.namespace.black_hole(address)?;
    load.wait_for_requests(BLACKOUT).await;
    fixture.namespace.heal(address)?;
    load.wait_for_requests(400).await;
    let outcome = load.stop().await;
    println!("     two of five addresses black-holed, and a third for some seconds: {outcome}");
    for last in HOLES {
        fixture.objects.delete_pod(&format!("hole-{last}")).await?;
        fixture.namespace.heal(fixture.namespace.address(last))?;
    }
    fixture.endpoints("services/web", 3).await?;
    outcome.ensure_none_failed()
}

/// Requests that a process holds when it is stopped wait for it; others use another endpoint.
pub async fn stopped_process_gets_no_new_requests(fixture: &mut Fixture) -> Result<()> {
    const REQUESTS: u64 = 600;
    const PROBES: usize = 10;
    fixture
        .backends
        .remove("web-2")
        .context("the backend runs")?
        .kill()
        .await;
    let process = BackendProcess::start(&fixture.namespace, 12, 8080, "web-2")?;
    fixture.endpoints("services/web", 3).await?;
    // A new bastion: endpoints that were slow lately have longer timeouts.
    let kubeconfig = fixture
        .cluster
        .bastion_kubeconfig("unbiased", &fixture.cluster.server)
        .await?;
    let unbiased = bastion(&kubeconfig, &fixture.serving, &[])?;
    unbiased.ready().await?;
    let load = Load::start_at_rate(&fixture.target(&unbiased), CONNECTIONS, INTERVAL).await?;
    load.wait_for_requests(REQUESTS).await;
    process.freeze()?;
    let ejected = r#"endpoints_ejected{reason="stalled"} 1"#;
    eventually("the stopped process to be ejected", async || {
        Ok(unbiased.metrics().await?.contains(ejected))
    })
    .await?;
    load.wait_for_requests(REQUESTS).await;
    let at_first = process.waiting()?;
    load.wait_for_requests(REQUESTS).await;
    let then = process.waiting()?;
    process.thaw()?;
    load.wait_for_requests(REQUESTS).await;
    let outcome = load.stop().await;
    println!(
        "     one of three processes frozen: {outcome}; {at_first} requests waited for it, and {} more of the next {REQUESTS}",
        then.saturating_sub(at_first)
    );
    drop(process);
    restart(fixture, ("web-2", 12)).await?;
    fixture.endpoints("services/web", 3).await?;
    outcome.ensure_none_failed()?;
    ensure!(at_first > 0, "no request reached the stopped process");
    ensure!(then <= at_first + PROBES, "it is still sent requests");
    Ok(())
}

/// Each pod is terminating before its process exits, and exits without a delay.
pub async fn rolling_update_fails_no_request(fixture: &mut Fixture) -> Result<()> {
    const REPLICAS: u8 = 3;
    const FIRST: u8 = 25;
    let service =
        json!({"selector": {"app": "rolled"}, "ports": [{"port": 80, "targetPort": 8080}]});
    fixture.objects.service("rolled", service).await?;
    let ports = json!([{"containerPort": 8080}]);
    let mut running = Vec::new();
    let mut load = None;
    for generation in 0..4 {
        for replica in 0..REPLICAS {
            let (name, last) = (
                format!("rolled-{generation}-{replica}"),
                FIRST + generation % 2 * REPLICAS + replica,
            );
            let backend = Backend::start(&fixture.namespace, last, 8080, &name, None)?;
            fixture
                .objects
                .pod(
                    &name,
                    json!({"app": "rolled"}),
                    fixture.namespace.address(last),
                    ports.clone(),
                )
                .await?;
            // As in a Deployment, the new pod serves before an old one is deleted.
            eventually("a request to the new pod", async || {
                if load.is_none() {
                    fixture.wait_until_known("services/rolled").await?;
                    return Ok(true);
                }
                Ok(backend.served() > 0)
            })
            .await?;
            running.push((name, backend));
            if running.len() > usize::from(REPLICAS) {
                let (old, process) = running.remove(0);
                fixture.objects.terminate(&old).await?;
                process.kill().await;
                fixture.objects.delete_pod(&old).await?;
            }
        }
        if load.is_none() {
            let mut target = fixture.target(&fixture.bastion);
            target.path = path("services/rolled/proxy/name");
            load = Some(
                Load::start(
                    &target,
                    Shape {
                        http1: 16,
                        http2: 4,
                        ..Shape::default()
                    },
                )
                .await?,
            );
        }
    }
    let outcome = load
        .context("the first generation has started")?
        .stop()
        .await;
    println!("     nine pods replaced one after the other: {outcome}");
    for (name, _) in running {
        fixture.objects.delete_pod(&name).await?;
    }
    outcome.ensure_none_failed()
}

pub async fn readiness_flaps_fail_no_request(fixture: &mut Fixture) -> Result<()> {
    const FLAPS: usize = 60;
    let load = Load::start(
        &fixture.target(&fixture.bastion),
        Shape {
            http1: 16,
            http2: 4,
            ..Shape::default()
        },
    )
    .await?;
    for flap in 0..FLAPS {
        // One of three stays ready; without any, a 503 is correct.
        fixture.objects.set_ready("web-2", flap % 2 == 1).await?;
        fixture.objects.set_ready("web-3", flap % 3 == 2).await?;
    }
    for name in ["web-2", "web-3"] {
        fixture.objects.set_ready(name, true).await?;
    }
    let outcome = load.stop().await;
    println!("     two of three endpoints toggled {FLAPS} times: {outcome}");
    fixture.endpoints("services/web", 3).await?;
    outcome.ensure_none_failed()
}
