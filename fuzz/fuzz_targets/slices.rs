//! The index: after every change of services, pods and EndpointSlices it equals a model that
//! computes each service from scratch (CONFORMANCE C45 to C48, C110; KEP-752, KEP-1669, KEP-1672).
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arbitrary::Arbitrary;
use kube_bastion::cluster::resources::{PortSpec, ServiceSpec, Slice, SliceEndpoint};
use kube_bastion::cluster::{
    Affinity, AppProtocol, Cluster, ExclusionReason, Family, Kind, Object, ObjectKey, Phase, Pod,
    PodPort, Service, ServicePort, Writer,
};
use kube_bastion::model::Protocol;
use kube_bastion::model::address::AddressPolicy;
use libfuzzer_sys::fuzz_target;

// Few names, so that the changes of one input affect the same objects.
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const SERVICES: [&str; 3] = ["s", "t", "u"];
const PODS: [&str; 4] = ["p", "q", "r", "z"];
const SLICES: [&str; 4] = ["s-1", "s-2", "s-3", "t-1"];
const PORTS: [&str; 3] = ["", "http", "metrics"];
/// Addresses, with true for those that the bastion may dial.
const V4: [(&str, bool); 5] = [
    ("10.0.0.1", true),
    ("10.0.0.2", true),
    ("10.0.0.3", true),
    ("127.0.0.1", false),
    ("169.254.169.254", false),
];
const V6: [(&str, bool); 4] = [
    ("fd00::1", true),
    ("fd00::2", true),
    ("::1", false),
    ("::ffff:10.0.0.1", false),
];

/// Maximum number of excluded endpoints that a service port lists.
const MAX_REPORTED: usize = 8;

/// An index into one of the lists above.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Pick(u8);

impl Pick {
    fn of<T: Copy>(self, list: &[T]) -> T {
        list[usize::from(self.0) % list.len()]
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Key {
    namespace: Pick,
    name: Pick,
}

impl Key {
    fn of(self, names: &[&str]) -> ObjectKey {
        ObjectKey::new(self.namespace.of(&NAMESPACES), self.name.of(names))
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Address {
    v6: bool,
    which: Pick,
}

impl Address {
    fn of(self) -> IpAddr {
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
struct PodInput {
    key: Key,
    ips: [Option<Address>; 2],
    /// Most pods are active.
    ended: Option<bool>,
    /// The pod is on the network of its node, and may declare a port.
    host_network: Option<Option<u8>>,
}

impl PodInput {
    fn object(&self) -> Object {
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
struct ServiceInput {
    key: Key,
    /// A bit per name of a port, because the names of the ports of a service are unique.
    ports: u8,
    number: u16,
    h2c: bool,
    sticky: bool,
    v6_first: Option<bool>,
}

impl ServiceInput {
    fn object(&self) -> Object {
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
struct EndpointInput {
    address: Address,
    ready: bool,
    serving: bool,
    terminating: bool,
    /// Most pods are in the namespace of their slice; `elsewhere` names another.
    pod: Option<Pick>,
    elsewhere: Option<Pick>,
}

#[derive(Arbitrary, Debug)]
struct SliceInput {
    key: Key,
    service: Pick,
    v6: bool,
    ports: [Option<(Pick, u8)>; 2],
    endpoints: Vec<EndpointInput>,
}

impl SliceInput {
    fn object(&self) -> Object {
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
enum Change {
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
struct Input {
    pod_less: bool,
    changes: Vec<Change>,
}

/// Name of the pod of an endpoint, or its address.
struct Behind {
    name: String,
    /// Reason why tunnels and listeners may not use the endpoint.
    requests_only: Option<ExclusionReason>,
}

/// Current objects, without computed state.
#[derive(Default)]
struct Model {
    pod_less: bool,
    pods: BTreeMap<ObjectKey, Pod>,
    services: BTreeMap<ObjectKey, ServiceSpec>,
    slices: BTreeMap<ObjectKey, Slice>,
}

impl Model {
    fn change(&mut self, writer: &mut Writer, change: &Change) {
        match change {
            Change::Pod(pod) => self.apply(writer, pod.object()),
            Change::Service(service) => self.apply(writer, service.object()),
            Change::Slice(slice) => self.apply(writer, slice.object()),
            Change::DeletePod(key) => self.delete(writer, Kind::Pod, &key.of(&PODS)),
            Change::DeleteService(key) => self.delete(writer, Kind::Service, &key.of(&SERVICES)),
            Change::DeleteSlice(key) => self.delete(writer, Kind::EndpointSlice, &key.of(&SLICES)),
            Change::ResetPods(pods) => {
                self.reset(
                    writer,
                    Kind::Pod,
                    pods.iter().map(PodInput::object).collect(),
                );
            }
            Change::ResetServices(services) => {
                self.reset(
                    writer,
                    Kind::Service,
                    services.iter().map(ServiceInput::object).collect(),
                );
            }
            Change::ResetSlices(slices) => {
                self.reset(
                    writer,
                    Kind::EndpointSlice,
                    slices.iter().map(SliceInput::object).collect(),
                );
            }
        }
    }

    fn apply(&mut self, writer: &mut Writer, object: Object) {
        self.put(object.clone());
        writer.apply(object);
    }

    fn delete(&mut self, writer: &mut Writer, kind: Kind, key: &ObjectKey) {
        match kind {
            Kind::Pod => drop(self.pods.remove(key)),
            Kind::Service => drop(self.services.remove(key)),
            Kind::EndpointSlice => drop(self.slices.remove(key)),
            Kind::Node => {}
        }
        writer.delete(kind, key);
    }

    fn reset(&mut self, writer: &mut Writer, kind: Kind, objects: Vec<Object>) {
        match kind {
            Kind::Pod => self.pods.clear(),
            Kind::Service => self.services.clear(),
            Kind::EndpointSlice => self.slices.clear(),
            Kind::Node => {}
        }
        objects.iter().cloned().for_each(|object| self.put(object));
        writer.reset(kind, objects);
    }

    fn put(&mut self, object: Object) {
        match object {
            Object::Pod(key, pod) => drop(self.pods.insert(key, pod)),
            Object::Service(key, spec) => drop(self.services.insert(key, spec)),
            Object::EndpointSlice(key, slice) => drop(self.slices.insert(key, slice)),
            Object::Node(_) => {}
        }
    }

    /// Returns the pod of an endpoint, or the reason why the endpoint is excluded (C46, C110).
    fn pod_behind(
        &self,
        namespace: &str,
        endpoint: &SliceEndpoint,
        number: u16,
    ) -> Result<Behind, ExclusionReason> {
        let listed = |(text, permitted): &(&str, bool)| {
            (text.parse() == Ok(endpoint.address)).then_some(*permitted)
        };
        if V4.iter().chain(&V6).find_map(listed) != Some(true) {
            return Err(ExclusionReason::AddressNotAllowed);
        }
        let Some(key) = &endpoint.pod else {
            return if self.pod_less {
                Ok(Behind {
                    name: endpoint.address.to_string(),
                    requests_only: Some(ExclusionReason::PodLess),
                })
            } else {
                Err(ExclusionReason::NoPod)
            };
        };
        if *key.namespace != *namespace {
            return Err(ExclusionReason::OtherNamespace);
        }
        let pod = self.pods.get(key).ok_or(ExclusionReason::PodNotFound)?;
        if pod.phase != Phase::Active {
            return Err(ExclusionReason::PodEnded);
        }
        if !pod.ips.contains(&endpoint.address) {
            return Err(ExclusionReason::AddressMismatch);
        }
        let declared = pod.ports.iter().any(|port| port.number == number);
        Ok(Behind {
            name: key.name.to_string(),
            requests_only: (pod.host_network && !declared).then_some(ExclusionReason::NodePort),
        })
    }

    fn slices_of<'a>(&'a self, service: &'a ObjectKey) -> impl Iterator<Item = &'a Slice> {
        let of = move |(key, slice): &(&ObjectKey, &Slice)| {
            key.namespace == service.namespace && slice.service == service.name
        };
        self.slices.iter().filter(of).map(|(_, slice)| slice)
    }

    /// Returns the addresses that serve a port, to requests or to tunnels, each with its possible
    /// pods: two pods may have the same address for a moment.
    fn endpoints(
        &self,
        key: &ObjectKey,
        spec: &ServiceSpec,
        port: &str,
        to_tunnels: bool,
    ) -> BTreeMap<SocketAddr, BTreeSet<String>> {
        let primary = spec.primary_family.unwrap_or(Family::V4);
        // Ready ones of the primary family, ready ones of the other, then the draining ones alike
        // (KEP-1669).
        let mut ranks: [BTreeMap<SocketAddr, BTreeSet<String>>; 4] = Default::default();
        for slice in self.slices_of(key) {
            let Some((_, number)) = slice.ports.iter().find(|(name, _)| **name == *port) else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let Ok(behind) = self.pod_behind(&key.namespace, endpoint, *number) else {
                    continue;
                };
                if to_tunnels && behind.requests_only.is_some() {
                    continue;
                }
                let name = behind.name;
                let family = usize::from(slice.family != primary);
                let address = SocketAddr::new(endpoint.address, *number);
                if endpoint.ready {
                    ranks[family]
                        .entry(address)
                        .or_default()
                        .insert(name.clone());
                }
                if endpoint.serving && endpoint.terminating {
                    ranks[2 + family].entry(address).or_default().insert(name);
                }
            }
        }
        ranks
            .into_iter()
            .find(|rank| !rank.is_empty())
            .unwrap_or_default()
    }

    fn check(&self, cluster: &Cluster, before: &mut BTreeMap<ObjectKey, Arc<Service>>) {
        assert_eq!(
            cluster.sizes()[1..],
            [
                (Kind::Pod, self.pods.len()),
                (Kind::Service, self.services.len())
            ]
        );
        for (key, pod) in &self.pods {
            assert_eq!(
                cluster.pod(&key.namespace, &key.name).as_deref(),
                Some(pod),
                "{key}"
            );
        }
        for key in NAMESPACES
            .iter()
            .flat_map(|namespace| SERVICES.map(|name| ObjectKey::new(namespace, name)))
        {
            let service = cluster.service(&key.namespace, &key.name);
            assert_eq!(service.is_some(), self.services.contains_key(&key), "{key}");
            let (Some(service), Some(spec)) = (service, self.services.get(&key)) else {
                before.remove(&key);
                continue;
            };
            self.check_service(&key, &service, spec);
            if let Some(before) = before.insert(key, Arc::clone(&service)) {
                rotations_go_on(&before, &service);
            }
        }
    }

    fn check_service(&self, key: &ObjectKey, service: &Service, spec: &ServiceSpec) {
        assert_eq!(service.affinity, spec.affinity, "{key}");
        assert_eq!(
            service.has_endpoints,
            self.slices_of(key).any(|slice| !slice.endpoints.is_empty()),
            "{key}"
        );
        let ports: Vec<_> = service
            .ports
            .iter()
            .map(|port| (&port.name, port.number, port.app_protocol))
            .collect();
        let expected: Vec<_> = spec
            .ports
            .iter()
            .map(|port| (&port.name, port.number, port.app_protocol))
            .collect();
        assert_eq!(ports, expected, "{key}");
        for port in &service.ports {
            for (to_tunnels, endpoints) in
                [(false, &port.endpoints), (true, &port.tunnel_endpoints)]
            {
                let expected = self.endpoints(key, spec, &port.name, to_tunnels);
                let addresses: Vec<SocketAddr> =
                    endpoints.iter().map(|endpoint| endpoint.address).collect();
                assert_eq!(
                    addresses,
                    expected.keys().copied().collect::<Vec<_>>(),
                    "{key} {}, to tunnels: {to_tunnels}",
                    port.name
                );
                for endpoint in &**endpoints {
                    let names = &expected[&endpoint.address];
                    assert!(
                        names.contains(&*endpoint.name),
                        "{key} {}: {endpoint:?}, not {names:?}",
                        port.name
                    );
                }
            }
            self.check_excluded(key, port);
        }
    }

    fn check_excluded(&self, key: &ObjectKey, port: &ServicePort) {
        if !port.tunnel_endpoints.is_empty() {
            assert!(
                port.excluded.is_empty(),
                "{key} {}: {:?}",
                port.name,
                port.excluded
            );
            return;
        }
        let mut all = Vec::new();
        for slice in self.slices_of(key) {
            let Some((_, number)) = slice.ports.iter().find(|(name, _)| *name == port.name) else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let is_usable = endpoint.ready || (endpoint.serving && endpoint.terminating);
                let reason = match self.pod_behind(&key.namespace, endpoint, *number) {
                    Err(reason) => reason,
                    Ok(_) if !is_usable => ExclusionReason::NotReady,
                    Ok(behind) => behind
                        .requests_only
                        .expect("a usable endpoint is excluded from tunnels"),
                };
                all.push((endpoint.address, reason));
            }
        }
        assert_eq!(
            port.excluded.len(),
            all.len().min(MAX_REPORTED),
            "{key} {}: {:?}",
            port.name,
            port.excluded
        );
        for excluded in &port.excluded {
            assert!(
                all.contains(&(excluded.address, excluded.reason)),
                "{key} {}: {excluded:?}, not {all:?}",
                port.name
            );
        }
    }
}

/// Round-robin of a port, which continues when its endpoints change.
fn rotations_go_on(before: &Service, after: &Service) {
    for port in &after.ports {
        if let Some(before) = before.ports.iter().find(|before| before.name == port.name) {
            assert!(
                Arc::ptr_eq(&before.rotation, &port.rotation),
                "{}",
                port.name
            );
        }
    }
}

fuzz_target!(|input: Input| {
    let policy = AddressPolicy::default();
    let (cluster, mut writer) = Cluster::new(policy, input.pod_less, None);
    let empty = format!("{writer:?}");
    let mut model = Model {
        pod_less: input.pod_less,
        ..Model::default()
    };
    let mut before = BTreeMap::new();
    for change in &input.changes {
        model.change(&mut writer, change);
        model.check(&cluster, &mut before);
    }
    for kind in [Kind::Pod, Kind::EndpointSlice, Kind::Service] {
        model.reset(&mut writer, kind, Vec::new());
        model.check(&cluster, &mut before);
    }
    assert_eq!(
        format!("{writer:?}"),
        empty,
        "what is gone leaves no entry behind"
    );
});
