//! Applications from Debian's packages.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;

use super::site::{Caller, Opened, Paths, Site, file, kubelet};
use crate::fixture::Fixture;
use crate::packages;
use crate::support::eventually;
use crate::support::program::find_program;

/// Start script of `RabbitMQ`. The one in the `PATH` runs it as another user, with fixed folders.
const RABBITMQ_SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// Name server of Erlang.
const EPMD_PORT: u16 = 4369;
const MANAGEMENT_PORT: u16 = 15672;

/// Prometheus takes requests with the prefix of its external URL.
pub async fn prometheus_answers_a_query(fixture: &mut Fixture) -> Result<()> {
    let mut site = Site::new(fixture, "prometheus", 9090, Paths::Kept, Caller::Token).await?;
    let (address, prefix) = (site.address, &site.prefix);
    let settings = format!(
        "global: {{scrape_interval: 1s}}
scrape_configs:
- job_name: itself
  metrics_path: {prefix}/metrics
  static_configs: [{{targets: ['{address}']}}]
"
    );
    std::fs::write(site.folder.path().join("prometheus.yml"), settings)?;
    let prometheus = find_program(&["prometheus"], "on Debian, apt-get install prometheus")?;
    let mut command = site.command(&prometheus);
    command
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
        .arg(format!("--web.listen-address={address}"))
        .arg(format!("--web.external-url={}/", site.base()?));
    site.start(&mut command, "Server is ready to receive web requests")
        .await?;
    site.visit().await
}

/// The management plugin of `RabbitMQ` takes requests with its `path_prefix`. Its page sends the
/// password in `Authorization`, which never passes the bastion: the caller has a client certificate
/// instead of a token in that header, and a proxy in the pod adds the password.
pub async fn rabbitmq_management_creates_a_queue(fixture: &mut Fixture) -> Result<()> {
    let caller = Caller::Certificate;
    let mut site = Site::new(fixture, "rabbitmq", 8672, Paths::Kept, caller).await?;
    let settings = format!(
        "management.tcp.ip = 127.0.0.1
management.tcp.port = {MANAGEMENT_PORT}
management.path_prefix = {}
",
        site.prefix
    );
    start_rabbitmq(&mut site, &settings).await?;
    let mut command = site.command(&packages::node()?);
    command
        .arg(file("authorize.mjs"))
        .arg(site.address.ip().to_string())
        .arg(site.address.port().to_string())
        .arg(MANAGEMENT_PORT.to_string())
        .arg("guest:guest");
    site.start(&mut command, "listening").await?;
    site.visit().await.context("through the proxy in the pod")
}

/// Behind `kube-bastion open`, `Authorization` belongs to the application.
pub async fn rabbitmq_management_creates_a_queue_opened(fixture: &mut Fixture) -> Result<()> {
    open_rabbitmq(fixture, Opened::Bastion, MANAGEMENT_PORT).await?;
    let kubelet = kubelet(fixture, "rabbitmq-by-port-forward").await?;
    open_rabbitmq(fixture, Opened::ApiServer, MANAGEMENT_PORT + 1).await?;
    ensure!(kubelet.count("dial") > 0, "{:?}", kubelet.output());
    Ok(())
}

async fn open_rabbitmq(fixture: &Fixture, server: Opened, port: u16) -> Result<()> {
    let mut site = Site::opened(fixture, "rabbitmq", port, server).await?;
    let settings = format!(
        "loopback_users = none
management.tcp.ip = {}
management.tcp.port = {port}
",
        site.address.ip()
    );
    start_rabbitmq(&mut site, &settings).await?;
    site.visit().await.with_context(|| format!("{server:?}"))
}

/// Starts the server with its name server, and further settings.
async fn start_rabbitmq(site: &mut Site<'_>, settings: &str) -> Result<()> {
    ensure!(
        Path::new(RABBITMQ_SERVER).is_file(),
        "RabbitMQ is missing: on Debian, apt-get install rabbitmq-server"
    );
    // A server that finds none starts a name server that outlives it.
    let epmd = find_program(&["epmd"], "on Debian, apt-get install rabbitmq-server")?;
    let mut command = site.command(&epmd);
    site.start_silent(&mut command)?;
    let name_server = SocketAddr::new(site.address.ip(), EPMD_PORT);
    eventually("the name server of Erlang", async || {
        Ok(TcpStream::connect(name_server).await.is_ok())
    })
    .await?;

    let folder = site.folder.path();
    let settings = format!("listeners.tcp = none\n{settings}");
    std::fs::write(folder.join("rabbitmq.conf"), settings)?;
    std::fs::write(folder.join("enabled_plugins"), "[rabbitmq_management].\n")?;
    let mut command = site.command(Path::new(RABBITMQ_SERVER));
    command
        .arg("-noinput")
        // The script executes the server in its own process.
        .env("RABBITMQ_ALLOW_INPUT", "1")
        .env("RABBITMQ_NODENAME", "rabbit@localhost")
        .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
        .env(
            "RABBITMQ_ENABLED_PLUGINS_FILE",
            folder.join("enabled_plugins"),
        )
        .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
        .env("RABBITMQ_LOG_BASE", folder.join("log"))
        .env("RABBITMQ_LOGS", "-");
    site.start(&mut command, "Server startup complete").await
}
