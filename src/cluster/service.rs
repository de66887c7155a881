//! Services with their endpoints, as readers of the index see them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::RetryWindow;
use crate::model::{Endpoint, Protocol, Scheme};

/// `spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    #[default]
    None,
    ClientIp,
}

/// `appProtocol` of a service port, reduced to the protocols that change how the proxy connects
/// (KEP-1422, KEP-3726).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppProtocol {
    #[default]
    Unspecified,
    Https,
    /// `kubernetes.io/h2c`: HTTP/2 in clear text with prior knowledge.
    H2c,
    Ws,
    Wss,
}

impl AppProtocol {
    /// Parses the value of the field. Unknown protocols are treated as unspecified.
    pub fn parse(text: &str) -> Self {
        match text {
            // `https` is a service name of IANA, the others are defined by KEP-3726. All are
            // compared with their case.
            "https" => Self::Https,
            "kubernetes.io/h2c" => Self::H2c,
            "kubernetes.io/ws" => Self::Ws,
            "kubernetes.io/wss" => Self::Wss,
            // Others are valid too (KEP-1422), and their endpoints get HTTP as without the field.
            _ => Self::Unspecified,
        }
    }

    /// Returns the scheme to use if the id in the path has none (C47).
    pub fn scheme(self) -> Scheme {
        match self {
            Self::Https | Self::Wss => Scheme::Https,
            // The protocol of a connection in clear text does not change its scheme.
            Self::Unspecified | Self::H2c | Self::Ws => Scheme::Http,
        }
    }
}

/// Round-robin position and retry window of a service port. Both are kept when the endpoints
/// change.
#[derive(Debug, Default)]
pub struct RoundRobinCounter {
    turn: AtomicUsize,
    /// Each service port has its own window, so that the retries of a failing service do not use up
    /// the budget of others.
    pub retries: RetryWindow,
}

impl RoundRobinCounter {
    /// Returns the next position. All workers share the counter, so the order is strict across
    /// connections.
    pub fn advance(&self) -> usize {
        // No other memory depends on the counter, so `Relaxed` is enough. It wraps around.
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

/// A service with its ports.
#[derive(Debug)]
pub struct Service {
    /// TCP ports (C42).
    pub ports: Box<[ServicePort]>,
    pub udp_ports: Box<[ServicePort]>,
    /// The service has ports of other protocols than TCP, which are not in `ports`.
    pub has_other_protocols: bool,
    pub affinity: Affinity,
    /// Its applications are mounted under their proxy path and get the whole path of requests.
    pub keeps_path: bool,
    /// True if any slice lists an endpoint, ready or not (C48).
    pub has_endpoints: bool,
}

impl Service {
    /// Returns the ports of a protocol.
    pub fn ports(&self, protocol: Protocol) -> &[ServicePort] {
        match protocol {
            Protocol::Tcp => &self.ports,
            Protocol::Udp => &self.udp_ports,
        }
    }
}

/// One port of a service and its endpoints.
#[derive(Debug)]
pub struct ServicePort {
    pub name: Box<str>,
    pub number: u16,
    pub app_protocol: AppProtocol,
    /// Usable endpoints ordered by address: the ready ones or, if none is ready, those that serve
    /// while they terminate.
    pub endpoints: Arc<[Endpoint]>,
    /// As `endpoints`, selected among those that tunnels and listeners may use, which carry any
    /// protocol: without ports of nodes that no pod declares, and without those that have no pod.
    /// The same allocation as `endpoints` if these are all.
    pub tunnel_endpoints: Arc<[Endpoint]>,
    /// As `tunnel_endpoints`, selected among those on the bastion's own node. Empty if its name is
    /// not configured.
    pub local_endpoints: Arc<[Endpoint]>,
    /// Host names of endpoints (`endpoints[].hostname`), with their addresses, which are in
    /// `tunnel_endpoints` while the endpoint is usable.
    pub hostnames: Box<[(Box<str>, SocketAddr)]>,
    /// Some of the excluded endpoints. Empty if `tunnel_endpoints` is not.
    pub excluded: Box<[ExcludedEndpoint]>,
    pub rotation: Arc<RoundRobinCounter>,
}

/// An endpoint that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExcludedEndpoint {
    pub address: IpAddr,
    pub reason: ExclusionReason,
}

/// Reason why an endpoint is not used (C46, C110).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExclusionReason {
    #[error("not ready")]
    NotReady,
    #[error("the address is not allowed: only global unicast addresses are")]
    AddressNotAllowed,
    #[error("no targetRef to a pod, and targets.podLessEndpoints is off")]
    NoPod,
    #[error("targetRef names a pod in another namespace")]
    OtherNamespace,
    #[error("the pod in targetRef does not exist")]
    PodNotFound,
    #[error("the pod in targetRef has ended")]
    PodEnded,
    #[error("the pod in targetRef has another address")]
    AddressMismatch,
    /// Excludes the endpoint from tunnels and listeners only, as the next.
    #[error("no targetRef to a pod; only HTTP requests may be sent to it")]
    PodLess,
    #[error("the pod in targetRef is on the network of its node and does not declare the port")]
    NodePort,
}

impl ExclusionReason {
    /// Returns true if the endpoint may become usable without a change of its Service.
    pub(super) fn is_temporary(self) -> bool {
        match self {
            Self::NotReady | Self::PodNotFound | Self::PodEnded | Self::AddressMismatch => true,
            Self::AddressNotAllowed
            | Self::NoPod
            | Self::OtherNamespace
            | Self::PodLess
            | Self::NodePort => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_app_protocol_and_its_scheme() {
        for (text, app_protocol, scheme) in [
            ("https", AppProtocol::Https, Scheme::Https),
            ("kubernetes.io/h2c", AppProtocol::H2c, Scheme::Http),
            ("kubernetes.io/ws", AppProtocol::Ws, Scheme::Http),
            ("kubernetes.io/wss", AppProtocol::Wss, Scheme::Https),
            ("http", AppProtocol::Unspecified, Scheme::Http),
            ("HTTPS", AppProtocol::Unspecified, Scheme::Http),
            ("example.com/custom", AppProtocol::Unspecified, Scheme::Http),
            ("", AppProtocol::Unspecified, Scheme::Http),
        ] {
            let parsed = AppProtocol::parse(text);
            assert_eq!((parsed, parsed.scheme()), (app_protocol, scheme), "{text}");
        }
    }
}
