//! Facts as the sources tell them: single objects, not yet joined.

use std::net::IpAddr;

use super::{Affinity, AppProtocol, Node, ObjectKey, Pod};

/// The kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Node,
    Pod,
    Service,
    EndpointSlice,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Node, Self::Pod, Self::Service, Self::EndpointSlice];

    /// The plural of the API.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
        }
    }
}

/// One object of a source. Nodes have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Node(Node),
    Pod(ObjectKey, Pod),
    Service(ObjectKey, ServiceSpec),
    EndpointSlice(ObjectKey, Slice),
}

/// IPv4 or IPv6: an EndpointSlice holds addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// What a Service says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    pub ports: Vec<PortSpec>,
    pub affinity: Affinity,
    /// `spec.ipFamilies[0]`: where a service has endpoints of both families, this one serves (C45).
    pub primary_family: Option<Family>,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSpec {
    /// Empty for the one unnamed port.
    pub name: Box<str>,
    pub number: u16,
    pub app_protocol: AppProtocol,
}

/// An EndpointSlice (KEP-752).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The service that the label `kubernetes.io/service-name` names.
    pub service: Box<str>,
    pub family: Family,
    /// Port name and number; ports without a number are left out by the source (C45).
    pub ports: Vec<(Box<str>, u16)>,
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice. A missing condition has been replaced by what KEP-1672 says it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of `addresses`, the only one that consumers look at.
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Namespace and name of the pod that `targetRef` names.
    pub pod: Option<ObjectKey>,
}
