//! `kube-bastion proxy` with several API servers: one of two is killed, and three are discovered.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::side_by_side::start;
use crate::fixture::{Fixture, path};
use crate::support::client::get_plain;
use crate::support::control_plane::ControlPlane;
use crate::support::eventually;

/// Number of clients that send requests without a pause.
const CLIENTS: usize = 8;
/// Number of requests before and after the kill.
const REQUESTS: usize = 500;

pub async fn proxy_fails_no_read_when_an_api_server_is_killed(fixture: &mut Fixture) -> Result<()> {
    let cluster = &fixture.cluster;
    let another = cluster.another_apiserver(|binary| Command::new(binary));
    let (address, other) = another.await?;
    let flags = [
        format!("--kubeconfig={}", cluster.admin_kubeconfig().display()),
        format!("--server={}", cluster.server),
        format!("--server=https://{address}"),
        "--port=0".to_owned(),
    ];
    let ours = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    let (_proxy, proxy) = start(ours, &flags).await?;
    let (served, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let cut = Arc::<AtomicUsize>::default();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (served, stop) = (Arc::clone(&served), Arc::clone(&stop));
        let cut = Arc::clone(&cut);
        clients.spawn(async move {
            let path = path("services/web");
            while !stop.load(Ordering::Relaxed) {
                match get_plain(proxy, &path).await {
                    Ok((status, body)) => {
                        ensure!(status == 200, "{status} {body}");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) if is_cut(&error) => drop(cut.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
    }
    let more = async |clients: &mut JoinSet<Result<()>>| {
        let goal = served.load(Ordering::Relaxed) + REQUESTS;
        eventually("the requests", async || {
            if let Some(ended) = clients.try_join_next() {
                ended??;
            }
            Ok(served.load(Ordering::Relaxed) >= goal)
        })
        .await
    };
    more(&mut clients).await.context("with two servers")?;
    drop(other);
    more(&mut clients).await.context("after the kill")?;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    // A response that had begun cannot be repeated: each client may have waited for the rest of one.
    let cut = cut.load(Ordering::Relaxed);
    ensure!(cut <= CLIENTS, "{cut} responses were cut");
    Ok(())
}

/// `--discover` connects to the addresses of the EndpointSlice, which no certificate has, and
/// verifies the servers by the name of their Service.
pub async fn proxy_discovers_the_api_servers(fixture: &mut Fixture) -> Result<()> {
    let cluster = &fixture.cluster;
    let plane = ControlPlane::start(cluster, &fixture.namespace).await?;
    let flags = [
        format!("--kubeconfig={}", cluster.admin_kubeconfig().display()),
        "--discover".to_owned(),
        "--port=0".to_owned(),
    ];
    let ours = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    let (_proxy, proxy) = start(ours, &flags).await?;
    // Nobody else asks for this resource.
    let count = || plane.requests(cluster, "podtemplates", "GET");
    let before = count().await?;
    for _ in 0..10 * plane.servers.len() {
        let path = "/api/v1/namespaces/default/podtemplates/none";
        let (status, body) = get_plain(proxy, path).await?;
        ensure!(status == 404, "{status} {body}");
    }
    let after = count().await?;
    let shares = after.iter().zip(&before);
    let shares: Vec<_> = shares.map(|(after, before)| after - before).collect();
    println!("     GET requests: {shares:?}");
    ensure!(shares.iter().all(|share| *share > 0), "{shares:?}");
    Ok(())
}

/// Returns true if a response ended within its body.
fn is_cut(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        let error = cause.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof)
    })
}
