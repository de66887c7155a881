//! Faults while tunnels are open and others are being opened.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::task::JoinSet;

use super::{account, client};
use crate::faults::{WEB, restart};
use crate::fixture::{Fixture, SHOP};
use crate::support::backend::Backend;
use crate::support::client::get_plain_over;
use crate::support::connect::{TunnelClient, Version};
use crate::support::eventually;

/// Maximum time for an answer or the end of a tunnel, on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

/// Open tunnel with a connection of HTTP/1.1 to an endpoint.
struct OpenTunnel {
    /// Name of the endpoint.
    endpoint: String,
    sender: http1::SendRequest<Empty<Bytes>>,
}

impl OpenTunnel {
    async fn new(client: &TunnelClient, authority: &str) -> Result<Self> {
        let tunnel = client.open(authority).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tunnel)).await?;
        tokio::spawn(connection);
        let mut tunnel = Self {
            endpoint: String::new(),
            sender,
        };
        tunnel.endpoint = tunnel.ask().await?;
        Ok(tunnel)
    }

    /// Returns the name of the endpoint.
    ///
    /// # Errors
    /// Returns an error if the tunnel has ended.
    async fn ask(&mut self) -> Result<String> {
        self.sender.ready().await?;
        let request = Request::get("/name")
            .header(header::HOST, "web")
            .body(Empty::new())?;
        let response = self.sender.send_request(request).await?;
        let body = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

/// Checks that exactly the tunnels to `dead` have ended, and drops these.
async fn ensure_ended(tunnels: &mut Vec<OpenTunnel>, dead: &str) -> Result<()> {
    let mut open = Vec::new();
    let mut ended = 0;
    for mut tunnel in tunnels.drain(..) {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, tunnel.ask()).await;
        let answer = answer.context("a tunnel neither answers nor ends")?;
        if tunnel.endpoint == dead {
            ensure!(answer.is_err(), "a tunnel to {dead} is open: {answer:?}");
            ended += 1;
        } else {
            let endpoint = &tunnel.endpoint;
            let answer =
                answer.with_context(|| format!("a tunnel to {endpoint} ended with {dead}"))?;
            ensure!(answer == *endpoint, "{endpoint} answered as {answer}");
            open.push(tunnel);
        }
    }
    ensure!(ended > 0, "there was no tunnel to {dead}");
    *tunnels = open;
    Ok(())
}

#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    stop: AtomicBool,
    failures: Mutex<BTreeMap<String, u64>>,
}

/// Opens tunnels one after the other, in several tasks. Dropping it stops them.
struct Opening {
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

impl Opening {
    /// Each tunnel carries one request. Its endpoint may die meanwhile, so that only the opening
    /// counts.
    fn start(clients: &[TunnelClient], authority: &str) -> Self {
        const TASKS_PER_CLIENT: usize = 3;
        /// So that an outage does not use a whole CPU.
        const PAUSE: Duration = Duration::from_millis(5);
        let counts = Arc::<Counts>::default();
        let mut tasks = JoinSet::new();
        for client in clients.iter().flat_map(|it| [it; TASKS_PER_CLIENT]) {
            let (client, authority) = (client.clone(), authority.to_owned());
            let counts = Arc::clone(&counts);
            tasks.spawn(async move {
                while !counts.stop.load(Ordering::Relaxed) {
                    match client.open(&authority).await {
                        Ok(tunnel) => {
                            let _ = get_plain_over(tunnel, "web", "/name").await;
                        }
                        Err(error) => {
                            let mut failures = counts
                                .failures
                                .lock()
                                .expect("no thread panics with the failures");
                            *failures.entry(format!("{error:#}")).or_default() += 1;
                        }
                    }
                    counts.opened.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        Self { counts, tasks }
    }

    /// Waits for a number of further tunnels.
    async fn wait_for(&self, tunnels: u64) -> Result<()> {
        let opened = || self.counts.opened.load(Ordering::Relaxed);
        let goal = opened() + tunnels;
        eventually("more tunnels", async || Ok(opened() >= goal)).await
    }

    /// Checks that no tunnel failed to open. Returns their number.
    async fn stop(mut self) -> Result<u64> {
        self.counts.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task?;
        }
        let failures = self.counts.failures.lock();
        let failures = failures.expect("no thread panics with the failures");
        ensure!(failures.is_empty(), "tunnels did not open: {failures:#?}");
        let opened = self.counts.opened.load(Ordering::Relaxed);
        ensure!(opened > 0, "no tunnel was opened");
        Ok(opened)
    }
}

/// Clients of both versions, and some open tunnels of each.
async fn open(
    fixture: &Fixture,
    user: &str,
    authority: &str,
    tunnels: usize,
) -> Result<(Vec<TunnelClient>, Vec<OpenTunnel>)> {
    let token = account(fixture, user).await?;
    let clients = VERSIONS.map(|version| client(fixture, &fixture.bastion, &token, version));
    let mut open = Vec::new();
    for client in &clients {
        eventually("the first tunnel", async || {
            Ok(client.open(authority).await.is_ok())
        })
        .await?;
        for _ in 0..tunnels {
            open.push(OpenTunnel::new(client, authority).await?);
        }
    }
    Ok((clients.into(), open))
}

pub async fn killed_endpoints_end_only_their_own_tunnels(fixture: &mut Fixture) -> Result<()> {
    let authority = format!("web.{SHOP}.svc:80");
    let (clients, mut tunnels) = open(fixture, "killing", &authority, 6).await?;
    let opening = Opening::start(&clients, &authority);
    opening.wait_for(30).await?;
    // The third endpoint stays, and one of the two others is dead at a time.
    for (name, last) in &WEB[..2] {
        let backend = fixture.backends.remove(*name);
        backend.context("the backend runs")?.kill().await;
        ensure_ended(&mut tunnels, name).await?;
        opening.wait_for(100).await?;
        restart(fixture, (name, *last)).await?;
        opening.wait_for(30).await?;
    }
    for tunnel in &mut tunnels {
        ensure!(tunnel.ask().await? == WEB[2].0);
    }
    ensure!(tunnels.len() >= VERSIONS.len());
    let opened = opening.stop().await?;
    println!("     two of three endpoints killed in turn: {opened} tunnels opened");
    fixture.endpoints("services/web", 3).await
}

/// Each pod is terminating before its process exits. Its tunnels stay open until then.
pub async fn rolling_update_fails_no_new_tunnel(fixture: &mut Fixture) -> Result<()> {
    const REPLICAS: u8 = 3;
    const FIRST: u8 = 3;
    let spec = json!({"selector": {"app": "shifted"}, "ports": [{"port": 80, "targetPort": 8080}]});
    fixture.objects.service("shifted", spec).await?;
    let run = async |name: &str, last: u8| -> Result<Backend> {
        let backend = Backend::start(&fixture.namespace, last, 8080, name, None)?;
        let (labels, address) = (json!({"app": "shifted"}), fixture.namespace.address(last));
        let objects = &fixture.objects;
        objects.pod(name, labels, address, json!([])).await?;
        Ok(backend)
    };
    let mut old = Vec::new();
    for replica in 0..REPLICAS {
        let name = format!("shifted-{replica}");
        old.push((name.clone(), run(&name, FIRST + replica).await?));
    }
    fixture.wait_until_known("services/shifted").await?;
    let authority = format!("shifted.{SHOP}.svc:80");
    let (clients, mut tunnels) = open(fixture, "shifting", &authority, 0).await?;
    let opening = Opening::start(&clients, &authority);
    let mut new = Vec::new();
    for (replica, (name, process)) in (REPLICAS..).zip(old) {
        eventually("a tunnel to each old pod", async || {
            tunnels.push(OpenTunnel::new(&clients[0], &authority).await?);
            tunnels.push(OpenTunnel::new(&clients[1], &authority).await?);
            Ok(tunnels.iter().any(|tunnel| tunnel.endpoint == name))
        })
        .await?;
        // As in a Deployment, the new pod serves before an old one is deleted.
        let backend = run(&format!("shifted-{replica}"), FIRST + replica).await?;
        eventually("a tunnel to the new pod", async || Ok(backend.served() > 0)).await?;
        new.push(backend);
        fixture.objects.terminate(&name).await?;
        opening.wait_for(30).await?;
        for tunnel in &mut tunnels {
            let answer = tunnel.ask().await.context("while a pod is terminating")?;
            ensure!(answer == tunnel.endpoint);
        }
        process.kill().await;
        ensure_ended(&mut tunnels, &name).await?;
        fixture.objects.delete_pod(&name).await?;
        opening.wait_for(30).await?;
    }
    let opened = opening.stop().await?;
    println!("     three pods replaced one after the other: {opened} tunnels opened");
    for replica in REPLICAS..2 * REPLICAS {
        let name = format!("shifted-{replica}");
        fixture.objects.delete_pod(&name).await?;
    }
    Ok(())
}

/// The outage is longer than the default TTLs of reviews, and an endpoint dies during it.
pub async fn tunnels_open_without_the_api(fixture: &mut Fixture) -> Result<()> {
    const OUTAGE: Duration = Duration::from_secs(15);
    let authority = format!("web.{SHOP}.svc:80");
    let (clients, mut tunnels) = open(fixture, "api-outage", &authority, 6).await?;
    let opening = Opening::start(&clients, &authority);
    opening.wait_for(30).await?;
    fixture.cluster.stop_apiserver();
    tokio::time::sleep(OUTAGE).await;
    for tunnel in &mut tunnels {
        ensure!(tunnel.ask().await? == tunnel.endpoint);
    }
    let (name, last) = WEB[0];
    let backend = fixture.backends.remove(name);
    backend.context("the backend runs")?.kill().await;
    ensure_ended(&mut tunnels, name).await?;
    opening.wait_for(100).await?;
    restart(fixture, (name, last)).await?;
    fixture.cluster.start_apiserver().await?;
    opening.wait_for(100).await?;
    for tunnel in &mut tunnels {
        ensure!(tunnel.ask().await? == tunnel.endpoint);
    }
    let opened = opening.stop().await?;
    println!("     an API server down for {OUTAGE:?}: {opened} tunnels opened");
    fixture.endpoints("services/web", 3).await
}
