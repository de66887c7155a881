//! Changes of services, pods and EndpointSlices, with few names and addresses.

use std::net::IpAddr;

use arbitrary::Arbitrary;
use kube_bastion::cluster::resources::{PortSpec, ServiceSpec, Slice, SliceEndpoint};
use kube_bastion::cluster::{
    Affinity, AppProtocol, Family, Object, ObjectKey, Phase, Pod, PodPort,
};
use kube_bastion::model::Protocol;

// Few names, so that the changes of one input affect the same objects.
pub const NAMESPACES: [&str; 3] = ["a", "b", "c"];
pub const SERVICES: [&str; 3] = ["s", "t", "u"];
pub const PODS: [&str; 4] = ["p", "q", "r", "z"];
pub const SLICES: [&str; 4] = ["s-1", "s-2", "s-3", "t-1"];
pub const PORTS: [&str; 3] = ["", "http", "metrics"];
/// Addresses, with true for those that the bastion may dial.
pub const V4: [(&str, bool); 5] = [
    ("10.0.0.1", true),
    ("10.0.0.2", true),
    ("10.0.0.3", true),
    ("127.0.0.1", false),
    ("169.254.169.254", false),
];
pub const V6: [(&str, bool); 4] = [
    ("fd00::1", true),
    ("fd00::2", true),
    ("::1", false),
    ("::ffff:10.0.0.1", false),
];

/// An index into one of the lists above.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Pick(u8);

impl Pick {
    fn of<T: Copy>(self, list: &[T]) -> T {
        list[usize::from(self.0) % list.len()]
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Key {
    namespace: Pick,
    name: Pick,
}

impl Key {
    pub fn of(self, names: &[&str]) -> ObjectKey {
        ObjectKey::new(self.namespace.of(&NAMESPACES), self.name.of(names))
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Address {
    v6: bool,
    which: Pick,
}

impl Address {
    pub fn of(self) -> IpAddr {
        self.within(if self.v6 { Family::V6 } else { Family::V4 })
    }

    fn within(self, family: Family) -> IpAddr {
        let (text, _) = if family == Family::V6 {
            self.which.of(&V6)
        } else {
            self.which.of(&V4)
        };
        text.parse().expect("the lists hold addresses")
    }
}

#[derive(Arbitrary, Debug)]
pub struct PodInput {
    key: Key,
    ips: [Option<Address>; 2],
    /// Most pods are active.
    ended: Option<bool>,
    /// The pod is on the network of its node, and may declare a port.
    host_network: Option<Option<u8>>,
}

impl PodInput {
    pub fn object(&self) -> Object {
        let key = self.key.of(&PODS);
        let ips = self
            .ips
            .iter()
            .flatten()
            .map(|address| address.of())
            .collect();
        let phase = match self.ended {
            None => Phase::Active,
            Some(true) => Phase::Failed,
            Some(false) => Phase::Succeeded,
        };
        let declared = self.host_network.flatten().map(|number| PodPort {
            name: Box::default(),
            number: number.into(),
            protocol: Protocol::Tcp,
        });
        let pod = Pod {
            namespace: (*key.namespace).into(),
            name: (*key.name).into(),
            ips,
            phase,
            ports: declared.into_iter().collect(),
            host_network: self.host_network.is_some(),
        };
        Object::Pod(key, pod)
    }
}

#[derive(Arbitrary, Debug)]
pub struct ServiceInput {
    key: Key,
    /// A bit per name of a port, because the names of the ports of a service are unique.
    ports: u8,
    number: u16,
    h2c: bool,
    sticky: bool,
    v6_first: Option<bool>,
}

impl ServiceInput {
    pub fn object(&self) -> Object {
        let named = PORTS
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.ports >> bit & 1 == 1);
        let app_protocol = if self.h2c {
            AppProtocol::H2c
        } else {
            AppProtocol::Unspecified
        };
        let spec = ServiceSpec {
            ports: named
                .map(|(_, name)| PortSpec {
                    name: (*name).into(),
                    number: self.number,
                    app_protocol,
                })
                .collect(),
            udp_ports: Vec::new(),
            has_other_protocols: false,
            cluster_ips: Vec::new(),
            affinity: if self.sticky {
                Affinity::ClientIp
            } else {
                Affinity::None
            },
            primary_family: self
                .v6_first
                .map(|first| if first { Family::V6 } else { Family::V4 }),
            keeps_path: false,
        };
        Object::Service(self.key.of(&SERVICES), spec)
    }
}

#[derive(Arbitrary, Debug)]
pub struct EndpointInput {
    address: Address,
    ready: bool,
    serving: bool,
    terminating: bool,
    /// Most pods are in the namespace of their slice; `elsewhere` names another.
    pod: Option<Pick>,
    elsewhere: Option<Pick>,
}

#[derive(Arbitrary, Debug)]
pub struct SliceInput {
    key: Key,
    service: Pick,
    v6: bool,
    ports: [Option<(Pick, u8)>; 2],
    endpoints: Vec<EndpointInput>,
}

impl SliceInput {
    pub fn object(&self) -> Object {
        let key = self.key.of(&SLICES);
        let family = if self.v6 { Family::V6 } else { Family::V4 };
        let endpoints = self.endpoints.iter().map(|endpoint| SliceEndpoint {
            address: endpoint.address.within(family),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            hostname: None,
            node: None,
            pod: endpoint.pod.map(|pod| {
                let namespace = endpoint
                    .elsewhere
                    .map_or(&*key.namespace, |other| other.of(&NAMESPACES));
                ObjectKey::new(namespace, pod.of(&PODS))
            }),
        });
        let slice = Slice {
            service: self.service.of(&SERVICES).into(),
            family,
            ports: self
                .ports
                .iter()
                .flatten()
                .map(|(name, number)| (name.of(&PORTS).into(), (*number).into()))
                .collect(),
            udp_ports: Vec::new(),
            endpoints: endpoints.take(12).collect(),
        };
        Object::EndpointSlice(key, slice)
    }
}

#[derive(Arbitrary, Debug)]
pub enum Change {
    Pod(PodInput),
    Service(ServiceInput),
    Slice(SliceInput),
    DeletePod(Key),
    DeleteService(Key),
    DeleteSlice(Key),
    ResetPods(Vec<PodInput>),
    ResetServices(Vec<ServiceInput>),
    ResetSlices(Vec<SliceInput>),
}

#[derive(Arbitrary, Debug)]
pub struct Input {
    pub pod_less: bool,
    pub changes: Vec<Change>,
}
