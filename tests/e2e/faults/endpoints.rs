//! Faults of endpoints: processes die or freeze, addresses swallow packets, pods are replaced,
//! readiness flaps.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::support::backend::Backend;
use crate::support::load::{Load, Shape};
use crate::support::process::BackendProcess;
use crate::world::{World, bastion, path};

/// The endpoints of `services/web`, by pod and last octet of the address.
const WEB: [(&str, u8); 3] = [("web-1", 11), ("web-2", 12), ("web-3", 13)];

/// Rate of a load that does not wait for its answers.
const INTERVAL: Duration = Duration::from_millis(5);
const CONNECTIONS: usize = 8;

async fn restart(world: &mut World, (name, last): (&str, u8)) -> Result<()> {
    if let Some(running) = world.backends.remove(name) {
        running.kill().await;
    }
    world.backends.insert(
        name.into(),
        Backend::start(&world.namespace, last, 8080, name, None)?,
    );
    Ok(())
}

/// FINDINGS L1: two of three processes end shortly one after the other, and a request that meets
/// both deaths is served by the third.
pub async fn processes_killed_in_turn_fail_no_request(world: &mut World) -> Result<()> {
    const ROUNDS: usize = 40;
    let mut target = world.target(&world.bastion);
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
    load.more(300).await;
    for round in 0..ROUNDS {
        let pair = [WEB[round % 3], WEB[(round + 1) % 3]];
        for (name, _) in pair {
            world
                .backends
                .remove(name)
                .context("each runs")?
                .kill()
                .await;
            load.more(30).await;
        }
        for endpoint in pair {
            restart(world, endpoint).await?;
        }
        load.more(300).await;
    }
    let outcome = load.stop().await;
    println!("     two of three processes killed and restarted in turn, {ROUNDS} times: {outcome}");
    world.endpoints("services/web", 3).await?;
    outcome.none_failed()
}

/// Two endpoints never answer a SYN, and one that serves stops hearing anything for some seconds,
/// open connections included.
pub async fn black_holed_addresses_fail_no_request(world: &mut World) -> Result<()> {
    const BLACKOUT: u64 = 800;
    for last in [201, 202] {
        let address = world.namespace.address(last);
        world.namespace.black_hole(address)?;
        let ports = json!([{"name": "http", "containerPort": 8080}]);
        world
            .objects
            .pod(
                &format!("hole-{last}"),
                json!({"app": "web"}),
                address,
                ports,
            )
            .await?;
    }
    let load = Load::start_at_rate(&world.target(&world.bastion), CONNECTIONS, INTERVAL).await?;
    load.more(400).await;
    let address = world.namespace.address(12);
    world.namespace.black_hole(address)?;
    load.more(BLACKOUT).await;
    world.namespace.heal(address)?;
    load.more(400).await;
    let outcome = load.stop().await;
    println!("     two of five addresses black-holed, and a third for some seconds: {outcome}");
    for last in [201, 202] {
        world.objects.delete_pod(&format!("hole-{last}")).await?;
        world.namespace.heal(world.namespace.address(last))?;
    }
    world.endpoints("services/web", 3).await?;
    outcome.none_failed()
}

/// FINDINGS L4: requests that the process holds when it freezes wait for it; the others go
/// elsewhere.
pub async fn a_frozen_process_gets_no_new_requests(world: &mut World) -> Result<()> {
    const REQUESTS: u64 = 600;
    const PROBES: usize = 10;
    world
        .backends
        .remove("web-2")
        .context("it runs")?
        .kill()
        .await;
    let process = BackendProcess::start(&world.namespace, 12, 8080, "web-2")?;
    world.endpoints("services/web", 3).await?;
    // A bastion that has not met other faults: an endpoint that lately was slow is given more time.
    let kubeconfig = world
        .cluster
        .bastion_kubeconfig("unbiased", &world.cluster.server)
        .await?;
    let unbiased = bastion(&kubeconfig, &world.serving, &[])?;
    unbiased.ready().await?;
    let load = Load::start_at_rate(&world.target(&unbiased), CONNECTIONS, INTERVAL).await?;
    load.more(REQUESTS).await;
    process.freeze()?;
    // Long enough to be noticed.
    load.more(REQUESTS).await;
    let at_first = process.waiting()?;
    load.more(REQUESTS).await;
    let then = process.waiting()?;
    process.thaw()?;
    load.more(REQUESTS).await;
    let outcome = load.stop().await;
    println!(
        "     one of three processes frozen: {outcome}; {at_first} requests waited for it, and {} more of the next {REQUESTS}",
        then.saturating_sub(at_first)
    );
    drop(process);
    restart(world, ("web-2", 12)).await?;
    world.endpoints("services/web", 3).await?;
    outcome.none_failed()?;
    ensure!(
        at_first > 0,
        "no request reached the process: nothing was tested"
    );
    ensure!(then <= at_first + PROBES, "it is still sent requests");
    Ok(())
}

/// Each pod is terminating before its process ends, and ends without waiting for anybody to have
/// noticed.
pub async fn a_rolling_update_fails_no_request(world: &mut World) -> Result<()> {
    const REPLICAS: u8 = 3;
    const FIRST: u8 = 25;
    let service =
        json!({"selector": {"app": "rolled"}, "ports": [{"port": 80, "targetPort": 8080}]});
    world.objects.service("rolled", service).await?;
    let ports = json!([{"containerPort": 8080}]);
    let mut running = Vec::new();
    let mut load = None;
    for generation in 0..4 {
        for replica in 0..REPLICAS {
            let (name, last) = (
                format!("rolled-{generation}-{replica}"),
                FIRST + generation % 2 * REPLICAS + replica,
            );
            let backend = Backend::start(&world.namespace, last, 8080, &name, None)?;
            world
                .objects
                .pod(
                    &name,
                    json!({"app": "rolled"}),
                    world.namespace.address(last),
                    ports.clone(),
                )
                .await?;
            // As a Deployment does it: the new one serves before an old one goes.
            crate::support::eventually("the new pod to be asked", async || {
                if load.is_none() {
                    world.known("services/rolled").await?;
                    return Ok(true);
                }
                Ok(backend.served() > 0)
            })
            .await?;
            running.push((name, backend));
            if running.len() > usize::from(REPLICAS) {
                let (old, process) = running.remove(0);
                world.objects.terminate(&old).await?;
                process.kill().await;
                world.objects.delete_pod(&old).await?;
            }
        }
        if load.is_none() {
            let mut target = world.target(&world.bastion);
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
        .context("it was started with the first generation")?
        .stop()
        .await;
    println!("     nine pods replaced one after the other: {outcome}");
    for (name, _) in running {
        world.objects.delete_pod(&name).await?;
    }
    outcome.none_failed()
}

pub async fn readiness_flaps_fail_no_request(world: &mut World) -> Result<()> {
    const FLAPS: usize = 60;
    let load = Load::start(
        &world.target(&world.bastion),
        Shape {
            http1: 16,
            http2: 4,
            ..Shape::default()
        },
    )
    .await?;
    for flap in 0..FLAPS {
        // One of three stays ready: with none, a 503 would be right.
        world.objects.set_ready("web-2", flap % 2 == 1).await?;
        world.objects.set_ready("web-3", flap % 3 == 2).await?;
    }
    for name in ["web-2", "web-3"] {
        world.objects.set_ready(name, true).await?;
    }
    let outcome = load.stop().await;
    println!("     two of three endpoints toggled {FLAPS} times: {outcome}");
    world.endpoints("services/web", 3).await?;
    outcome.none_failed()
}
