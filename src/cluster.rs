//! The index: what the bastion knows of nodes, pods, services and their endpoints.
//!
//! One [`Writer`] applies facts, in the order in which they come; any number of readers take
//! immutable snapshots from the [`Cluster`]. All joining (which endpoint belongs to which port of
//! which service, and may be dialled) is done when a fact changes, so that a request costs one
//! look-up.

mod key;
pub mod resources;
mod retries;
mod service;
mod writer;

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

/// A node as `/proxy/` needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    /// `status.addresses` by type, in the order of the object. A value may be an IP address or a
    /// host name.
    pub addresses: Box<[(Box<str>, Box<str>)]>,
    /// `status.daemonEndpoints.kubeletEndpoint.Port`, else 10250 (C32).
    pub kubelet_port: u16,
}

/// A pod as `/proxy/` needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: Arc<str>,
    /// `status.podIPs`; the first is the one that is dialled (C40). Empty until the pod has one.
    pub ips: Box<[IpAddr]>,
    /// The first container port of the first container that lists any (C37).
    pub first_port: Option<u16>,
    pub named_ports: Box<[(Box<str>, u16)]>,
    pub phase: Phase,
}

/// `status.phase` of a pod, as far as it tells whether the pod still has its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Pending, Running or Unknown.
    #[default]
    Active,
    Succeeded,
    Failed,
}

impl Phase {
    /// Whether the pod's containers have ended for good: its address may belong to another pod by
    /// now.
    pub fn has_ended(self) -> bool {
        self != Self::Active
    }
}

/// What readers see. Cheap to share; every look-up gives a snapshot that no later change touches.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: DashMap<Box<str>, Arc<Node>>,
    pods: DashMap<ObjectKey, Arc<Pod>>,
    services: DashMap<ObjectKey, Arc<Service>>,
}

impl Cluster {
    /// An empty index and the one handle that can fill it. `pod_less` lets service endpoints
    /// through that no pod of the namespace stands behind (C46).
    pub fn new(addresses: AddressPolicy, pod_less: bool) -> (Arc<Self>, Writer) {
        let cluster = Arc::new(Self::default());
        let writer = Writer::new(Arc::clone(&cluster), addresses, pod_less);
        (cluster, writer)
    }

    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(name).map(|node| Arc::clone(&node))
    }

    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods
            .get(&(namespace, name) as &dyn BorrowedKey)
            .map(|pod| Arc::clone(&pod))
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services
            .get(&(namespace, name) as &dyn BorrowedKey)
            .map(|service| Arc::clone(&service))
    }

    /// How many objects of each kind are known, for the metrics.
    pub fn sizes(&self) -> [(Kind, usize); 3] {
        [
            (Kind::Node, self.nodes.len()),
            (Kind::Pod, self.pods.len()),
            (Kind::Service, self.services.len()),
        ]
    }
}
