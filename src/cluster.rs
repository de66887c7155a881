//! In-memory index of nodes, pods, services and their endpoints.
//!
//! One [`Writer`] applies changes in the order in which they arrive; any number of readers take
//! immutable snapshots from the [`Cluster`]. EndpointSlices, pods and services are joined when one
//! of them changes, so that a request costs one lookup.

#[cfg(test)]
pub(crate) mod fixtures;
mod join;
mod key;
pub mod resources;
mod retries;
mod service;
mod writer;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use dashmap::DashMap;

pub use key::ObjectKey;
pub use resources::{Family, Kind, Object};
pub use retries::RetryWindow;
pub use service::{
    Affinity, AppProtocol, ExcludedEndpoint, ExclusionReason, RoundRobinCounter, Service,
    ServicePort,
};
pub use writer::Writer;

use crate::model::Protocol;
use crate::model::address::AddressPolicy;
use key::BorrowedKey;

/// The fields of a node that the proxy needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    /// `status.addresses` as pairs of type and value, in the order of the object. A value is an IP
    /// address or a host name.
    pub addresses: Box<[(Box<str>, Box<str>)]>,
    /// `status.daemonEndpoints.kubeletEndpoint.Port`; 10250 if it is not set (C32).
    pub kubelet_port: u16,
}

impl Node {
    /// Returns the addresses that are not names.
    fn ips(&self) -> impl Iterator<Item = IpAddr> {
        let values = self.addresses.iter();
        values.filter_map(|(_, value)| value.parse::<IpAddr>().ok())
    }
}

/// The fields of a pod that the proxy needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Shared by the pods of the namespace.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// `status.podIPs`; requests go to the first (C40). Empty until the pod has an address.
    pub ips: Box<[IpAddr]>,
    /// Ports of the containers, then those of the sidecars (C37).
    pub ports: Box<[PodPort]>,
    /// The pod has the addresses of its node, which other pods and the node itself share.
    pub host_network: bool,
    pub phase: Phase,
}

/// One of the ports that the containers of a pod declare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// Empty for an unnamed port.
    pub name: Box<str>,
    pub number: u16,
    pub protocol: Protocol,
}

impl Pod {
    /// Returns the first TCP port (C37).
    pub fn first_port(&self) -> Option<u16> {
        let mut tcp = self
            .ports
            .iter()
            .filter(|port| port.protocol == Protocol::Tcp);
        tcp.next().map(|port| port.number)
    }

    /// Returns the number of the named port.
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let mut named = self.ports.iter().filter(|port| *port.name == *name);
        named
            .find(|port| port.protocol == protocol)
            .map(|port| port.number)
    }

    /// Returns true if a container declares the port.
    pub fn declares(&self, number: u16, protocol: Protocol) -> bool {
        let mut ports = self.ports.iter();
        ports.any(|port| port.number == number && port.protocol == protocol)
    }

    /// Returns true if no other pod and no node has its addresses.
    fn owns_addresses(&self) -> bool {
        !self.host_network && !self.phase.has_ended()
    }
}

/// `status.phase` of a pod, reduced to whether the pod still owns its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Pending, Running or Unknown.
    #[default]
    Active,
    Succeeded,
    Failed,
}

impl Phase {
    /// Returns true if all containers have terminated and will not restart. The address of such a
    /// pod may already belong to another pod.
    pub fn has_ended(self) -> bool {
        self != Self::Active
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "Active",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        })
    }
}

/// Read side of the index. A lookup returns a snapshot that later changes do not modify.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: DashMap<Box<str>, Arc<Node>>,
    pods: DashMap<ObjectKey, Arc<Pod>>,
    services: DashMap<ObjectKey, Arc<Service>>,
    /// Pods that have not ended and are not on the network of their node, by address. Of several,
    /// the first keeps the address until it ends or has another.
    pods_by_ip: DashMap<IpAddr, Arc<Pod>>,
    /// Services by cluster IP.
    services_by_ip: DashMap<IpAddr, ObjectKey>,
    /// Names of nodes by their IP addresses.
    nodes_by_ip: DashMap<IpAddr, Arc<str>>,
}

impl Cluster {
    /// Creates an empty index and its only writer. `pod_less` permits service endpoints without a
    /// `targetRef` to a pod (C46). `local_node` is the name of the node of this process, for
    /// [`ServicePort::local_endpoints`].
    pub fn new(
        addresses: AddressPolicy,
        pod_less: bool,
        local_node: Option<Box<str>>,
    ) -> (Arc<Self>, Writer) {
        let cluster = Arc::new(Self::default());
        let writer = Writer::new(Arc::clone(&cluster), addresses, pod_less, local_node);
        (cluster, writer)
    }

    /// Returns the node of this name.
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(name).map(|node| Arc::clone(&node))
    }

    /// Returns the pod of this namespace and name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods
            .get(&(namespace, name) as &dyn BorrowedKey)
            .map(|pod| Arc::clone(&pod))
    }

    /// Returns the service of this namespace and name, with its endpoints.
    pub fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services
            .get(&(namespace, name) as &dyn BorrowedKey)
            .map(|service| Arc::clone(&service))
    }

    /// Returns the pod with this address. Pods on the network of their node are not found: their
    /// address is that of the node. Nor is any other pod whose status names the address of a node.
    pub fn pod_by_ip(&self, address: IpAddr) -> Option<Arc<Pod>> {
        if self.is_node_address(address) {
            return None;
        }
        self.pods_by_ip.get(&address).map(|pod| Arc::clone(&pod))
    }

    /// Returns the key of the service with this cluster IP.
    pub fn service_by_ip(&self, address: IpAddr) -> Option<ObjectKey> {
        self.services_by_ip.get(&address).map(|key| key.clone())
    }

    /// Returns true if the status of a node has this address.
    pub fn is_node_address(&self, address: IpAddr) -> bool {
        self.nodes_by_ip.contains_key(&address)
    }

    /// Returns true if the status of a node has such an address.
    pub fn has_node_address(&self, is_wanted: impl Fn(IpAddr) -> bool) -> bool {
        self.nodes_by_ip.iter().any(|node| is_wanted(*node.key()))
    }

    /// Number of objects of each kind, for the metrics.
    pub fn sizes(&self) -> [(Kind, usize); 3] {
        [
            (Kind::Node, self.nodes.len()),
            (Kind::Pod, self.pods.len()),
            (Kind::Service, self.services.len()),
        ]
    }
}
