//! Requests of Services, and the reasons for which they are not served.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::listener::{ListenerKey, Protocol, RequestedAddresses};
use super::service::{Port, Service};
use crate::cluster::ObjectKey;
use crate::config::{PublishedAddress, parse_published_address};
use crate::model::network::NetworkError;
use crate::model::{Network, Networks};

/// Annotations that are read. Others are not kept.
pub const ANNOTATIONS: [&str; 3] = [SOURCE_RANGES, PROXY_PROTOCOL, ADDRESSES];
/// Legacy form of `spec.loadBalancerSourceRanges`: networks, separated by commas.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// `v2` sends a header of the PROXY protocol to endpoints.
const PROXY_PROTOCOL: &str = "kube-bastion.dev/proxy-protocol";
/// Addresses among the configured ones, separated by commas. Unlike the deprecated
/// `spec.loadBalancerIP`, it may have one of each family.
const ADDRESSES: &str = "kube-bastion.dev/load-balancer-addresses";

/// Domain of the errors in `ports[]`.
const DOMAIN: &str = "kube-bastion.dev";
/// Reasons of the condition of Services that hold all listeners that they claim, although not all
/// are served.
const HOLDING: [&str; 4] = [
    "NoAddress",
    "NoLocalEndpoint",
    "NodesExcluded",
    "BindFailed",
];

/// Reason why a Service, or one of its ports, is not served. The first one in the order of the
/// variants is the reason of the condition: of a Service that lacks a listener, one that says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    #[error(
        "the namespace {0} is not selected (loadBalancer.namespaceSelector); ask the administrator \
         of the bastion"
    )]
    NamespaceNotAllowed(Box<str>),
    #[error(
        "invalid source range {0:?}; use networks such as 192.0.2.0/24. Nothing is opened until it \
         is corrected"
    )]
    InvalidSourceRanges(String),
    #[error("annotation {annotation}: {value:?} is not valid; use {expected}")]
    InvalidAnnotation {
        annotation: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("the address {0} is not one of the bastion's (loadBalancer.addresses)")]
    AddressNotConfigured(String),
    #[error(
        "the bastion has no address of the Service's IP families (loadBalancer.addresses, \
         loadBalancer.bindAddresses)"
    )]
    NoAddress,
    #[error(
        "externalTrafficPolicy: Local requires the name of the bastion's node \
         (loadBalancer.nodeName, KUBE_BASTION_NODE_NAME)"
    )]
    NoNodeName,
    #[error(
        "{key} is in use by the Service {holder}; it is taken over when that Service releases it"
    )]
    PortConflict { key: ListenerKey, holder: ObjectKey },
    #[error("{0}; use fewer ports, or ask the administrator of the bastion")]
    TooManyPorts(PortLimit),
    #[error(
        "no replica of the bastion has a ready endpoint on its node (externalTrafficPolicy: Local)"
    )]
    NoLocalEndpoint,
    #[error("the nodes of the addresses, or all nodes, are excluded from external load balancers")]
    NodesExcluded,
    #[error("cannot listen on {key}: {reason}")]
    BindFailed { key: ListenerKey, reason: String },
    #[error("{protocol} port {port} is not served; only TCP and UDP are")]
    UnsupportedProtocol { port: u16, protocol: String },
    #[error("port {0} is not allowed (loadBalancer.allowedPorts)")]
    PortNotAllowed(u16, Protocol),
}

impl Problem {
    /// Returns the reason in `CamelCase`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NamespaceNotAllowed(_) => "NamespaceNotAllowed",
            Self::InvalidSourceRanges(_) => "InvalidSourceRanges",
            Self::InvalidAnnotation { .. } => "InvalidAnnotation",
            Self::AddressNotConfigured(_) => "AddressNotConfigured",
            Self::NoAddress => "NoAddress",
            Self::NoNodeName => "NoNodeName",
            Self::NoLocalEndpoint => "NoLocalEndpoint",
            Self::NodesExcluded => "NodesExcluded",
            Self::UnsupportedProtocol { .. } => "UnsupportedProtocol",
            Self::PortNotAllowed(..) => "PortNotAllowed",
            Self::PortConflict { .. } => "PortConflict",
            Self::TooManyPorts(_) => "TooManyPorts",
            Self::BindFailed { .. } => "BindFailed",
        }
    }

    /// Returns the reason as an error in `ports[]`, `DOMAIN/CamelCase`.
    pub fn port_error(&self) -> String {
        format!("{DOMAIN}/{}", self.reason())
    }

    /// Returns true if a Service whose condition has this reason holds all listeners that it claims.
    pub fn is_holding(reason: &str) -> bool {
        HOLDING.contains(&reason)
    }

    /// Returns true if a port with this error in `ports[]` has its listeners.
    pub fn is_holding_error(error: &str) -> bool {
        let reason = error
            .strip_prefix(DOMAIN)
            .and_then(|it| it.strip_prefix('/'));
        reason.is_some_and(Self::is_holding)
    }

    /// Returns true if the configuration is valid, and no replica can serve the Service now.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::NoLocalEndpoint | Self::NodesExcluded)
    }
}

/// Maximum number of ports of a Service that are served, the first ones.
pub const MAX_PORTS: usize = 64;
/// Maximum number of listeners of the Services of a namespace.
pub const MAX_OF_NAMESPACE: usize = 256;
/// Maximum number of listeners of the process, each of which has a socket and a task per worker.
pub const MAX_OF_PROCESS: usize = 4096;

/// Limit on listeners that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum PortLimit {
    #[error("only the first {MAX_PORTS} ports of a Service are served")]
    Service,
    #[error("the Services of the namespace have {MAX_OF_NAMESPACE} listeners, the maximum")]
    Namespace,
    #[error("the bastion has {MAX_OF_PROCESS} listeners, the maximum")]
    Process,
}

/// A valid request of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Addresses for the status, with the bind addresses that serve each. None is empty.
    pub addresses: Vec<(PublishedAddress, Vec<IpAddr>)>,
    pub ports: Vec<RequestedPort>,
    /// `None`: every client.
    pub source_ranges: Option<Networks>,
    /// Addresses of the listeners, which may be bound to all. `None`: the Service has not asked for
    /// some.
    pub requested: Option<Arc<RequestedAddresses>>,
    pub local_only: bool,
    pub client_affinity: Option<Duration>,
    pub proxy_protocol: bool,
}

/// Port of a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedPort {
    pub port: u16,
    /// As the API spells it.
    pub name_of_protocol: String,
    /// `None` for protocols that are not served.
    pub protocol: Option<Protocol>,
}

impl Request {
    /// Reads the request of a Service. `published` are the addresses of the bastion.
    ///
    /// # Errors
    /// The first invalid field or annotation.
    pub fn read(
        service: &Service,
        published: &[PublishedAddress],
        bind_addresses: &[IpAddr],
    ) -> Result<Self, Problem> {
        let requested = requested_addresses(service)?;
        // That of the Service in `loadBalancer.addressesFrom` may be missing for a moment.
        if published.is_empty() {
            return Err(Problem::NoAddress);
        }
        let unknown = requested.iter().find(|wanted| !published.contains(wanted));
        if let Some(unknown) = unknown {
            return Err(Problem::AddressNotConfigured(unknown.to_string()));
        }
        let is_requested =
            |address: &&PublishedAddress| requested.is_empty() || requested.contains(address);
        let bind: Vec<IpAddr> = bind_addresses
            .iter()
            .copied()
            .filter(|address| service.has_family_of(*address))
            .collect();
        let addresses: Vec<_> = published
            .iter()
            .filter(is_requested)
            .map(|address| (address.clone(), binds_of(address, &bind)))
            // Drops addresses without a bind address of the Service's families.
            .filter(|(_, bind)| !bind.is_empty())
            .collect();
        if addresses.is_empty() {
            return Err(Problem::NoAddress);
        }
        Ok(Self {
            addresses,
            ports: service.spec.ports.iter().map(RequestedPort::new).collect(),
            source_ranges: source_ranges(service)?,
            requested: requested_among(&requested, published),
            local_only: service.is_local_only(),
            client_affinity: service.client_affinity(),
            proxy_protocol: proxy_protocol(service)?,
        })
    }

    /// Returns all bind addresses of the request, each once.
    pub fn bind_addresses(&self) -> Vec<IpAddr> {
        let all = self.addresses.iter().flat_map(|(_, bind)| bind);
        let mut all: Vec<IpAddr> = all.copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl RequestedPort {
    fn new(port: &Port) -> Self {
        Self {
            port: port.port,
            name_of_protocol: port.protocol.clone(),
            protocol: Protocol::parse(&port.protocol),
        }
    }
}

/// Returns the bind addresses that serve clients of an address: the address itself, or all of its
/// family if it is translated on the way. A name may lead to any.
pub fn binds_of(address: &PublishedAddress, bind: &[IpAddr]) -> Vec<IpAddr> {
    match address {
        PublishedAddress::Ip(ip) if bind.contains(ip) => vec![*ip],
        PublishedAddress::Ip(ip) => {
            let same_family = bind.iter().filter(|other| other.is_ipv4() == ip.is_ipv4());
            same_family.copied().collect()
        }
        PublishedAddress::Hostname(_) => bind.to_vec(),
    }
}

/// Returns the addresses that the Service asks for. Empty: all.
fn requested_addresses(service: &Service) -> Result<Vec<PublishedAddress>, Problem> {
    if let Some(list) = service.annotation(ADDRESSES) {
        let addresses = list
            .split(',')
            .map(|text| parse_published_address(text.trim()));
        return addresses
            .collect::<Result<_, _>>()
            .map_err(|_| Problem::InvalidAnnotation {
                annotation: ADDRESSES,
                value: list.to_owned(),
                expected: "addresses separated by commas, for example 192.0.2.1,2001:db8::1",
            });
    }
    match service.spec.load_balancer_ip.trim() {
        "" => Ok(Vec::new()),
        text => parse_published_address(text)
            .map(|address| vec![address])
            .map_err(|_| Problem::AddressNotConfigured(text.to_owned())),
    }
}

/// Divides the published addresses for a Service. `None` if it asks for all, or for a name, which may
/// lead to any.
fn requested_among(
    requested: &[PublishedAddress],
    published: &[PublishedAddress],
) -> Option<Arc<RequestedAddresses>> {
    let is_name = |address: &PublishedAddress| matches!(address, PublishedAddress::Hostname(_));
    if requested.is_empty() || requested.iter().any(is_name) {
        return None;
    }
    let ips = published.iter().filter_map(|address| match address {
        PublishedAddress::Ip(ip) => Some(*ip),
        PublishedAddress::Hostname(_) => None,
    });
    let (requested, others) = ips.partition(|ip| requested.contains(&PublishedAddress::Ip(*ip)));
    Some(Arc::new(RequestedAddresses { requested, others }))
}

/// Returns the networks of the clients. `None`: every client.
fn source_ranges(service: &Service) -> Result<Option<Networks>, Problem> {
    let field = &service.spec.load_balancer_source_ranges;
    let networks: Networks = if field.is_empty() {
        let annotation = service.annotation(SOURCE_RANGES).unwrap_or_default();
        let texts = annotation.split(',').filter(|_| !annotation.is_empty());
        texts.map(network).collect::<Result<_, _>>()?
    } else {
        let texts = field.iter().map(String::as_str);
        texts.map(network).collect::<Result<_, _>>()?
    };
    Ok((!networks.is_empty()).then_some(networks))
}

/// Parses a network with spaces around it, as the API server accepts it: with a prefix, behind which
/// bits are ignored.
fn network(text: &str) -> Result<Network, Problem> {
    let invalid = || Problem::InvalidSourceRanges(text.to_owned());
    let text = text.trim();
    if !text.contains('/') {
        return Err(invalid());
    }
    match text.parse() {
        Ok(network) | Err(NetworkError::HostBits(network, _)) => Ok(network),
        Err(NetworkError::Syntax) => Err(invalid()),
    }
}

fn proxy_protocol(service: &Service) -> Result<bool, Problem> {
    match service.annotation(PROXY_PROTOCOL) {
        None => Ok(false),
        Some("v2") => Ok(true),
        // Endpoints that expect a header would read data as one, so that nothing is served.
        Some(value) => Err(Problem::InvalidAnnotation {
            annotation: PROXY_PROTOCOL,
            value: value.to_owned(),
            expected: "v2, or remove it",
        }),
    }
}

#[cfg(test)]
mod tests;
