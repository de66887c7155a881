//! Wiring: a [`Config`] becomes [`Bound`] once its files are loaded and its ports are bound, and
//! runs until it is drained.

mod api_servers;
mod load;
mod load_balancer;
mod sockets;
mod spawn;
mod tasks;
mod worker;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Result;
use arc_swap::ArcSwapOption;
use nix::errno::Errno;
use prometheus_client::registry::Registry;

use crate::admin::Admin;
use crate::config::Config;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::ready::Ready;
use crate::supervise::Supervisor;
use crate::tls::ApiServerTls;
use load::{Files, Source};
use spawn::Setup;
use tasks::{enforce_drain_deadline, supervise};
use worker::Port;

pub use load::load_all;

/// Addresses of the listeners, with the actual port in place of port 0.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub secure: SocketAddr,
    pub insecure: Option<SocketAddr>,
    pub admin: SocketAddr,
}

/// Bastion with bound ports and loaded files, ready to run.
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
    /// `None` if requests are not passed to API servers.
    api_server_tls: Option<Arc<ApiServerTls>>,
}

struct Sockets {
    secure: TcpListener,
    insecure: Option<TcpListener>,
    admin: TcpListener,
}

impl Bound {
    /// Loads the files that the configuration names and binds its ports.
    ///
    /// # Errors
    /// The first invalid setting, file or port, and how to correct it.
    pub async fn new(config: Config) -> Result<Self> {
        config.validate()?;
        sockets::raise_open_files();
        // Files precede ports, so that a configuration error never disturbs clients with a port
        // that accepts and then closes.
        let files = Files::load(&config)?;
        let source = Source::load(&config, &files.trust).await?;
        let api_server_tls = load::api_server_tls(&config, &source)?;
        let secure = bind(
            config.serving.secure_listen_address,
            "serving.secureListenAddress, --secure-listen-address",
        )?;
        let insecure = config.serving.insecure_listen_address;
        let insecure = insecure
            .map(|address| {
                bind(
                    address,
                    "serving.insecureListenAddress, --insecure-listen-address",
                )
            })
            .transpose()?;
        let admin = bind(
            config.admin.listen_address,
            "admin.listenAddress, --admin-listen-address",
        )?;
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
            api_server_tls,
        })
    }

    /// Serves until the drain has ended. Requests and tunnels that are open when the drain begins
    /// may finish until its deadline, and are then closed.
    ///
    /// # Errors
    /// Failure of a worker or of an essential background task. The caller must restart the process.
    pub async fn run(self, drain: Drain) -> Result<()> {
        let Self {
            config,
            addresses,
            sockets,
            files,
            source,
            api_server_tls,
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
        let api = source.kubernetes().cloned();
        let stages = setup.stages(source, api_server_tls, &kubelet_token)?;
        setup.follow_files();
        let load_balancer = setup.load_balancer(api.as_ref(), addresses, &drain)?;
        let mut shared = setup.shared(stages, kubelet_token, addresses, &drain)?;
        shared.load_balancer = load_balancer
            .as_ref()
            .map(|load_balancer| load_balancer.bind(&shared.dialer, &drain, &mut supervisor));
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
        let workers = worker::start(worker_count(config.serving.workers), &ports, shared)?;
        // Workers close their clones when the drain begins. A port only closes with its last
        // descriptor, so this one must not be kept.
        drop(ports);
        match addresses.insecure {
            // Nothing that is sent over loopback leaves the machine.
            Some(insecure) if insecure.ip().is_loopback() => {
                tracing::info!(%insecure, "serving plain HTTP on loopback");
            }
            Some(insecure) => {
                tracing::warn!(
                    %insecure,
                    "serving plain HTTP; tokens cross this port in clear text"
                );
            }
            None => {}
        }
        tracing::info!(
            secure = %addresses.secure,
            admin = %addresses.admin,
            workers = workers.len(),
            "serving"
        );
        let outcome = supervise(workers, supervisor, &drain).await;
        if let Some(load_balancer) = load_balancer {
            load_balancer.release().await;
        }
        outcome
    }
}

/// Returns the number of workers; 0 stands for one per core.
fn worker_count(setting: usize) -> usize {
    match setting {
        // Respects the CPU quota of the cgroup.
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// Binds a port, and names its setting if that fails.
fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener> {
    sockets::listen(address).map_err(|error| {
        let context = format!(
            "cannot listen on {address} ({setting}){}",
            bind_remedy(address, &error)
        );
        anyhow::Error::new(error).context(context)
    })
}

fn bind_remedy(address: SocketAddr, error: &std::io::Error) -> String {
    let port = address.port();
    match error.kind() {
        ErrorKind::AddrInUse => {
            "; choose another port, or stop the process that listens there".to_owned()
        }
        ErrorKind::AddrNotAvailable => format!(
            "; {} is not an address of this machine; choose one that is, or {} for all of them",
            address.ip(),
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
        ),
        ErrorKind::PermissionDenied => {
            "; choose a port above 1023, or grant the capability NET_BIND_SERVICE".to_owned()
        }
        // A kernel that was booted without IPv6.
        _ if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => format!(
            "; this machine has no IPv6; use {}",
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_errors_have_their_own_remedies() {
        for (errno, address, part) in [
            (Errno::EADDRINUSE, "127.0.0.1:8443", "stop the process"),
            (
                Errno::EADDRNOTAVAIL,
                "192.0.2.1:8443",
                "192.0.2.1 is not an address of this machine; choose one that is, or 0.0.0.0:8443",
            ),
            (Errno::EACCES, "127.0.0.1:443", "a port above 1023"),
            (
                Errno::EAFNOSUPPORT,
                "[::]:8443",
                "this machine has no IPv6; use 0.0.0.0:8443",
            ),
        ] {
            let error = std::io::Error::from_raw_os_error(errno as i32);
            let remedy = bind_remedy(address.parse().unwrap(), &error);
            assert!(remedy.contains(part), "{errno}: {remedy}");
        }
    }
}
