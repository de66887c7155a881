//! Databases through tunnels, with the clients of their packages.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::net::TcpStream;

use super::servers::{REDIS_PORT, publish, redis};
use super::{account, client};
use crate::fixture::{Fixture, SHOP, bastion};
use crate::support::cluster::KubeconfigUser;
use crate::support::connect::{TunnelClient, TunnelPort, Version};
use crate::support::eventually;
use crate::support::pki::Ca;
use crate::support::postgres::{POSTGRES_PORT, Postgres};
use crate::support::program::{Program, find_program};
use crate::support::relay::Relay;

/// Last octets of the pods' addresses.
const DB: u8 = 15;
const CACHE: u8 = 16;
const ORDERS: [u8; 2] = [17, 18];
const EVENTS: u8 = 21;

/// Returns psql for a server at `address`, with unaligned output and without a user's settings.
fn psql(address: SocketAddr, settings: &str) -> Result<Command> {
    let psql = find_program(&["psql"], "on Debian, apt-get install postgresql-client")?;
    let mut command = Command::new(psql);
    command
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
        .arg(conninfo(address, settings))
        .env("LC_ALL", "C");
    Ok(command)
}

/// Connection string of libpq. Settings may replace the ones before them.
fn conninfo(address: SocketAddr, settings: &str) -> String {
    format!(
        "host=127.0.0.1 hostaddr={} port={} user=postgres dbname=postgres sslmode=disable {settings}",
        address.ip(),
        address.port()
    )
}

/// Runs one query. Returns its output.
async fn query(address: SocketAddr, settings: &str, sql: &str) -> Result<String> {
    let mut psql = Program::start(psql(address, settings)?.args(["-c", sql]))?;
    psql.finish().await?;
    Ok(psql.output().join("\n"))
}

pub async fn databases_work_through_tunnels(fixture: &mut Fixture) -> Result<()> {
    let token = account(fixture, "databases-user").await?;
    let folder = tempfile::tempdir()?;
    let ca = Ca::new(folder.path(), "databases-ca")?;
    let host = format!("postgres.{SHOP}.svc");
    let tls = ca.server(folder.path(), "postgres", &[&host])?;
    let (db, cache) = (
        fixture.namespace.address(DB),
        fixture.namespace.address(CACHE),
    );
    let postgres = Postgres::start(&fixture.namespace, db, &tls).await?;
    let _redis = redis(&fixture.namespace, cache).await?;
    publish(fixture, "postgres", (POSTGRES_PORT, "TCP"), &[db]).await?;
    publish(fixture, "redis", (REDIS_PORT, "TCP"), &[cache]).await?;

    for version in [Version::Http1, Version::Http2] {
        let client = client(fixture, &fixture.bastion, &token, version);
        let db = port(&client, &format!("{host}:{POSTGRES_PORT}")).await?;
        let cache = port(&client, &format!("redis.{SHOP}.svc:{REDIS_PORT}")).await?;
        let of_postgres = async {
            ensure!(query(db.address, "", "select 6 * 7").await? == "42");
            let long = query(db.address, "", "select repeat('x', 3000000)").await?;
            ensure!(long.len() == 3_000_000, "{} bytes", long.len());
            tls_is_of_the_database(db.address, &host, &ca).await?;
            failed_connect_leaves_session(db.address).await
        };
        of_postgres
            .await
            .with_context(|| format!("PostgreSQL over {version:?}"))?;
        redis_answers_and_publishes(cache.address)
            .await
            .with_context(|| format!("Redis over {version:?}"))?;
        for port in [db, cache] {
            ensure!(port.failures().is_empty(), "{:?}", port.failures());
        }
    }
    let server = fixture.bastion.secure;
    let arguments = ["svc/postgres", ":5432", "svc/redis", ":6379"];
    let mut forward = forward(fixture, server, &token, &arguments)?;
    let ports = local_ports(&mut forward).await?;
    let [db, cache] = ports[..] else {
        bail!("two ports: {ports:?}");
    };
    tls_is_of_the_database(db, &host, &ca).await?;
    failed_connect_leaves_session(db).await?;
    redis_answers_and_publishes(cache).await?;
    postgres.stop().await
}

/// Returns `kube-bastion forward` through a bastion.
fn forward(
    fixture: &Fixture,
    bastion: SocketAddr,
    token: &str,
    arguments: &[&str],
) -> Result<Program> {
    let (cluster, server) = (&fixture.cluster, format!("https://{bastion}"));
    let user = KubeconfigUser::Token(token);
    let kubeconfig = cluster.kubeconfig("databases", &server, &cluster.ca.file, &user)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    command
        .args(["forward", "--via", "bastion", "-n", SHOP, "-o", "json"])
        .args(["--address", "127.0.0.1", "--kubeconfig"])
        .arg(kubeconfig)
        .args(arguments);
    Program::start(&mut command)
}

/// Waits for the ports of `forward`.
async fn local_ports(forward: &mut Program) -> Result<Vec<SocketAddr>> {
    let line = forward.wait_for_line("\"forwards\"").await?;
    let ports: serde_json::Value = serde_json::from_str(&line)?;
    let ports = ports["forwards"].as_array().context("a list")?;
    let ports = ports.iter().map(|entry| {
        let port = entry["localPort"].as_u64().context("a port")?;
        Ok(SocketAddr::from(([127, 0, 0, 1], port.try_into()?)))
    });
    ports.collect()
}

/// The client verifies the certificate of the database for the name of the service. A CA that did
/// not issue it shows that the client does verify.
async fn tls_is_of_the_database(address: SocketAddr, host: &str, ca: &Ca) -> Result<()> {
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let settings = |ca: &Ca| {
        format!(
            "host={host} sslmode=verify-full sslrootcert={}",
            ca.file.display()
        )
    };
    ensure!(query(address, &settings(ca), sql).await? == "t");
    let folder = tempfile::tempdir()?;
    let other = Ca::new(folder.path(), "other-ca")?;
    let refused = query(address, &settings(&other), sql).await;
    let refused = refused.err().context("another CA")?.to_string();
    ensure!(refused.contains("certificate verify failed"), "{refused}");
    Ok(())
}

/// psql opens a second connection for `\connect`, and keeps the first one if that fails; only if it
/// has a terminal, which script(1) gives it.
async fn failed_connect_leaves_session(address: SocketAddr) -> Result<()> {
    let psql = find_program(&["psql"], "on Debian, apt-get install postgresql-client")?;
    let psql = format!(
        "'{}' --no-psqlrc --no-readline --pset=pager=off '{}'",
        psql.display(),
        conninfo(address, "")
    );
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command", &psql, "/dev/null"])
        .env("LC_ALL", "C");
    let mut session = Program::start(&mut command)?;
    session.wait_for_line("Type \"help\" for help").await?;
    session.write(b"\\connect nosuchdb\n")?;
    session
        .wait_for_line("database \"nosuchdb\" does not exist")
        .await?;
    session.wait_for_line("Previous connection kept").await?;
    session.write(b"\\list\n")?;
    session.wait_for_line("template0").await?;
    session.write(b"\\quit\n")?;
    session.finish().await
}

fn redis_cli(address: SocketAddr, arguments: &[&str]) -> Result<Program> {
    let redis_cli = find_program(&["redis-cli"], "on Debian, apt-get install redis-tools")?;
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = Command::new(redis_cli);
    command.args(["-h", &host, "-p", &port]).args(arguments);
    Program::start(&mut command)
}

/// Runs one command. Returns its output.
async fn run_redis(address: SocketAddr, arguments: &[&str]) -> Result<String> {
    let mut redis_cli = redis_cli(address, arguments)?;
    redis_cli.finish().await?;
    Ok(redis_cli.output().join("\n"))
}

/// Connection that only waits, for the messages that others publish.
struct Subscriber(Program);

impl Subscriber {
    async fn start(address: SocketAddr) -> Result<Self> {
        let mut subscriber = redis_cli(address, &["subscribe", "news"])?;
        subscriber.wait_for_line("subscribe").await?;
        Ok(Self(subscriber))
    }

    /// Publishes a message and waits until it arrives.
    async fn receive(&mut self, from: SocketAddr, message: &str) -> Result<()> {
        eventually("a subscriber", async || {
            Ok(run_redis(from, &["publish", "news", message]).await? != "0")
        })
        .await?;
        self.0.wait_for_line(message).await?;
        Ok(())
    }
}

async fn redis_answers_and_publishes(address: SocketAddr) -> Result<()> {
    ensure!(run_redis(address, &["set", "color", "green"]).await? == "OK");
    ensure!(run_redis(address, &["get", "color"]).await? == "green");
    let mut subscriber = Subscriber::start(address).await?;
    subscriber.receive(address, "hello").await
}

/// Session of psql that reads queries from its input.
struct Session(Program);

impl Session {
    /// Opens sessions until one is with the server at `address`.
    async fn with(port: SocketAddr, address: Ipv4Addr) -> Result<Self> {
        let mut with = Vec::new();
        for _ in 0..4 {
            let mut session = Self(Program::start(&mut psql(port, "")?)?);
            let sql = "select 'with ' || host(inet_server_addr())";
            let line = session.query(sql, "with ").await?;
            if line == format!("with {address}") {
                return Ok(session);
            }
            with.push(line);
        }
        bail!("no session with {address}: {with:?}")
    }

    /// Sends a query and waits for a line of output.
    async fn query(&mut self, sql: &str, line: &str) -> Result<String> {
        self.send(sql)?;
        self.0.wait_for_line(line).await
    }

    fn send(&mut self, sql: &str) -> Result<()> {
        self.0.write(format!("{sql};\n").as_bytes())
    }
}

/// A tunnel ends with its own endpoint, or at the end of the drain of its own bastion. `forward`
/// continues with another replica behind the same address.
pub async fn query_outlives_another_pod_and_another_bastion(fixture: &mut Fixture) -> Result<()> {
    let token = account(fixture, "reports").await?;
    let addresses = ORDERS.map(|last| fixture.namespace.address(last));
    let [kept, removed] = addresses;
    let namespace = &fixture.namespace;
    let kept = Postgres::start(namespace, kept, &fixture.serving).await?;
    let removed = Postgres::start(namespace, removed, &fixture.serving).await?;
    publish(fixture, "orders", (POSTGRES_PORT, "TCP"), &addresses).await?;
    let events = namespace.address(EVENTS);
    let _redis = redis(namespace, events).await?;
    publish(fixture, "events", (REDIS_PORT, "TCP"), &[events]).await?;
    let events = SocketAddr::from((events, REDIS_PORT));
    let cluster = &fixture.cluster;
    let kubeconfig = cluster.bastion_kubeconfig("replica", &cluster.server);
    let drain = ["--drain-timeout=10s"];
    let mut replica = bastion(&kubeconfig.await?, &fixture.serving, &drain)?;
    replica.ready().await?;
    let service = Relay::start(replica.secure).await?;

    let authority = format!("orders.{SHOP}.svc:{POSTGRES_PORT}");
    let direct = SocketAddr::from((kept.address, POSTGRES_PORT));
    let mut holder = Session(Program::start(&mut psql(direct, "")?)?);
    let lock = "select 'locked', pg_advisory_lock(1)";
    holder.query(lock, "locked").await?;
    let by_fixture = client(fixture, &fixture.bastion, &token, Version::Http2);
    let by_replica = client(fixture, &replica, &token, Version::Http2);
    let by_fixture = port(&by_fixture, &authority).await?;
    let by_replica = port(&by_replica, &authority).await?;
    let arguments = ["svc/orders", ":5432", "svc/events", ":6379"];
    let mut forward = forward(fixture, service.address, &token, &arguments)?;
    let ports = local_ports(&mut forward).await?;
    let [by_forward, by_forward_events] = ports[..] else {
        bail!("two ports: {ports:?}");
    };
    // All queries wait for the lock.
    let mut sessions = Vec::new();
    for address in [by_fixture.address, by_forward, by_replica.address] {
        let mut session = Session::with(address, kept.address).await?;
        session.send("select 'finished', pg_advisory_lock_shared(1)")?;
        sessions.push(session);
    }
    let mut subscriber = Subscriber::start(by_forward_events).await?;
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    eventually("three queries", async || {
        Ok(query(direct, "", waiting).await? == "3")
    })
    .await?;

    fixture.objects.terminate("orders-1").await?;
    removed.stop().await?;
    fixture.objects.delete_pod("orders-1").await?;
    let replacement = Postgres::start(namespace, addresses[1], &fixture.serving).await?;
    let (labels, ports) = (
        json!({"app": "orders"}),
        json!([{"containerPort": POSTGRES_PORT}]),
    );
    let objects = &fixture.objects;
    objects
        .pod("orders-2", labels, replacement.address, ports)
        .await?;
    service.redirect(fixture.bastion.secure);
    replica.signal(Signal::SIGTERM)?;
    eventually("the port of the replica to close", async || {
        Ok(TcpStream::connect(replica.secure).await.is_err())
    })
    .await?;
    ensure!(query(direct, "", waiting).await? == "3", "a query ended");
    subscriber.receive(events, "during the drain").await?;
    // New connections use the other replica, beside those that are open.
    let mut later = Session::with(by_forward, kept.address).await?;
    let mut later_subscriber = Subscriber::start(by_forward_events).await?;
    holder
        .query("select 'unlocked', pg_advisory_unlock(1)", "unlocked")
        .await?;
    for session in &mut sessions {
        session.0.wait_for_line("finished").await?;
    }

    let ended = tokio::task::spawn_blocking(move || replica.wait()).await??;
    ensure!(ended.success(), "{ended}");
    let lost = "connection to server was lost";
    for (session, line) in sessions.iter_mut().zip(["answer 42", lost, lost]) {
        session.query("select 'answer ' || 6 * 7", line).await?;
    }
    later
        .query("select 'answer ' || 6 * 7", "answer 42")
        .await?;
    later_subscriber.receive(events, "after the drain").await?;
    ensure!(query(by_forward, "", "select 6 * 7").await? == "42");
    eventually("a session with the new pod", async || {
        Ok(Session::with(by_forward, replacement.address).await.is_ok())
    })
    .await?;
    replacement.stop().await?;
    kept.stop().await
}

/// Listens on a local port, once the bastion has an endpoint for it.
async fn port(client: &TunnelClient, authority: &str) -> Result<TunnelPort> {
    let mut last = None;
    eventually(&format!("a tunnel to {authority}"), async || {
        last = client.open(authority).await.err();
        Ok(last.is_none())
    })
    .await
    .with_context(|| format!("{last:?}"))?;
    TunnelPort::start(client, authority).await
}
