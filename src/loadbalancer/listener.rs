//! Contract between the controller, which decides on listeners, and the data path, which serves
//! them.
//!
//! The controller publishes [`Listeners`] in a `tokio::sync::watch`. The data path publishes a
//! [`BindReport`] in another one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::forward::is_local_address;
use crate::model::Networks;
pub use crate::model::Protocol;

/// Local address of a listener. A number may be in use for TCP and UDP at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ListenerKey {
    /// Bind address. May be the unspecified address of its family.
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

/// Listener for one port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerSpec {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    /// Number of the port in the Service.
    pub service_port: u16,
    /// Networks of the clients that are served, of both families. `None`: every client.
    pub source_ranges: Option<Networks>,
    /// Addresses at which the Service is served. `None`: all.
    pub addresses: Option<Arc<RequestedAddresses>>,
    /// Dials only endpoints on this node (`externalTrafficPolicy: Local`).
    pub local_only: bool,
    /// Idle time for which a client address keeps its endpoint (`sessionAffinity: ClientIP`).
    pub client_affinity: Option<Duration>,
    /// Sends a header of the PROXY protocol, version 2, to endpoints.
    pub proxy_protocol: bool,
}

impl ListenerSpec {
    /// Checks the address of a client, and the local one that it has used, if it is known.
    ///
    /// # Errors
    /// The reason to reject the client.
    pub fn check(&self, client: IpAddr, local: Option<IpAddr>) -> Result<(), Rejection> {
        let ranges = self.source_ranges.as_ref();
        if ranges.is_some_and(|ranges| !ranges.contains(client)) {
            return Err(Rejection::SourceRange);
        }
        if let Some((addresses, local)) = self.addresses.as_ref().zip(local)
            && addresses.rejects(local.to_canonical())
        {
            return Err(Rejection::Address);
        }
        Ok(())
    }

    /// Returns true if both are listeners of the same Service.
    pub fn is_of_same_service(&self, other: &Self) -> bool {
        (&self.namespace, &self.service) == (&other.namespace, &other.service)
    }
}

/// Published addresses, for a Service that asks for some of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestedAddresses {
    pub requested: Vec<IpAddr>,
    pub others: Vec<IpAddr>,
}

impl RequestedAddresses {
    /// Returns true if a client has used one of the other addresses. False if this machine does not
    /// have those that are requested: one that is translated on the way may become any address.
    fn rejects(&self, local: IpAddr) -> bool {
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == local.is_ipv4();
        self.others.contains(&local)
            && self
                .requested
                .iter()
                .filter(of_family)
                .all(|ip| is_local_address(*ip).unwrap_or(true))
    }
}

/// Reason why a client is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// It is outside of the source ranges.
    SourceRange,
    /// It has used a published address that the Service has not asked for.
    Address,
}

/// Listeners that the data path must serve, and no others.
pub type Listeners = BTreeMap<ListenerKey, Arc<ListenerSpec>>;

/// Listeners that could not be bound, with the reason.
pub type BindFailures = BTreeMap<ListenerKey, String>;

/// Wanted listeners that are bound, and those that could not be. The others are being tried.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BindReport {
    pub bound: BTreeSet<ListenerKey>,
    pub failures: BindFailures,
}

impl BindReport {
    /// Returns true if it is known whether the listener is open.
    pub fn is_settled(&self, listener: &ListenerKey) -> bool {
        self.bound.contains(listener) || self.failures.contains_key(listener)
    }
}

impl fmt::Display for ListenerKey {
    /// Formats the key as `192.0.2.1:80/TCP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = SocketAddr::new(self.address, self.port);
        write!(f, "{socket}/{}", self.protocol)
    }
}
