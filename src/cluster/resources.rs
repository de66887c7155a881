//! Objects as the sources deliver them, before they are joined.

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

    /// Returns the resource name in the Kubernetes API.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
        }
    }
}

/// One object from a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Node(Node),
    Pod(ObjectKey, Pod),
    Service(ObjectKey, ServiceSpec),
    EndpointSlice(ObjectKey, Slice),
}

/// IP family. All addresses of an EndpointSlice are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// The fields of a Service that the proxy needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    /// TCP ports (C42).
    pub ports: Vec<PortSpec>,
    pub udp_ports: Vec<PortSpec>,
    /// The service has ports of other protocols than TCP.
    pub has_other_protocols: bool,
    /// `spec.clusterIPs`. Empty for a headless service.
    pub cluster_ips: Vec<IpAddr>,
    pub affinity: Affinity,
    /// `spec.ipFamilies[0]`, which is preferred if a service has endpoints of both families (C45).
    pub primary_family: Option<Family>,
    /// The annotation `kube-bastion.dev/path` is `keep`.
    pub keeps_path: bool,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSpec {
    /// Empty for an unnamed port, which must then be the only one.
    pub name: Box<str>,
    pub number: u16,
    pub app_protocol: AppProtocol,
}

/// An EndpointSlice (KEP-752).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Value of the label `kubernetes.io/service-name`.
    pub service: Box<str>,
    pub family: Family,
    /// Names and numbers of TCP ports. The source omits ports without a number (C45).
    pub ports: Vec<(Box<str>, u16)>,
    /// Those of UDP ports.
    pub udp_ports: Vec<(Box<str>, u16)>,
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice. Missing conditions have the defaults of KEP-1672.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// First of `addresses`; consumers ignore the others.
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Name of the endpoint below that of its service in DNS.
    pub hostname: Option<Box<str>>,
    /// Name of the node. The index keeps only that of its own node.
    pub node: Option<Box<str>>,
    /// Namespace and name of the pod in `targetRef`.
    pub pod: Option<ObjectKey>,
}
