//! Resolution of tunnels: from host and port to the endpoints of a service or pod.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Candidates, Resolver};
use crate::authorize::TunnelPermit;
use crate::cluster::{ExcludedEndpoint, Phase, Service, ServicePort};
use crate::model::quote::GoQuoted;
use crate::model::tunnel::{PortRef, TunnelAddress, TunnelHost, TunnelObject};
use crate::model::{Endpoint, Protocol, Resource};

/// Service or pod that a tunnel leads to, before the caller is authorized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelTarget {
    pub object: TunnelObject,
    pub port: PortRef,
    pub protocol: Protocol,
    /// The address of the object by which the client named it.
    pub address: Option<IpAddr>,
}

/// Endpoints of a tunnel.
#[derive(Clone, Debug)]
pub struct TunnelRoute {
    pub candidates: Candidates,
}

/// Reason why a tunnel has no endpoint.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TunnelResolveError {
    #[error("{resource} {} not found", GoQuoted(name))]
    NotFound { resource: Resource, name: String },
    /// The address of an ended pod may belong to another pod (CONFORMANCE C40).
    #[error("pod {} has ended (phase {phase})", GoQuoted(name))]
    PodEnded { name: String, phase: Phase },
    #[error("pod {} has no address yet", GoQuoted(name))]
    NoAddress { name: String },
    /// CONFORMANCE C35.
    #[error("address not allowed")]
    AddressNotAllowed,
    /// Other ports of the address are those of the node.
    #[error(
        "pod {} is on the network of its node; only the {protocol} ports that it declares can be \
         reached",
        GoQuoted(name)
    )]
    HostNetwork { name: String, protocol: Protocol },
    /// `offered` lists the ports of the protocol.
    #[error(
        "{} {} has no {protocol} port {}",
        resource.singular(),
        GoQuoted(name),
        GoQuoted(&port.to_string())
    )]
    NoPort {
        resource: Resource,
        name: String,
        port: PortRef,
        protocol: Protocol,
        offered: Vec<String>,
    },
    #[error(
        "no endpoint of service {} has the host name {}",
        GoQuoted(service),
        GoQuoted(hostname)
    )]
    NoHostname { service: String, hostname: String },
    #[error(
        "the endpoint of service {} with the host name {} is not ready",
        GoQuoted(service),
        GoQuoted(hostname)
    )]
    HostnameNotReady { service: String, hostname: String },
    /// The port has no usable endpoint. `excluded` lists some of those that are not usable.
    #[error("no endpoints available for service {}", GoQuoted(service))]
    NoEndpoints {
        service: String,
        excluded: Vec<ExcludedEndpoint>,
    },
}

impl Resolver {
    /// Finds the object that a client named, by its address if it has no name. `None` if no service
    /// and no pod has the address.
    pub fn locate(&self, address: TunnelAddress) -> Option<TunnelTarget> {
        let TunnelAddress {
            protocol,
            host,
            port,
        } = address;
        let (object, address) = match host {
            TunnelHost::Object(object) => (object, None),
            TunnelHost::PodAddress { object, address } => self.pod_or_address(object, address),
            TunnelHost::Address(address) => (self.object_by_ip(address)?, Some(address)),
        };
        Some(TunnelTarget {
            object,
            port,
            protocol,
            address,
        })
    }

    /// Returns the pod of this name, or else the one with the address in the namespace. The names of
    /// most pods cannot be read as addresses.
    fn pod_or_address(
        &self,
        named: TunnelObject,
        address: IpAddr,
    ) -> (TunnelObject, Option<IpAddr>) {
        if self.cluster.pod(&named.namespace, &named.name).is_none()
            && let Some(pod) = self.cluster.pod_by_ip(address)
            && *pod.namespace == *named.namespace
        {
            let name = pod.name.as_ref().into();
            return (TunnelObject { name, ..named }, Some(address));
        }
        (named, None)
    }

    fn object_by_ip(&self, address: IpAddr) -> Option<TunnelObject> {
        if let Some(service) = self.cluster.service_by_ip(address) {
            return Some(TunnelObject {
                resource: Resource::Services,
                namespace: service.namespace.into(),
                name: service.name.into(),
                hostname: None,
            });
        }
        let pod = self.cluster.pod_by_ip(address)?;
        Some(TunnelObject {
            resource: Resource::Pods,
            namespace: pod.namespace.as_ref().into(),
            name: pod.name.as_ref().into(),
            hostname: None,
        })
    }

    /// Returns true while a UDP endpoint is that of an object: its pod has the address, ready or not,
    /// or the service lists it. Later, the address may be that of another pod.
    pub fn has_udp_endpoint(&self, object: &TunnelObject, endpoint: &Endpoint) -> bool {
        let address = endpoint.address;
        let pod = self.cluster.pod(&object.namespace, &endpoint.name);
        if pod.is_some_and(|pod| !pod.phase.has_ended() && pod.ips.contains(&address.ip())) {
            return true;
        }
        // One without a pod, or whose address another pod of the service has by now.
        object.resource == Resource::Services
            && self
                .cluster
                .service(&object.namespace, &object.name)
                .is_some_and(|service| {
                    let ports = service.ports(Protocol::Udp).iter();
                    let mut endpoints = ports.flat_map(|port| &*port.tunnel_endpoints);
                    endpoints.any(|it| it.address == address)
                })
    }

    /// Resolves the target of a permit. The route is a snapshot, which later changes of the index do
    /// not affect.
    ///
    /// # Errors
    /// [`TunnelResolveError`].
    pub fn resolve_tunnel(
        &self,
        permit: &TunnelPermit<'_>,
        target: &TunnelTarget,
    ) -> Result<TunnelRoute, TunnelResolveError> {
        let object = permit.object();
        let candidates = match object.resource {
            Resource::Services => self.service_tunnel(object, target)?,
            Resource::Pods | Resource::Nodes => self.pod_tunnel(object, target)?,
        };
        Ok(TunnelRoute { candidates })
    }

    fn pod_tunnel(
        &self,
        object: &TunnelObject,
        target: &TunnelTarget,
    ) -> Result<Candidates, TunnelResolveError> {
        let pod = self.cluster.pod(&object.namespace, &object.name);
        let name = || object.name.clone();
        let pod = pod.ok_or_else(|| not_found(object))?;
        if pod.phase.has_ended() {
            return Err(TunnelResolveError::PodEnded {
                name: name(),
                phase: pod.phase,
            });
        }
        let protocol = target.protocol;
        let declared = || pod.ports.iter().filter(|port| port.protocol == protocol);
        let no_port = || TunnelResolveError::NoPort {
            resource: Resource::Pods,
            name: name(),
            port: target.port.clone(),
            protocol,
            offered: declared()
                .map(|port| offered(&port.name, port.number))
                .collect(),
        };
        let port = match &target.port {
            PortRef::Name(port) => pod.named_port(port, protocol).ok_or_else(no_port)?,
            PortRef::Number(number) => *number,
        };
        let is_declared = || pod.declares(port, protocol);
        if pod.host_network && !is_declared() {
            return Err(TunnelResolveError::HostNetwork {
                name: name(),
                protocol,
            });
        }
        // Other UDP ports do not answer, so that a client could not tell them from lost datagrams.
        if protocol == Protocol::Udp && !is_declared() {
            return Err(no_port());
        }
        // The pod may have another one since the address was looked up.
        let address = match target.address {
            Some(address) => pod.ips.iter().find(|ip| **ip == address),
            None => pod.ips.first(),
        };
        let address = *address.ok_or_else(|| TunnelResolveError::NoAddress { name: name() })?;
        if !self.addresses.permits(address) {
            return Err(TunnelResolveError::AddressNotAllowed);
        }
        Ok(Candidates::One(Endpoint {
            address: SocketAddr::new(address, port),
            name: Arc::clone(&pod.name),
        }))
    }

    fn service_tunnel(
        &self,
        object: &TunnelObject,
        target: &TunnelTarget,
    ) -> Result<Candidates, TunnelResolveError> {
        let service = self.cluster.service(&object.namespace, &object.name);
        let service = service.ok_or_else(|| not_found(object))?;
        if let Some(hostname) = &object.hostname {
            return named_endpoint(&service, hostname, object, target).map(Candidates::One);
        }
        let port = service_port(&service, object, target)?;
        if port.tunnel_endpoints.is_empty() {
            return Err(TunnelResolveError::NoEndpoints {
                service: object.name.clone(),
                excluded: port.excluded.to_vec(),
            });
        }
        Ok(Candidates::Port {
            endpoints: Arc::clone(&port.tunnel_endpoints),
            rotation: Arc::clone(&port.rotation),
            affinity: service.affinity,
        })
    }
}

/// Returns the endpoint of a service with this host name. DNS gives clients its address without a
/// port, so the number may be that of the service or of the endpoint.
fn named_endpoint(
    service: &Service,
    hostname: &str,
    object: &TunnelObject,
    target: &TunnelTarget,
) -> Result<Endpoint, TunnelResolveError> {
    let ports = service.ports(target.protocol);
    let of_endpoint = |port: &&ServicePort| {
        let mut addresses = port.hostnames.iter();
        addresses.any(|(name, address)| {
            **name == *hostname && target.port == PortRef::Number(address.port())
        })
    };
    let port = match service_port(service, object, target) {
        Ok(port) => port,
        Err(error) => ports.iter().find(of_endpoint).ok_or(error)?,
    };
    let named = port.hostnames.iter();
    let mut named = named.filter(|(name, _)| **name == *hostname).peekable();
    let is_known = named.peek().is_some();
    let endpoint = named.find_map(|(_, address)| {
        let mut endpoints = port.tunnel_endpoints.iter();
        endpoints.find(|endpoint| endpoint.address == *address)
    });
    endpoint.cloned().ok_or_else(|| {
        let (service, hostname) = (object.name.clone(), hostname.to_owned());
        if is_known {
            TunnelResolveError::HostnameNotReady { service, hostname }
        } else {
            TunnelResolveError::NoHostname { service, hostname }
        }
    })
}

fn service_port<'s>(
    service: &'s Service,
    object: &TunnelObject,
    target: &TunnelTarget,
) -> Result<&'s ServicePort, TunnelResolveError> {
    let ports = service.ports(target.protocol);
    let found = ports.iter().find(|port| match &target.port {
        PortRef::Number(number) => port.number == *number,
        PortRef::Name(name) => *port.name == **name,
    });
    found.ok_or_else(|| TunnelResolveError::NoPort {
        resource: Resource::Services,
        name: object.name.clone(),
        port: target.port.clone(),
        protocol: target.protocol,
        offered: ports
            .iter()
            .map(|port| offered(&port.name, port.number))
            .collect(),
    })
}

fn offered(name: &str, number: u16) -> String {
    format!("{} ({number})", GoQuoted(name))
}

fn not_found(object: &TunnelObject) -> TunnelResolveError {
    TunnelResolveError::NotFound {
        resource: object.resource,
        name: object.name.clone(),
    }
}
