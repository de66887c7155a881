//! Start of the local proxy: its listeners and its auto-configuration.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;

use super::bastion::Tunnels;
use super::gateway::Gateway;
use super::listen::{Addresses, FIRST_UNPRIVILEGED, ListenError};
use super::pac;
use crate::desk::warn;

/// Local proxy for all names of the cluster.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// As those of `--address`.
    pub address: String,
    /// 0 for a free port.
    pub port: u16,
    /// File for the proxy auto-configuration, `-` for standard output.
    pub pac: Option<PathBuf>,
    /// DNS domain of the cluster, for the proxy auto-configuration.
    pub cluster_domain: String,
}

/// Reason why the local proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error(
        "port {} is in use on {} (--socks); choose another, or 0 for a free one",
        .0.port(),
        .0.ip()
    )]
    InUse(SocketAddr),
    #[error("ports below {FIRST_UNPRIVILEGED} need privileges: {0} (--socks); choose another")]
    Privileged(u16),
    #[error(transparent)]
    Listen(ListenError),
    #[error("cannot write {file:?} (--pac): {source}")]
    Pac { file: PathBuf, source: io::Error },
}

impl From<ListenError> for ProxyError {
    fn from(error: ListenError) -> Self {
        match error {
            ListenError::InUse { address, .. } => Self::InUse(address),
            ListenError::Privileged { address, .. } => Self::Privileged(address.port()),
            other => Self::Listen(other),
        }
    }
}

impl Proxy {
    /// Listens, and writes the auto-configuration.
    ///
    /// # Errors
    /// [`ProxyError`]
    pub fn open(&self, tunnels: &Rc<Tunnels>) -> Result<Rc<Gateway>, ProxyError> {
        let addresses = Addresses::parse(std::slice::from_ref(&self.address))?;
        let listeners = addresses.listen(self.port, 0)?;
        let gateway = Rc::new(Gateway::new(listeners, Rc::clone(tunnels)));
        let bound = gateway.addresses();
        for address in bound.iter().filter(|address| !address.ip().is_loopback()) {
            warn(format_args!(
                "any client that can reach {address} can open tunnels with your credentials"
            ));
        }
        if let Some(address) = bound.first() {
            self.write_pac(*address)?;
        }
        Ok(gateway)
    }

    fn write_pac(&self, bound: SocketAddr) -> Result<(), ProxyError> {
        let Some(file) = &self.pac else {
            return Ok(());
        };
        let ip = match bound.ip() {
            ip if ip.is_unspecified() => IpAddr::from(Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        let text = pac::text(SocketAddr::new(ip, bound.port()), &self.cluster_domain);
        let written = if file.as_os_str() == "-" {
            io::stdout().write_all(text.as_bytes())
        } else {
            std::fs::write(file, text)
        };
        written.map_err(|source| {
            let file = file.clone();
            ProxyError::Pac { file, source }
        })
    }
}
