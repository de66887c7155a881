//! Faults while connections are open and others are being opened, through tunnels and a load
//! balancer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{account, client};
use crate::faults::{WEB, restart};
use crate::fixture::{Fixture, SHOP};
use crate::loadbalancer::{self, Services};
use crate::support::backend::Backend;
use crate::support::bastion::Bastion;
use crate::support::client::get_plain_over;
use crate::support::connect::{TunnelClient, Version};
use crate::support::eventually;

/// Maximum time for an answer or the end of a connection, on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Client of the endpoints of one Service.
#[derive(Clone)]
enum Client {
    Tunnel {
        client: TunnelClient,
        authority: String,
    },
    LoadBalancer(SocketAddr),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Client {
    async fn open(&self) -> Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tunnel { client, authority } => Box::new(client.open(authority).await?),
            Self::LoadBalancer(address) => Box::new(TcpStream::connect(address).await?),
        })
    }
}

/// A Service of `type: LoadBalancer` and a bastion that serves it, with the pods of a label.
struct Balancer {
    name: String,
    address: SocketAddr,
    bastion: Bastion,
}

impl Balancer {
    /// Each scenario has a name and port of its own, because a failed one leaves its Service.
    async fn start(fixture: &Fixture, name: &str, app: &str, port: u16) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 7], port));
        let settings = json!({"bindAddresses": [address.ip()]});
        let bastion = loadbalancer::start(fixture, name, settings).await?;
        let services = Services::new(fixture);
        let selector = json!({"selector": {"app": app}});
        services.create(name, &[(port, "TCP")], selector).await?;
        services.reason(name, "Ready").await?;
        Ok(Self {
            name: name.to_owned(),
            address,
            bastion,
        })
    }

    async fn stop(self, fixture: &Fixture) -> Result<()> {
        loadbalancer::terminate(self.bastion).await?;
        Services::new(fixture).delete(&self.name).await
    }
}

/// Open connection of HTTP/1.1 to an endpoint.
struct OpenConnection {
    /// Name of the endpoint.
    endpoint: String,
    sender: http1::SendRequest<Empty<Bytes>>,
}

impl OpenConnection {
    async fn new(client: &Client) -> Result<Self> {
        let stream = client.open().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut open = Self {
            endpoint: String::new(),
            sender,
        };
        open.endpoint = open.ask().await?;
        Ok(open)
    }

    /// Returns the name of the endpoint.
    ///
    /// # Errors
    /// Returns an error if the connection has ended.
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

/// Checks that exactly the connections to `dead` have ended, and drops these.
async fn ensure_ended(connections: &mut Vec<OpenConnection>, dead: &str) -> Result<()> {
    let mut open = Vec::new();
    let mut ended = 0;
    for mut connection in connections.drain(..) {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, connection.ask()).await;
        let answer = answer.context("a connection neither answers nor ends")?;
        if connection.endpoint == dead {
            ensure!(
                answer.is_err(),
                "a connection to {dead} is open: {answer:?}"
            );
            ended += 1;
        } else {
            let endpoint = &connection.endpoint;
            let answer =
                answer.with_context(|| format!("a connection to {endpoint} ended with {dead}"))?;
            ensure!(answer == *endpoint, "{endpoint} answered as {answer}");
            open.push(connection);
        }
    }
    ensure!(ended > 0, "there was no connection to {dead}");
    *connections = open;
    Ok(())
}

#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    stop: AtomicBool,
    failures: Mutex<BTreeMap<String, u64>>,
    /// Connections without a response.
    cut: AtomicU64,
}

impl Counts {
    async fn open(&self, client: &Client) {
        match client.open().await {
            Ok(stream) => {
                // Also of a load balancer, which accepts before it knows whether an endpoint is
                // reachable.
                if get_plain_over(stream, "web", "/name").await.is_err() {
                    self.cut.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Its endpoint has reset it already.
            Err(error)
                if matches!(client, Client::LoadBalancer(_))
                    && error.downcast_ref::<std::io::Error>().is_some_and(|error| {
                        error.kind() == std::io::ErrorKind::ConnectionReset
                    }) =>
            {
                self.cut.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                let mut failures = self.failures.lock().expect("no thread panics with it");
                *failures.entry(format!("{error:#}")).or_default() += 1;
            }
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
    }
}

/// Opens connections one after the other, in several tasks. Dropping it stops them.
struct Opening {
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
    /// Number of tasks.
    count: usize,
}

impl Opening {
    const TASKS_PER_CLIENT: usize = 3;

    /// Each connection carries one request, during which its endpoint may die.
    fn start(clients: &[Client]) -> Self {
        /// So that an outage does not use a whole CPU.
        const PAUSE: Duration = Duration::from_millis(5);
        let counts = Arc::<Counts>::default();
        let mut tasks = JoinSet::new();
        for client in clients.iter().flat_map(|it| [it; Self::TASKS_PER_CLIENT]) {
            let (client, counts) = (client.clone(), Arc::clone(&counts));
            tasks.spawn(async move {
                while !counts.stop.load(Ordering::Relaxed) {
                    counts.open(&client).await;
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        let count = tasks.len();
        Self {
            counts,
            tasks,
            count,
        }
    }

    /// Waits for a number of further connections.
    async fn wait_for(&self, connections: u64) -> Result<()> {
        let opened = || self.counts.opened.load(Ordering::Relaxed);
        let goal = opened() + connections;
        eventually("more connections", async || Ok(opened() >= goal)).await
    }

    /// Checks that no connection failed to open, except for those that an endpoint had when it was
    /// killed. Returns their number.
    async fn stop(mut self, killed: usize) -> Result<u64> {
        self.counts.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task?;
        }
        let failures = self.counts.failures.lock();
        let failures = failures.expect("no thread panics with it");
        ensure!(
            failures.is_empty(),
            "connections did not open: {failures:#?}"
        );
        let cut = self.counts.cut.load(Ordering::Relaxed);
        // Each task may have one with an endpoint that is killed.
        let limit = (killed * self.count) as u64;
        ensure!(
            cut <= limit,
            "{cut} connections got no response, and {killed} endpoints died"
        );
        let opened = self.counts.opened.load(Ordering::Relaxed);
        ensure!(opened > 0, "no connection was opened");
        Ok(opened)
    }
}

/// Clients of the Service `app` by tunnels of both versions, and by the load balancer.
async fn clients(
    fixture: &Fixture,
    user: &str,
    app: &str,
    balancer: &Balancer,
) -> Result<Vec<Client>> {
    let token = account(fixture, user).await?;
    let tunnel = |version| Client::Tunnel {
        client: client(fixture, &fixture.bastion, &token, version),
        authority: format!("{app}.{SHOP}.svc:80"),
    };
    let clients = vec![
        tunnel(Version::Http1),
        tunnel(Version::Http2),
        Client::LoadBalancer(balancer.address),
    ];
    for client in &clients {
        eventually("the first connection", async || {
            Ok(OpenConnection::new(client).await.is_ok())
        })
        .await?;
    }
    Ok(clients)
}

async fn open(clients: &[Client], each: usize) -> Result<Vec<OpenConnection>> {
    let mut open = Vec::new();
    for client in clients {
        for _ in 0..each {
            open.push(OpenConnection::new(client).await?);
        }
    }
    Ok(open)
}

pub async fn killed_endpoints_end_only_their_own_connections(fixture: &mut Fixture) -> Result<()> {
    let balancer = Balancer::start(fixture, "lb-killing", "web", 99).await?;
    let clients = clients(fixture, "killing", "web", &balancer).await?;
    let mut connections = open(&clients, 6).await?;
    let opening = Opening::start(&clients);
    opening.wait_for(45).await?;
    // The third endpoint stays, and one of the two others is dead at a time.
    let killed = &WEB[..2];
    for (name, last) in killed {
        let backend = fixture.backends.remove(*name);
        backend.context("the backend runs")?.kill().await;
        ensure_ended(&mut connections, name).await?;
        opening.wait_for(150).await?;
        restart(fixture, (name, *last)).await?;
        opening.wait_for(45).await?;
    }
    for connection in &mut connections {
        ensure!(connection.ask().await? == WEB[2].0);
    }
    ensure!(connections.len() >= clients.len());
    let opened = opening.stop(killed.len()).await?;
    println!("     two of three endpoints killed in turn: {opened} connections opened");
    balancer.stop(fixture).await?;
    fixture.endpoints("services/web", 3).await
}

/// Each pod is terminating before its process exits. Its connections stay open until then.
pub async fn rolling_update_fails_no_new_connection(fixture: &mut Fixture) -> Result<()> {
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
    let balancer = Balancer::start(fixture, "lb-shifting", "shifted", 100).await?;
    let clients = clients(fixture, "shifting", "shifted", &balancer).await?;
    let opening = Opening::start(&clients);
    let mut connections = Vec::new();
    let mut new = Vec::new();
    for (replica, (name, process)) in (REPLICAS..).zip(old) {
        eventually("a connection to each old pod", async || {
            connections.extend(open(&clients, 1).await?);
            Ok(connections
                .iter()
                .any(|connection: &OpenConnection| connection.endpoint == name))
        })
        .await?;
        // As in a Deployment, the new pod serves before an old one is deleted.
        let backend = run(&format!("shifted-{replica}"), FIRST + replica).await?;
        eventually("a connection to the new pod", async || {
            Ok(backend.served() > 0)
        })
        .await?;
        new.push(backend);
        fixture.objects.terminate(&name).await?;
        opening.wait_for(45).await?;
        for connection in &mut connections {
            let answer = connection.ask().await.context("while a pod terminates")?;
            ensure!(answer == connection.endpoint);
        }
        process.kill().await;
        ensure_ended(&mut connections, &name).await?;
        fixture.objects.delete_pod(&name).await?;
        opening.wait_for(45).await?;
    }
    let opened = opening.stop(REPLICAS.into()).await?;
    println!("     three pods replaced one after the other: {opened} connections opened");
    balancer.stop(fixture).await?;
    for replica in REPLICAS..2 * REPLICAS {
        let name = format!("shifted-{replica}");
        fixture.objects.delete_pod(&name).await?;
    }
    Ok(())
}

/// The outage is longer than the default TTLs of reviews and the Lease of the load balancers, and
/// an endpoint dies during it.
pub async fn connections_open_without_the_api(fixture: &mut Fixture) -> Result<()> {
    const OUTAGE: Duration = Duration::from_mins(1);
    let balancer = Balancer::start(fixture, "lb-outage", "web", 101).await?;
    let clients = clients(fixture, "api-outage", "web", &balancer).await?;
    let mut connections = open(&clients, 6).await?;
    let opening = Opening::start(&clients);
    opening.wait_for(45).await?;
    fixture.cluster.stop_apiserver();
    tokio::time::sleep(OUTAGE).await;
    for connection in &mut connections {
        ensure!(connection.ask().await? == connection.endpoint);
    }
    let (name, last) = WEB[0];
    let backend = fixture.backends.remove(name);
    backend.context("the backend runs")?.kill().await;
    ensure_ended(&mut connections, name).await?;
    opening.wait_for(150).await?;
    restart(fixture, (name, last)).await?;
    fixture.cluster.start_apiserver().await?;
    opening.wait_for(150).await?;
    for connection in &mut connections {
        let answer = connection.ask().await;
        let answer = answer.with_context(|| {
            let log = fixture.bastion.log();
            let lines = log.lines().filter(|line| line.contains("tunnel"));
            let lines: Vec<_> = lines.rev().take(10).collect();
            let endpoint = &connection.endpoint;
            format!("a connection to {endpoint} ended: {}", lines.join("\n"))
        })?;
        ensure!(answer == connection.endpoint);
    }
    let opened = opening.stop(1).await?;
    println!("     an API server down for {OUTAGE:?}: {opened} connections opened");
    // The Lease, which has expired, is acquired again.
    let services = Services::new(fixture);
    let port = |port: u16| json!({"ports": [{"name": "p", "port": port, "targetPort": 8080}]});
    services.patch(&balancer.name, port(22)).await?;
    services.reason(&balancer.name, "PortNotAllowed").await?;
    services.patch(&balancer.name, port(101)).await?;
    services.reason(&balancer.name, "Ready").await?;
    balancer.stop(fixture).await?;
    fixture.endpoints("services/web", 3).await
}
