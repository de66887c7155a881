//! Three kube-apiservers on the data of a cluster, each at an address of its own, as a control plane
//! in production has.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use nix::sys::signal::Signal;

use super::client::Client;
use super::cluster::{Cluster, Process, START_TIMEOUT, is_ready};
use super::net::Namespace;
use super::pki::Pair;
use super::within;

/// Last bytes of the addresses, at the host's end of the network.
const LAST: [u8; 3] = [201, 202, 203];
const PORT: u16 = 6443;

/// Maximum time of a graceful shutdown: its delay, and a minute for requests.
const DRAIN_TIMEOUT: Duration = Duration::from_mins(2);
/// Maximum time until addresses are published. A lease lasts 15 s and is checked every 10 s.
const PUBLISH_TIMEOUT: Duration = Duration::from_mins(1);

/// Running apiservers. Dropping it kills their processes.
#[derive(Debug)]
pub struct ControlPlane {
    pub servers: Vec<ApiServer>,
    /// Client certificate of an administrator.
    admin: Pair,
}

/// One apiserver, which may be stopped.
#[derive(Debug)]
pub struct ApiServer {
    pub address: SocketAddr,
    name: String,
    process: Option<Process>,
}

impl ControlPlane {
    /// Starts the apiservers, and waits until all are ready and published.
    ///
    /// # Errors
    /// Returns an error if one of them does not start.
    pub async fn start(cluster: &Cluster, namespace: &Namespace) -> Result<Self> {
        let mut servers = Vec::new();
        for last in LAST {
            let address = SocketAddr::from((namespace.host_address(last)?, PORT));
            let name = format!("apiserver-{last}");
            let process = Some(cluster.replica(&name, address)?);
            servers.push(ApiServer {
                address,
                name,
                process,
            });
        }
        let folder = cluster.folder.path();
        let admin = cluster
            .ca
            .client(folder, "control-plane-admin", "system:masters")?;
        let plane = Self { servers, admin };
        for index in 0..plane.servers.len() {
            plane.ready(cluster, index).await?;
        }
        plane.published(cluster, LAST.len()).await?;
        Ok(plane)
    }

    /// Waits until an apiserver is ready.
    async fn ready(&self, cluster: &Cluster, index: usize) -> Result<()> {
        let server = &self.servers[index];
        let what = format!("{} to be ready", server.name);
        let ready = within(START_TIMEOUT, &what, async || {
            Ok(is_ready(server.address, &cluster.ca.file).await)
        });
        ready.await.with_context(|| {
            let log = cluster.folder.path().join(format!("{}.log", server.name));
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(20);
            format!("the end of its log:\n{}", lines[last..].join("\n"))
        })
    }

    /// Waits until the cluster publishes this number of apiservers.
    ///
    /// # Errors
    /// Returns an error if it does not in time.
    pub async fn published(&self, cluster: &Cluster, count: usize) -> Result<()> {
        let slices = Api::<EndpointSlice>::namespaced(cluster.client.clone(), "default");
        let what = format!("{count} addresses of the service kubernetes");
        within(PUBLISH_TIMEOUT, &what, async || {
            let slice = slices.get_opt("kubernetes").await?;
            let endpoints = slice.map(|slice| slice.endpoints).unwrap_or_default();
            Ok(endpoints.iter().flatten().count() == count)
        })
        .await
    }

    /// Kills an apiserver.
    ///
    /// # Errors
    /// Returns an error if it is not running.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let process = self.servers[index].process.take();
        // Dropping the process kills it and waits for it.
        process
            .map(drop)
            .context("the apiserver is stopped already")
    }

    /// Stops the process of an apiserver until [`Self::thaw`]; its connections stay open.
    ///
    /// # Errors
    /// Returns an error if it is not running.
    pub fn freeze(&self, index: usize) -> Result<()> {
        self.process(index)?.signal(Signal::SIGSTOP)
    }

    /// Continues the process of an apiserver.
    ///
    /// # Errors
    /// Returns an error if it is not running.
    pub fn thaw(&self, index: usize) -> Result<()> {
        self.process(index)?.signal(Signal::SIGCONT)
    }

    /// Shuts an apiserver down gracefully, and waits until it has exited.
    ///
    /// # Errors
    /// Returns an error if it does not exit in time.
    pub async fn drain(&mut self, index: usize) -> Result<()> {
        let server = &mut self.servers[index];
        let mut process = server.process.take().context("the apiserver is stopped")?;
        process.signal(Signal::SIGTERM)?;
        let what = format!("{} to exit", server.name);
        within(DRAIN_TIMEOUT, &what, async || process.has_exited()).await
    }

    /// Starts a stopped apiserver again at its address, and waits until it is ready and published.
    ///
    /// # Errors
    /// Returns an error if it does not become ready.
    pub async fn restart(&mut self, cluster: &Cluster, index: usize) -> Result<()> {
        let server = &mut self.servers[index];
        ensure!(server.process.is_none(), "{} is running", server.name);
        server.process = Some(cluster.replica(&server.name, server.address)?);
        self.ready(cluster, index).await?;
        let running = self.servers.iter().filter(|it| it.process.is_some());
        self.published(cluster, running.count()).await
    }

    /// Returns the number of requests with a verb for a resource that each apiserver has answered so
    /// far.
    ///
    /// # Errors
    /// Returns an error if one does not answer.
    pub async fn requests(
        &self,
        cluster: &Cluster,
        resource: &str,
        verb: &str,
    ) -> Result<Vec<u64>> {
        let mut counts = Vec::new();
        let labels = [
            format!("resource=\"{resource}\""),
            format!("verb=\"{verb}\""),
        ];
        for server in &self.servers {
            let admin = Some(&self.admin);
            let mut client = Client::connect(server.address, &cluster.ca.file, None, admin).await?;
            let metrics = client.get("/metrics").await?.body;
            let lines = metrics.lines().filter(|line| {
                line.starts_with("apiserver_request_total{")
                    && labels.iter().all(|label| line.contains(label))
            });
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is a count"
            )]
            counts.push(values.sum::<f64>() as u64);
        }
        Ok(counts)
    }

    fn process(&self, index: usize) -> Result<&Process> {
        let process = self.servers[index].process.as_ref();
        process.context("the apiserver is stopped")
    }
}
