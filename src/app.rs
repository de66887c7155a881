//! Wires everything: a [`Config`] becomes [`Bound`] once all that can be wrong with it has been
//! tried, and runs until it is drained.

mod load;
mod sockets;
mod spawn;
mod tasks;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use prometheus_client::registry::Registry;

use crate::admin::Admin;
use crate::config::Config;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::ready::Ready;
use crate::supervise::Supervisor;
use load::{Files, Source};
use spawn::Setup;
use tasks::{enforce_drain_deadline, supervise};
use worker::Port;

pub use load::load_all;

/// Where a bastion listens, with the ports that port 0 became.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub secure: SocketAddr,
    pub insecure: Option<SocketAddr>,
    pub admin: SocketAddr,
}

/// A bastion with its ports bound and its TLS loaded, ready to run.
#[expect(
    missing_debug_implementations,
    reason = "it holds credentials of the Kubernetes API"
)]
pub struct Bound {
    config: Config,
    pub addresses: Addresses,
    sockets: Sockets,
    files: Files,
    source: Source,
}

struct Sockets {
    secure: TcpListener,
    insecure: Option<TcpListener>,
    admin: TcpListener,
}

impl Bound {
    /// Tries everything that the configuration names: ports, certificates, kubeconfig, manifests.
    ///
    /// # Errors
    /// The first thing that is no good, with its name and what would be right.
    pub async fn new(config: Config) -> Result<Self> {
        config.validate()?;
        sockets::raise_open_files();
        let files = Files::load(&config)?;
        let source = Source::load(&config, &files.trust).await?;
        let secure = bind(config.serving.secure_listen_address, "secureListenAddress")?;
        let insecure = config.serving.insecure_listen_address;
        let insecure = insecure
            .map(|address| bind(address, "insecureListenAddress"))
            .transpose()?;
        let admin = bind(config.admin.listen_address, "admin.listenAddress")?;
        let addresses = Addresses {
            secure: secure.local_addr()?,
            insecure: insecure.as_ref().map(TcpListener::local_addr).transpose()?,
            admin: admin.local_addr()?,
        };
        Ok(Self {
            config,
            addresses,
            sockets: Sockets {
                secure,
                insecure,
                admin,
            },
            files,
            source,
        })
    }

    /// Serves until the drain is over: what runs when it begins is finished, or cut at the
    /// deadline.
    ///
    /// # Errors
    /// A worker, or a background task without which the process cannot go on, failed: restart the
    /// process.
    pub async fn run(self, drain: Drain) -> Result<()> {
        let Self {
            config,
            addresses,
            sockets,
            files,
            source,
        } = self;
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let ready = Ready::default();
        let mut supervisor = Supervisor::new(ready.clone(), metrics.clone(), drain.clone());
        let mut setup = Setup {
            config: &config,
            files: &files,
            ready: &ready,
            metrics: &metrics,
            supervisor: &mut supervisor,
        };
        let kubelet_token = Arc::new(ArcSwapOption::empty());
        let stages = setup.stages(source, &kubelet_token)?;
        setup.follow_files();
        let shared = setup.shared(stages, kubelet_token, addresses, &drain)?;
        supervisor.fatal(
            "drain",
            enforce_drain_deadline(drain.clone(), ready.clone(), config.drain.timeout),
        );
        let admin = tokio::net::TcpListener::from_std(sockets.admin)?;
        let admin = Arc::new(Admin::new(admin, ready, registry));
        supervisor.restart("admin", move || Arc::clone(&admin).serve());

        let mut ports = vec![Port {
            socket: sockets.secure,
            tls: Some(files.server_tls),
        }];
        ports.extend(sockets.insecure.map(|socket| Port { socket, tls: None }));
        let workers = match config.serving.workers {
            // Follows the CPU quota of the cgroup.
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let workers = worker::start(workers, &ports, shared)?;
        drop(ports);
        if let Some(insecure) = addresses.insecure {
            tracing::warn!(%insecure, "serving plain HTTP: tokens cross it in clear text");
        }
        tracing::info!(secure = %addresses.secure, admin = %addresses.admin, workers = workers.len(), "serving");
        supervise(workers, supervisor, &drain).await
    }
}

fn bind(address: SocketAddr, field: &str) -> Result<TcpListener> {
    sockets::listen(address).with_context(|| {
        format!("cannot listen on {address} ({field}): is another process there? give another address, or port 0")
    })
}
