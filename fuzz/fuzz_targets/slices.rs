//! The index: after every change of services, pods and EndpointSlices it equals a model that
//! computes each service from scratch (CONFORMANCE C45 to C48, C110; KEP-752, KEP-1669, KEP-1672).
#![no_main]

mod slices {
    pub mod input;
}

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use kube_bastion::cluster::resources::{ServiceSpec, Slice, SliceEndpoint};
use kube_bastion::cluster::{
    Cluster, ExclusionReason, Family, Kind, Object, ObjectKey, Phase, Pod, Service, ServicePort,
    Writer,
};
use kube_bastion::model::address::AddressPolicy;
use libfuzzer_sys::fuzz_target;

use slices::input::{
    Change, Input, NAMESPACES, PODS, PodInput, SERVICES, SLICES, ServiceInput, SliceInput, V4, V6,
};

/// Maximum number of excluded endpoints that a service port lists.
const MAX_REPORTED: usize = 8;

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
