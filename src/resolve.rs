//! Which addresses? A [`Permit`] for a target in, a [`Route`] out (CONFORMANCE chapter 4).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::authorize::Permit;
use crate::cluster::{Affinity, Cluster, Node, Rotation, Service, ServicePort};
use crate::model::address::{AddressPolicy, AddressType};
use crate::model::quote::Quoted;
use crate::model::target::{Id, InvalidId};
use crate::model::{Endpoint, Resource, Scheme, Target};

/// The stage. One per process.
#[derive(Debug)]
pub struct Resolve {
    pub cluster: Arc<Cluster>,
    pub addresses: AddressPolicy,
    /// Which of a node's addresses is taken: the first of these types that it has.
    pub preferred: Vec<AddressType>,
}

/// Where a request may go, and how to speak there.
#[derive(Clone, Debug)]
pub struct Route {
    pub candidates: Candidates,
    pub transport: Transport,
}

/// Who can serve the request. Never empty.
#[derive(Clone, Debug)]
pub enum Candidates {
    /// A node or a pod.
    One(Endpoint),
    /// The endpoints of a service port, whose turns `rotation` counts.
    Port { endpoints: Arc<[Endpoint]>, rotation: Arc<Rotation>, affinity: Affinity },
}

impl Candidates {
    pub fn endpoints(&self) -> &[Endpoint] {
        match self {
            Self::One(endpoint) => std::slice::from_ref(endpoint),
            Self::Port { endpoints, .. } => endpoints,
        }
    }
}

/// How the target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Http,
    /// The certificate is not verified (C51).
    Https,
    /// A kubelet's own port: verified where a CA is configured, with the bastion's credentials for kubelets (C32, C52).
    Kubelet,
}

impl From<Scheme> for Transport {
    fn from(scheme: Scheme) -> Self {
        match scheme {
            Scheme::Http => Self::Http,
            Scheme::Https => Self::Https,
        }
    }
}

/// Why a target that the caller may reach cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("name must be provided")]
    NoName,
    #[error("Namespace parameter required.")]
    NoNamespace,
    /// The name is none that an object can have (C10).
    #[error("{0}")]
    BadName(String),
    #[error(transparent)]
    BadId(#[from] InvalidId),
    #[error("{resource} {} not found", Quoted(name))]
    NotFound { resource: Resource, name: String },
    #[error("address not allowed")]
    AddressNotAllowed,
    #[error("no addresses for hostname")]
    NoAddresses,
    #[error("{0}")]
    Lookup(String),
    #[error("no preferred addresses found; known addresses: [{0}]")]
    NoPreferredAddress(String),
    #[error("no service port {port} found for service {}", Quoted(service))]
    NoServicePort { port: i64, service: String },
    /// `which` is the id, or the bare name where the service has no endpoint at all (C48).
    #[error("no endpoints available for service {}", Quoted(which))]
    NoEndpoints { which: String },
    /// The id must name one of several ports and does not (C43).
    #[error("no endpoints available for service {}: name one of its ports, {offered}", Quoted(which))]
    AmbiguousPort { which: String, offered: String },
}

impl Resolve {
    /// Looks the target up. What it finds is a snapshot: a request goes on with it whatever changes meanwhile.
    ///
    /// # Errors
    /// [`ResolveError`], in the order in which the apiserver checks.
    pub async fn resolve(&self, permit: &Permit<'_>) -> Result<Route, ResolveError> {
        let target = permit.target();
        if target.resource.is_namespaced() && target.namespace.is_empty() {
            return Err(ResolveError::NoNamespace);
        }
        if target.id.is_empty() {
            return Err(ResolveError::NoName);
        }
        let id = target.id()?;
        if let Some(fault) = id.name_fault() {
            return Err(ResolveError::BadName(fault));
        }
        match target.resource {
            Resource::Nodes => self.node(target, id).await,
            Resource::Pods => self.pod(target, id),
            Resource::Services => self.service(target, id),
        }
    }

    async fn node(&self, target: &Target<'_>, id: Id<'_>) -> Result<Route, ResolveError> {
        let node = self.cluster.node(id.name).ok_or_else(|| not_found(target, id))?;
        let port = match id.port {
            "" => node.kubelet_port,
            text => port_number(text).ok_or_else(|| target.invalid_id())?,
        };
        let transport =
            if port == node.kubelet_port { Transport::Kubelet } else { id.scheme.unwrap_or(Scheme::Http).into() };
        let address = SocketAddr::new(self.node_address(&node).await?, port);
        Ok(Route { candidates: Candidates::One(Endpoint { address, name: Arc::clone(&node.name) }), transport })
    }

    /// Every address that a host name resolves to must be one that may be dialled (C35), and the one that was
    /// checked is the one that is dialled (C36).
    async fn node_address(&self, node: &Node) -> Result<IpAddr, ResolveError> {
        let preferred = self.preferred.iter().find_map(|kind| node.addresses.iter().find(|(found, _)| found == kind));
        let Some((_, host)) = preferred else {
            let known: Vec<_> = node.addresses.iter().map(|(kind, host)| format!("{{{kind} {host}}}")).collect();
            return Err(ResolveError::NoPreferredAddress(known.join(" ")));
        };
        let addresses: Vec<IpAddr> = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => tokio::net::lookup_host((&**host, 0))
                .await
                .map_err(|error| ResolveError::Lookup(format!("lookup {host}: {error}")))?
                .map(|address| address.ip())
                .collect(),
        };
        if !addresses.iter().all(|address| self.addresses.permits(*address)) {
            return Err(ResolveError::AddressNotAllowed);
        }
        addresses.first().copied().ok_or(ResolveError::NoAddresses)
    }

    fn pod(&self, target: &Target<'_>, id: Id<'_>) -> Result<Route, ResolveError> {
        let pod = self.cluster.pod(&target.namespace, id.name).ok_or_else(|| not_found(target, id))?;
        let scheme = id.scheme.unwrap_or(Scheme::Http);
        let port = match id.port {
            "" => pod.first_port.unwrap_or(scheme.default_port()),
            text => {
                let named = || pod.named_ports.iter().find(|(name, _)| **name == *text).map(|(_, port)| *port);
                port_number(text).or_else(named).ok_or_else(|| target.invalid_id())?
            }
        };
        let address = pod.ips.first().copied().filter(|address| self.addresses.permits(*address));
        let address = SocketAddr::new(address.ok_or(ResolveError::AddressNotAllowed)?, port);
        let endpoint = Endpoint { address, name: Arc::clone(&pod.name) };
        Ok(Route { candidates: Candidates::One(endpoint), transport: scheme.into() })
    }

    fn service(&self, target: &Target<'_>, id: Id<'_>) -> Result<Route, ResolveError> {
        let service = self.cluster.service(&target.namespace, id.name).ok_or_else(|| not_found(target, id))?;
        let port = service_port(&service, target, id)?;
        if port.endpoints.is_empty() {
            return Err(no_endpoints(&service, target, id));
        }
        let scheme = id.scheme.unwrap_or(port.app_protocol.scheme());
        let candidates = Candidates::Port {
            endpoints: Arc::clone(&port.endpoints),
            rotation: Arc::clone(&port.rotation),
            affinity: service.affinity,
        };
        Ok(Route { candidates, transport: scheme.into() })
    }
}

/// The service port that the id means: by number, by name, or the only one (C42, C43).
fn service_port<'s>(service: &'s Service, target: &Target<'_>, id: Id<'_>) -> Result<&'s ServicePort, ResolveError> {
    if let Ok(number) = id.port.parse::<i64>() {
        let found = service.ports.iter().find(|port| i64::from(port.number) == number);
        return found.ok_or_else(|| ResolveError::NoServicePort { port: number, service: id.name.to_owned() });
    }
    match (service.ports.iter().find(|port| *port.name == *id.port), &*service.ports) {
        (Some(port), _) => Ok(port),
        (None, [only]) if id.port.is_empty() => Ok(only),
        (None, ports) if ports.len() > 1 => {
            let offered: Vec<_> = ports.iter().map(|port| format!("{} ({})", port.name, port.number)).collect();
            Err(ResolveError::AmbiguousPort { which: target.id.clone().into_owned(), offered: offered.join(", ") })
        }
        (None, _) => Err(no_endpoints(service, target, id)),
    }
}

fn no_endpoints(service: &Service, target: &Target<'_>, id: Id<'_>) -> ResolveError {
    // An ExternalName service has neither ports nor endpoints, and is told by its id (C49).
    let bare = !service.has_endpoints && !service.ports.is_empty();
    ResolveError::NoEndpoints { which: if bare { id.name } else { &target.id }.to_owned() }
}

fn not_found(target: &Target<'_>, id: Id<'_>) -> ResolveError {
    ResolveError::NotFound { resource: target.resource, name: id.name.to_owned() }
}

/// 1 to 65535 in plain digits: no sign, which Rust's parser would take (C39).
fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
}
