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

/// The fields of a pod that the proxy needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: Arc<str>,
    /// `status.podIPs`; requests go to the first (C40). Empty until the pod has an address.
    pub ips: Box<[IpAddr]>,
    /// First TCP port of the containers, else of the sidecars (C37).
    pub first_port: Option<u16>,
    /// Named TCP ports, those of sidecars last.
    pub named_ports: Box<[(Box<str>, u16)]>,
    pub phase: Phase,
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
}

impl Cluster {
    /// Creates an empty index and its only writer. `pod_less` permits service endpoints without a
    /// `targetRef` to a pod (C46).
    pub fn new(addresses: AddressPolicy, pod_less: bool) -> (Arc<Self>, Writer) {
        let cluster = Arc::new(Self::default());
        let writer = Writer::new(Arc::clone(&cluster), addresses, pod_less);
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

    /// Number of objects of each kind, for the metrics.
    pub fn sizes(&self) -> [(Kind, usize); 3] {
        [
            (Kind::Node, self.nodes.len()),
            (Kind::Pod, self.pods.len()),
            (Kind::Service, self.services.len()),
        ]
    }
}
