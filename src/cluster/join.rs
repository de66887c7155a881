//! Joins a service with its EndpointSlices and the pods in their `targetRef`.
//!
//! The result for a port is the first non-empty set of four: ready endpoints of the primary family,
//! ready endpoints of the other family, then draining endpoints in the same order.

use std::net::SocketAddr;
use std::sync::Arc;

use super::resources::{PortSpec, ServiceSpec, Slice, SliceEndpoint};
use super::service::{ExcludedEndpoint, ExclusionReason, Service, ServicePort};
use super::{Family, Pod};
use crate::model::address::AddressPolicy;
use crate::model::{Endpoint, Protocol};

/// Maximum number of excluded endpoints that a port lists. They end up as causes of a 503, where a
/// few are enough to find the reason.
const MAX_REPORTED: usize = 8;

/// Name and protocol of a service port, by which slices refer to it.
type PortName<'a> = (&'a str, Protocol);

/// State that an endpoint must have to be selected.
#[derive(Clone, Copy)]
enum EndpointState {
    Ready,
    /// Serving while terminating.
    Draining,
}

impl EndpointState {
    fn matches(self, endpoint: &SliceEndpoint) -> bool {
        match self {
            Self::Ready => endpoint.ready,
            Self::Draining => endpoint.serving && endpoint.terminating,
        }
    }
}

/// Endpoint that passed the checks of a join.
struct Checked {
    endpoint: Endpoint,
    /// Reason why neither tunnels nor listeners may lead to it.
    excluded: Option<ExclusionReason>,
}

impl Checked {
    fn is_for_tunnels(&self) -> bool {
        self.excluded.is_none()
    }
}

/// Inputs for the join of one service.
pub(super) struct Join<'a, P> {
    pub namespace: &'a str,
    /// All slices of the service, of both families.
    pub slices: &'a [&'a Slice],
    /// Returns a pod by namespace and name.
    pub pod: P,
    pub addresses: AddressPolicy,
    /// Permits endpoints without a `targetRef` to a pod.
    pub pod_less: bool,
    /// Result of the previous join, whose round-robin counters are kept.
    pub previous: Option<&'a Service>,
}

impl<P> Join<'_, P>
where
    P: Fn(&str, &str) -> Option<Arc<Pod>>,
{
    pub fn service(&self, spec: &ServiceSpec) -> Service {
        Service {
            ports: self.ports(spec, Protocol::Tcp),
            udp_ports: self.ports(spec, Protocol::Udp),
            has_other_protocols: spec.has_other_protocols,
            affinity: spec.affinity,
            keeps_path: spec.keeps_path,
            has_endpoints: self.slices.iter().any(|slice| !slice.endpoints.is_empty()),
        }
    }

    fn ports(&self, spec: &ServiceSpec, protocol: Protocol) -> Box<[ServicePort]> {
        let ports = match protocol {
            Protocol::Tcp => &spec.ports,
            Protocol::Udp => &spec.udp_ports,
        };
        let joined = ports.iter().map(|port| self.port(spec, port, protocol));
        joined.collect()
    }

    fn port(&self, spec: &ServiceSpec, port: &PortSpec, protocol: Protocol) -> ServicePort {
        // By name rather than by number: slices refer to ports by name, so the name identifies a
        // port across changes of its number.
        let previous = self
            .previous
            .map(|service| service.ports(protocol))
            .and_then(|ports| ports.iter().find(|p| p.name == port.name));
        let wanted = (&*port.name, protocol);
        let (endpoints, tunnel_endpoints) = self.endpoints(spec, wanted);
        ServicePort {
            excluded: if tunnel_endpoints.is_empty() {
                self.excluded(wanted)
            } else {
                Box::default()
            },
            local_endpoints: self.local(spec, wanted),
            hostnames: self.hostnames(wanted),
            endpoints,
            tunnel_endpoints,
            name: port.name.clone(),
            number: port.number,
            app_protocol: port.app_protocol,
            rotation: previous
                .map(|port| Arc::clone(&port.rotation))
                .unwrap_or_default(),
        }
    }

    /// Selects the ready endpoints of the primary family, else of the other family; if none is
    /// ready, those that serve while terminating (C45, KEP-1669). Also returns the selection among
    /// those that tunnels may lead to.
    fn endpoints(
        &self,
        spec: &ServiceSpec,
        port: PortName<'_>,
    ) -> (Arc<[Endpoint]>, Arc<[Endpoint]>) {
        let selected = self.preferred(spec, port, |_| true, |_| true);
        // Stored once in the usual case.
        let for_tunnels = (!selected.iter().all(Checked::is_for_tunnels))
            .then(|| self.preferred(spec, port, |_| true, Checked::is_for_tunnels))
            .map(into_endpoints);
        let endpoints = into_endpoints(selected);
        let for_tunnels = for_tunnels.unwrap_or_else(|| Arc::clone(&endpoints));
        (endpoints, for_tunnels)
    }

    /// Selects among the endpoints on the node of this process those that a tunnel may lead to, as
    /// [`Self::endpoints`]. Draining ones are used although other nodes have ready ones (KEP-1669).
    fn local(&self, spec: &ServiceSpec, port: PortName<'_>) -> Arc<[Endpoint]> {
        // The writer has removed the names of other nodes.
        let is_local = |endpoint: &SliceEndpoint| endpoint.node.is_some();
        let mut all = self.slices.iter().flat_map(|slice| &slice.endpoints);
        if !all.any(is_local) {
            return Arc::default();
        }
        into_endpoints(self.preferred(spec, port, is_local, Checked::is_for_tunnels))
    }

    /// Selects the endpoints of the first family and state that some have.
    fn preferred(
        &self,
        spec: &ServiceSpec,
        port: PortName<'_>,
        is_wanted: impl Fn(&SliceEndpoint) -> bool,
        is_permitted: impl Fn(&Checked) -> bool,
    ) -> Vec<Checked> {
        let primary = spec.primary_family.unwrap_or(Family::V4);
        let secondary = if primary == Family::V4 {
            Family::V6
        } else {
            Family::V4
        };
        // A ready endpoint of the secondary family goes before a draining one of the primary: a
        // draining backend may close the connection at any time.
        let preference = [
            (primary, EndpointState::Ready),
            (secondary, EndpointState::Ready),
            (primary, EndpointState::Draining),
            (secondary, EndpointState::Draining),
        ];
        preference
            .into_iter()
            .map(|(family, state)| {
                let matches =
                    |endpoint: &SliceEndpoint| state.matches(endpoint) && is_wanted(endpoint);
                self.select(family, port, matches, &is_permitted)
            })
            .find(|selected| !selected.is_empty())
            .unwrap_or_default()
    }

    fn select(
        &self,
        family: Family,
        port: PortName<'_>,
        matches: impl Fn(&SliceEndpoint) -> bool,
        is_permitted: impl Fn(&Checked) -> bool,
    ) -> Vec<Checked> {
        let mut selected = Vec::new();
        for slice in self.slices.iter().filter(|slice| slice.family == family) {
            // Slices of one service may list different ports: with a named `targetPort`, the number
            // depends on the pod, and the controller writes one slice per set of numbers.
            let Some(number) = port_number(slice, port) else {
                continue;
            };
            let matching = slice.endpoints.iter().filter(|endpoint| matches(endpoint));
            let check = |endpoint| self.check(endpoint, (number, port.1)).ok();
            selected.extend(matching.filter_map(check).filter(&is_permitted));
        }
        // Slices come in the random order of a hash set. Sorting makes the order of the round-robin
        // the same after each join and in each replica.
        selected.sort_unstable_by_key(|checked: &Checked| checked.endpoint.address);
        // An endpoint may be in two slices for a moment while the controller moves it (KEP-752).
        selected.dedup_by_key(|checked| checked.endpoint.address);
        selected
    }

    /// Returns the host names of the endpoints that tunnels may lead to once they are ready.
    fn hostnames(&self, port: PortName<'_>) -> Box<[(Box<str>, SocketAddr)]> {
        let mut names = Vec::new();
        for slice in self.slices {
            let Some(number) = port_number(slice, port) else {
                continue;
            };
            names.extend(slice.endpoints.iter().filter_map(|endpoint| {
                let name = endpoint.hostname.clone()?;
                let may_be_ready = match self.check(endpoint, (number, port.1)) {
                    Ok(checked) => checked.is_for_tunnels(),
                    Err(reason) => reason.is_temporary(),
                };
                may_be_ready.then(|| (name, SocketAddr::new(endpoint.address, number)))
            }));
        }
        names.sort_unstable();
        names.dedup();
        names.into()
    }

    /// Returns endpoints of a port without a usable one, each with the reason for its exclusion.
    fn excluded(&self, port: PortName<'_>) -> Box<[ExcludedEndpoint]> {
        let slices = self.slices.iter().filter_map(|slice| {
            let number = port_number(slice, port)?;
            Some(slice.endpoints.iter().map(move |endpoint| {
                let is_usable = [EndpointState::Ready, EndpointState::Draining]
                    .iter()
                    .any(|state| state.matches(endpoint));
                ExcludedEndpoint {
                    address: endpoint.address,
                    reason: match self.check(endpoint, (number, port.1)) {
                        Err(reason) => reason,
                        // An endpoint that passes the check is here because of its conditions, or
                        // because tunnels may not lead to it.
                        Ok(checked) if is_usable => {
                            checked.excluded.unwrap_or(ExclusionReason::NotReady)
                        }
                        Ok(_) => ExclusionReason::NotReady,
                    },
                }
            }))
        });
        slices.flatten().take(MAX_REPORTED).collect()
    }

    /// Checks that an endpoint belongs to a pod of the service's namespace that has this address
    /// (C46).
    ///
    /// Otherwise a user with write access to the EndpointSlices of one namespace could direct the
    /// proxy, with its network position, to another namespace, a node, or a metadata service.
    fn check(
        &self,
        endpoint: &SliceEndpoint,
        (port, protocol): (u16, Protocol),
    ) -> Result<Checked, ExclusionReason> {
        // Before `pod_less`, which does not lift this restriction.
        if !self.addresses.permits(endpoint.address) {
            return Err(ExclusionReason::AddressNotAllowed);
        }
        let address = SocketAddr::new(endpoint.address, port);
        let Some(key) = &endpoint.pod else {
            return if self.pod_less {
                Ok(Checked {
                    endpoint: Endpoint {
                        address,
                        name: endpoint.address.to_string().into(),
                    },
                    excluded: Some(ExclusionReason::PodLess),
                })
            } else {
                Err(ExclusionReason::NoPod)
            };
        };
        if *key.namespace != *self.namespace {
            return Err(ExclusionReason::OtherNamespace);
        }
        let pod = (self.pod)(&key.namespace, &key.name).ok_or(ExclusionReason::PodNotFound)?;
        // The slice may be older than the pod: its controller runs after the change of the pod, so
        // the address of an ended pod can already belong to another one.
        if pod.phase.has_ended() {
            return Err(ExclusionReason::PodEnded);
        }
        if pod.ips.contains(&endpoint.address) {
            Ok(Checked {
                endpoint: Endpoint {
                    address,
                    name: Arc::clone(&pod.name),
                },
                excluded: (pod.host_network && !pod.declares(port, protocol))
                    .then_some(ExclusionReason::NodePort),
            })
        } else {
            Err(ExclusionReason::AddressMismatch)
        }
    }
}

fn into_endpoints(selected: Vec<Checked>) -> Arc<[Endpoint]> {
    selected
        .into_iter()
        .map(|checked| checked.endpoint)
        .collect()
}

fn port_number(slice: &Slice, (name, protocol): PortName<'_>) -> Option<u16> {
    let ports = match protocol {
        Protocol::Tcp => &slice.ports,
        Protocol::Udp => &slice.udp_ports,
    };
    ports
        .iter()
        .find(|(port, _)| **port == *name)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests;
