//! Target resolution: turns a [`Permit`] into a [`Route`] with the addresses to dial (CONFORMANCE
//! chapter 4).

mod lookup;
mod tunnel;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::authorize::Permit;
use crate::cluster::{
    Affinity, AppProtocol, Cluster, ExcludedEndpoint, Node, Phase, RetryWindow, RoundRobinCounter,
    Service, ServicePort,
};
use crate::model::address::{AddressPolicy, AddressType};
use crate::model::quote::GoQuoted;
use crate::model::target::{Id, InvalidId};
use crate::model::{Endpoint, Protocol, Resource, Scheme, Target};
pub use lookup::{LookupError, Lookups};
pub use tunnel::{TunnelResolveError, TunnelRoute, TunnelTarget};

/// Stage that resolves targets. One per process.
#[derive(Debug)]
pub struct Resolver {
    pub cluster: Arc<Cluster>,
    pub addresses: AddressPolicy,
    /// Address types of nodes in order of preference; the first that a node has is used.
    pub preferred: Vec<AddressType>,
    /// Resolver for nodes that publish a host name instead of an address.
    pub lookups: Lookups,
}

/// Endpoints and transport for a request.
#[derive(Clone, Debug)]
pub struct Route {
    pub candidates: Candidates,
    pub transport: Transport,
    /// Number of the requested service port. `None` for nodes and pods.
    pub service_port: Option<u16>,
    /// Endpoints get the whole path of the request, with its prefix up to `/proxy`.
    pub keeps_path: bool,
    /// Host name of the node. `None` for pods and services.
    pub node_host: Option<Box<str>>,
}

/// Endpoints that can serve a request. Never empty.
#[derive(Clone, Debug)]
pub enum Candidates {
    /// A node or a pod.
    One(Endpoint),
    /// The endpoints of a service port and its round-robin counter.
    Port {
        endpoints: Arc<[Endpoint]>,
        rotation: Arc<RoundRobinCounter>,
        affinity: Affinity,
    },
}

impl Candidates {
    /// Returns the window of the service's retry budget. `None` for nodes and pods.
    pub fn retries(&self) -> Option<&RetryWindow> {
        match self {
            Self::One(_) => None,
            Self::Port { rotation, .. } => Some(&rotation.retries),
        }
    }

    /// Returns all endpoints, ordered by address.
    pub fn endpoints(&self) -> &[Endpoint] {
        match self {
            Self::One(endpoint) => std::slice::from_ref(endpoint),
            Self::Port { endpoints, .. } => endpoints,
        }
    }
}

/// Protocol for connections to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Http,
    /// HTTP/2 in clear text with prior knowledge (RFC 9113 section 3.3); upgrades use HTTP/1.1.
    H2c,
    /// TLS without verification of the certificate (C51).
    Https,
    /// TLS to the kubelet's own port: verified if a CA is configured, with the bastion's
    /// credentials for kubelets (C32, C52).
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

impl Transport {
    /// Returns the scheme of the target's URLs.
    pub fn scheme(self) -> Scheme {
        match self {
            Self::Http | Self::H2c => Scheme::Http,
            Self::Https | Self::Kubelet => Scheme::Https,
        }
    }

    /// Returns true if the connection may be HTTP/2, by prior knowledge or ALPN.
    pub fn may_be_http2(self) -> bool {
        self != Self::Http
    }
}

/// Returns the transport for the scheme of the id or, without one, for the `appProtocol` of the
/// port (C47, C53).
fn service_transport(id: Id<'_>, port: &ServicePort) -> Transport {
    match (
        id.scheme.unwrap_or(port.app_protocol.scheme()),
        port.app_protocol,
    ) {
        (Scheme::Http, AppProtocol::H2c) => Transport::H2c,
        (scheme, _) => scheme.into(),
    }
}

/// Reason why an authorized target cannot be reached.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("name must be provided")]
    NoName,
    #[error("Namespace parameter required.")]
    NoNamespace,
    /// The name is not a valid path segment (C10).
    #[error("{0}")]
    BadName(String),
    #[error(transparent)]
    BadId(#[from] InvalidId),
    #[error("{resource} {} not found", GoQuoted(name))]
    NotFound { resource: Resource, name: String },
    /// The address of an ended pod may belong to another pod (C40).
    #[error("pod {} has ended (phase {phase})", GoQuoted(name))]
    PodEnded { name: String, phase: Phase },
    #[error("address not allowed")]
    AddressNotAllowed,
    #[error("no addresses for hostname")]
    NoAddresses,
    #[error("lookup {host}: {source}")]
    Lookup { host: String, source: LookupError },
    #[error("no preferred addresses found; known addresses: [{0}]")]
    NoPreferredAddress(String),
    /// `offered` lists the ports of the service.
    #[error("no service port {port} found for service {}", GoQuoted(service))]
    NoServicePort {
        port: i64,
        service: String,
        offered: Vec<String>,
    },
    /// The service has ports of other protocols only, over which there is no HTTP (C42).
    #[error("service {} has no TCP port", GoQuoted(service))]
    NoTcpPort { service: String },
    /// No port has the name in the id, or the id has no port and the service has several (C43).
    /// `id` is the bare name if the service has no endpoint at all (C48).
    #[error("no endpoints available for service {}", GoQuoted(id))]
    NoPort { id: String, offered: Vec<String> },
    /// The port has no usable endpoint. `excluded` lists some of those that are not usable.
    #[error("no endpoints available for service {}", GoQuoted(id))]
    NoEndpoints {
        id: String,
        excluded: Vec<ExcludedEndpoint>,
    },
}

impl Resolver {
    /// Resolves the target of a permit. The route is a snapshot, which later changes of the index
    /// do not affect.
    ///
    /// # Errors
    /// [`ResolveError`]. The checks run in the order of kube-apiserver, because only the first
    /// failure is visible to the client.
    pub async fn resolve(&self, permit: &Permit<'_>) -> Result<Route, ResolveError> {
        let target = permit.target();
        if target.id.is_empty() {
            return Err(ResolveError::NoName);
        }
        let id = target.id()?;
        if target.resource.is_namespaced() && target.namespace.is_empty() {
            return Err(ResolveError::NoNamespace);
        }
        if let Some(reason) = id.name_error() {
            return Err(ResolveError::BadName(reason));
        }
        match target.resource {
            // Boxed, because only a look-up of a name waits.
            Resource::Nodes => Box::pin(self.node(target, id)).await,
            Resource::Pods => self.pod(target, id),
            Resource::Services => self.service(target, id),
        }
    }

    async fn node(&self, target: &Target<'_>, id: Id<'_>) -> Result<Route, ResolveError> {
        let node = self
            .cluster
            .node(id.name)
            .ok_or_else(|| not_found(target, id))?;
        // Before the port, as in kube-apiserver.
        let address = self.node_address(&node).await?;
        let port = match id.port {
            "" => node.kubelet_port,
            text => port_number(text).ok_or_else(|| target.invalid_id())?,
        };
        // The kubelet's port always uses TLS and the kubelet credentials, whatever the scheme of
        // the id. Other ports never get the credentials.
        let transport = if port == node.kubelet_port {
            Transport::Kubelet
        } else {
            id.scheme.unwrap_or(Scheme::Http).into()
        };
        let candidates = Candidates::One(Endpoint {
            address: SocketAddr::new(address, port),
            name: Arc::clone(&node.name),
        });
        Ok(Route {
            candidates,
            transport,
            service_port: None,
            keeps_path: false,
            node_host: Some(node_host(&node)),
        })
    }

    /// Returns the address of a node, resolved if it is a host name. All addresses of the name must
    /// be allowed (C35). The checked address is the one that is dialed: a second lookup could
    /// return a different one (C36).
    async fn node_address(&self, node: &Node) -> Result<IpAddr, ResolveError> {
        let of_type = |wanted: &AddressType| {
            node.addresses
                .iter()
                .find(|(kind, _)| **kind == *wanted.as_str())
        };
        let preferred = self.preferred.iter().find_map(of_type);
        let Some((_, host)) = preferred else {
            let known: Vec<_> = node
                .addresses
                .iter()
                .map(|(kind, host)| format!("{{{kind} {host}}}"))
                .collect();
            return Err(ResolveError::NoPreferredAddress(known.join(" ")));
        };
        let addresses: Arc<[IpAddr]> = if let Ok(address) = host.parse::<IpAddr>() {
            [address].into()
        } else {
            let resolved = self.lookups.addresses(host).await;
            resolved.map_err(|source| ResolveError::Lookup {
                host: host.to_string(),
                source,
            })?
        };
        if !addresses
            .iter()
            .all(|address| self.addresses.permits(*address))
        {
            return Err(ResolveError::AddressNotAllowed);
        }
        addresses.first().copied().ok_or(ResolveError::NoAddresses)
    }

    fn pod(&self, target: &Target<'_>, id: Id<'_>) -> Result<Route, ResolveError> {
        let pod = self
            .cluster
            .pod(&target.namespace, id.name)
            .ok_or_else(|| not_found(target, id))?;
        // Before the address, because an ended pod may have none anymore.
        if pod.phase.has_ended() {
            return Err(ResolveError::PodEnded {
                name: id.name.to_owned(),
                phase: pod.phase,
            });
        }
        // Before the port, as in kube-apiserver.
        let address = pod.ips.first().copied();
        let address = address
            .filter(|address| self.addresses.permits(*address))
            .ok_or(ResolveError::AddressNotAllowed)?;
        let scheme = id.scheme.unwrap_or(Scheme::Http);
        let port = match id.port {
            "" => pod.first_port().unwrap_or(scheme.default_port()),
            text => port_number(text)
                .or_else(|| pod.named_port(text, Protocol::Tcp))
                .ok_or_else(|| target.invalid_id())?,
        };
        let endpoint = Endpoint {
            address: SocketAddr::new(address, port),
            name: Arc::clone(&pod.name),
        };
        Ok(Route {
            candidates: Candidates::One(endpoint),
            transport: scheme.into(),
            service_port: None,
            keeps_path: false,
            node_host: None,
        })
    }

    fn service(&self, target: &Target<'_>, id: Id<'_>) -> Result<Route, ResolveError> {
        let service = self
            .cluster
            .service(&target.namespace, id.name)
            .ok_or_else(|| not_found(target, id))?;
        let port = service_port(&service, target, id)?;
        if port.endpoints.is_empty() {
            return Err(ResolveError::NoEndpoints {
                id: service_id(&service, target, id),
                excluded: port.excluded.to_vec(),
            });
        }
        let candidates = Candidates::Port {
            endpoints: Arc::clone(&port.endpoints),
            rotation: Arc::clone(&port.rotation),
            affinity: service.affinity,
        };
        Ok(Route {
            candidates,
            transport: service_transport(id, port),
            service_port: Some(port.number),
            keeps_path: service.keeps_path,
            node_host: None,
        })
    }
}

/// Finds the service port of the id by number or name; without one, the only port (C42, C43), or
/// port 80 for a URL with the host of the service. Only TCP ports count.
fn service_port<'s>(
    service: &'s Service,
    target: &Target<'_>,
    id: Id<'_>,
) -> Result<&'s ServicePort, ResolveError> {
    if service.ports.is_empty() && service.has_other_protocols {
        return Err(ResolveError::NoTcpPort {
            service: id.name.to_owned(),
        });
    }
    // ExternalName services have no ports in the index, so every port of them is unavailable (C49).
    if service.ports.is_empty() {
        return Err(ResolveError::NoEndpoints {
            id: target.id.clone().into_owned(),
            excluded: Vec::new(),
        });
    }
    // Computed only for errors.
    let offered = || {
        service
            .ports
            .iter()
            .map(|port| format!("{} ({})", GoQuoted(&port.name), port.number))
            .collect()
    };
    // Wider than a port, as in kube-apiserver: 70000 is the number of no port rather than a name.
    if let Ok(number) = id.port.parse::<i64>() {
        let found = service
            .ports
            .iter()
            .find(|port| i64::from(port.number) == number);
        return found.ok_or_else(|| ResolveError::NoServicePort {
            port: number,
            service: id.name.to_owned(),
            offered: offered(),
        });
    }
    if target.is_host() && id.port.is_empty() {
        // The default port of the URL.
        let default = Scheme::Http.default_port();
        if let Some(port) = service.ports.iter().find(|port| port.number == default) {
            return Ok(port);
        }
    }
    match (
        service.ports.iter().find(|port| *port.name == *id.port),
        &*service.ports,
    ) {
        (Some(port), _) => Ok(port),
        (None, [only]) if id.port.is_empty() => Ok(only),
        (None, _) => Err(ResolveError::NoPort {
            id: service_id(service, target, id),
            offered: offered(),
        }),
    }
}

/// Returns the name of a service in errors about missing endpoints: the id as requested, or the
/// bare name if no slice lists any endpoint (C48).
fn service_id(service: &Service, target: &Target<'_>, id: Id<'_>) -> String {
    if service.has_endpoints {
        target.id.clone().into_owned()
    } else {
        id.name.to_owned()
    }
}

/// Returns the address of type `Hostname`, or the name of the node, which usually equals it.
fn node_host(node: &Node) -> Box<str> {
    node.addresses
        .iter()
        .find(|(kind, _)| **kind == *AddressType::Hostname.as_str())
        .map_or_else(|| Box::from(&*node.name), |(_, host)| host.clone())
}

fn not_found(target: &Target<'_>, id: Id<'_>) -> ResolveError {
    ResolveError::NotFound {
        resource: target.resource,
        name: id.name.to_owned(),
    }
}

/// Parses a port from 1 to 65535. Rust's parser alone would accept a plus sign (C39).
fn port_number(text: &str) -> Option<u16> {
    text.parse()
        .ok()
        .filter(|port| *port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
