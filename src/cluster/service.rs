//! A service with its endpoints joined in, as readers see it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::resources::{PortSpec, ServiceSpec, Slice, SliceEndpoint};
use super::{Family, Pod, RetryWindow};
use crate::model::address::AddressPolicy;
use crate::model::{Endpoint, Scheme};

/// `spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    #[default]
    None,
    ClientIp,
}

/// `appProtocol` of a service port, as far as it tells how to speak to the target (KEP-1422,
/// KEP-3726).
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
    pub fn parse(text: &str) -> Self {
        match text {
            "https" => Self::Https,
            "kubernetes.io/h2c" => Self::H2c,
            "kubernetes.io/ws" => Self::Ws,
            "kubernetes.io/wss" => Self::Wss,
            _ => Self::Unspecified,
        }
    }

    /// The scheme where the id of the path names none (C47).
    pub fn scheme(self) -> Scheme {
        match self {
            Self::Https | Self::Wss => Scheme::Https,
            Self::Unspecified | Self::H2c | Self::Ws => Scheme::Http,
        }
    }
}

/// The round-robin of a service port, and its retries. Both outlive changes of the endpoints.
#[derive(Debug, Default)]
pub struct RoundRobinCounter {
    turn: AtomicUsize,
    /// A service has a budget of its own, so that a broken one takes no failover from others.
    pub retries: RetryWindow,
}

impl RoundRobinCounter {
    /// The next turn; every worker counts on the same number, so the order is strict across
    /// connections.
    pub fn advance(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

/// A service with its ports.
#[derive(Debug)]
pub struct Service {
    pub ports: Box<[ServicePort]>,
    pub affinity: Affinity,
    /// Whether any slice lists any endpoint, ready or not (C48).
    pub has_endpoints: bool,
}

/// One port of a service and who serves it.
#[derive(Debug)]
pub struct ServicePort {
    pub name: Box<str>,
    pub number: u16,
    pub app_protocol: AppProtocol,
    /// Those that may be dialled, ordered by address: the ready ones, or where none is, those that
    /// still serve while they terminate.
    pub endpoints: Arc<[Endpoint]>,
    /// Where nobody serves: some of the endpoints that are there, and why they do not.
    pub refused: Box<[ExcludedEndpoint]>,
    pub rotation: Arc<RoundRobinCounter>,
}

/// An endpoint that does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExcludedEndpoint {
    pub address: IpAddr,
    pub why: ExclusionReason,
}

/// Why an endpoint does not serve (C46, C110).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExclusionReason {
    #[error("not ready")]
    NotReady,
    #[error("its address must not be dialled: only global unicast ones may be")]
    Address,
    #[error("no pod stands behind it (no targetRef), and targets.podLessEndpoints is off")]
    NoPod,
    #[error("its targetRef names a pod of another namespace")]
    OtherNamespace,
    #[error("the pod that its targetRef names is not there")]
    PodGone,
    #[error("the pod that its targetRef names has ended")]
    PodEnded,
    #[error("the pod that its targetRef names has another address")]
    NotItsAddress,
}

/// How many refused endpoints are remembered: enough to see why.
const MAX_REPORTED: usize = 8;

/// In which state endpoints are wanted.
#[derive(Clone, Copy)]
enum EndpointState {
    Ready,
    /// Serving while terminating.
    Draining,
}

impl EndpointState {
    fn holds(self, endpoint: &SliceEndpoint) -> bool {
        match self {
            Self::Ready => endpoint.ready,
            Self::Draining => endpoint.serving && endpoint.terminating,
        }
    }
}

/// What joining a service needs from its surroundings.
pub(super) struct Join<'a, P> {
    pub namespace: &'a str,
    pub slices: &'a [&'a Slice],
    /// Looks up a pod of any namespace.
    pub pod: P,
    pub addresses: AddressPolicy,
    pub pod_less: bool,
    /// The service as it was, whose rotations go on.
    pub before: Option<&'a Service>,
}

impl<P> Join<'_, P>
where
    P: Fn(&str, &str) -> Option<Arc<Pod>>,
{
    pub fn service(&self, spec: &ServiceSpec) -> Service {
        Service {
            ports: spec
                .ports
                .iter()
                .map(|port| self.port(spec, port))
                .collect(),
            affinity: spec.affinity,
            has_endpoints: self.slices.iter().any(|slice| !slice.endpoints.is_empty()),
        }
    }

    fn port(&self, spec: &ServiceSpec, port: &PortSpec) -> ServicePort {
        let before = self
            .before
            .and_then(|service| service.ports.iter().find(|p| p.name == port.name));
        let endpoints = self.endpoints(spec, &port.name);
        ServicePort {
            refused: if endpoints.is_empty() {
                self.refused(&port.name)
            } else {
                Box::default()
            },
            endpoints,
            name: port.name.clone(),
            number: port.number,
            app_protocol: port.app_protocol,
            rotation: before
                .map(|port| Arc::clone(&port.rotation))
                .unwrap_or_default(),
        }
    }

    /// The ready endpoints of the primary family, else of the other; where none is ready, those
    /// that serve while terminating (C45, KEP-1669).
    fn endpoints(&self, spec: &ServiceSpec, port: &str) -> Arc<[Endpoint]> {
        let primary = spec.primary_family.unwrap_or(Family::V4);
        let other = if primary == Family::V4 {
            Family::V6
        } else {
            Family::V4
        };
        let tries = [
            (primary, EndpointState::Ready),
            (other, EndpointState::Ready),
            (primary, EndpointState::Draining),
            (other, EndpointState::Draining),
        ];
        tries
            .into_iter()
            .map(|(family, serves)| self.select(family, port, serves))
            .find(|found| !found.is_empty())
            .unwrap_or_default()
            .into()
    }

    fn select(&self, family: Family, port: &str, serves: EndpointState) -> Vec<Endpoint> {
        let mut found = Vec::new();
        for slice in self.slices.iter().filter(|slice| slice.family == family) {
            let Some((_, number)) = slice.ports.iter().find(|(name, _)| **name == *port) else {
                continue;
            };
            let usable = slice
                .endpoints
                .iter()
                .filter(|endpoint| serves.holds(endpoint));
            found.extend(usable.filter_map(|endpoint| self.check(endpoint, *number).ok()));
        }
        found.sort_unstable_by_key(|endpoint: &Endpoint| endpoint.address);
        // A pod may stand in two slices for a moment while the controller moves it (KEP-752).
        found.dedup_by_key(|endpoint| endpoint.address);
        found
    }

    /// Why those that are there do not serve.
    fn refused(&self, port: &str) -> Box<[ExcludedEndpoint]> {
        let slices = self.slices.iter().filter_map(|slice| {
            let (_, number) = slice.ports.iter().find(|(name, _)| **name == *port)?;
            Some(slice.endpoints.iter().map(|endpoint| {
                ExcludedEndpoint {
                    address: endpoint.address,
                    why: self
                        .check(endpoint, *number)
                        .err()
                        .unwrap_or(ExclusionReason::NotReady),
                }
            }))
        });
        slices.flatten().take(MAX_REPORTED).collect()
    }

    /// An endpoint counts only where a pod of this namespace stands behind it and holds that very
    /// address (C46).
    fn check(&self, endpoint: &SliceEndpoint, port: u16) -> Result<Endpoint, ExclusionReason> {
        if !self.addresses.permits(endpoint.address) {
            return Err(ExclusionReason::Address);
        }
        let address = SocketAddr::new(endpoint.address, port);
        let Some(key) = &endpoint.pod else {
            let name = || endpoint.address.to_string().into();
            return if self.pod_less {
                Ok(Endpoint {
                    address,
                    name: name(),
                })
            } else {
                Err(ExclusionReason::NoPod)
            };
        };
        if *key.namespace != *self.namespace {
            return Err(ExclusionReason::OtherNamespace);
        }
        let pod = (self.pod)(&key.namespace, &key.name).ok_or(ExclusionReason::PodGone)?;
        if pod.phase.has_ended() {
            return Err(ExclusionReason::PodEnded);
        }
        if pod.ips.contains(&endpoint.address) {
            Ok(Endpoint {
                address,
                name: Arc::clone(&pod.name),
            })
        } else {
            Err(ExclusionReason::NotItsAddress)
        }
    }
}
