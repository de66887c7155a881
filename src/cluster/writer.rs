//! Single writer of the index.
//!
//! Objects of different kinds come from independent watches, so they arrive in any order: a slice
//! before its pods or its service, a pod after the deletion of its slice. The writer keeps the
//! unjoined services and slices with links in both directions, and joins the affected services
//! again after each change.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::join::Join;
use super::resources::{Kind, Object, ServiceSpec, Slice};
use super::{Cluster, Node, ObjectKey, Pod};
use crate::model::address::AddressPolicy;

/// Applies changes to a [`Cluster`] by `apply`, `delete` and `reset`.
#[derive(Debug)]
pub struct Writer {
    cluster: Arc<Cluster>,
    addresses: AddressPolicy,
    pod_less: bool,
    /// Name of the node of this process.
    local_node: Option<Box<str>>,
    /// Namespaces of pods, each stored once.
    namespaces: HashSet<Arc<str>>,
    services: HashMap<ObjectKey, ServiceSpec>,
    slices: HashMap<ObjectKey, Slice>,
    /// Service → names of its slices. Entries exist before and after the service itself, because a
    /// slice may arrive first.
    slices_of: HashMap<ObjectKey, HashSet<Box<str>>>,
    /// Pod → services whose slices refer to it, to be joined again when the pod changes. Entries
    /// exist before the pod, so that its arrival completes the join.
    services_of: HashMap<ObjectKey, HashSet<ObjectKey>>,
    /// Address → pods that have it, too, for the time after its holder.
    contested: HashMap<IpAddr, HashSet<ObjectKey>>,
}

impl Writer {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        addresses: AddressPolicy,
        pod_less: bool,
        local_node: Option<Box<str>>,
    ) -> Self {
        Self {
            cluster,
            addresses,
            pod_less,
            local_node,
            namespaces: HashSet::new(),
            services: HashMap::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            services_of: HashMap::new(),
            contested: HashMap::new(),
        }
    }

    /// Adds or replaces an object.
    pub fn apply(&mut self, object: Object) {
        let mut touched = HashSet::new();
        self.put(object, &mut touched);
        self.join(touched);
    }

    /// Deletes an object. Nodes have an empty namespace.
    pub fn delete(&mut self, kind: Kind, key: &ObjectKey) {
        let mut touched = HashSet::new();
        self.remove(kind, key, &mut touched);
        self.join(touched);
    }

    /// Replaces all objects of a kind, after a list. Objects that are not in `objects` are deleted.
    pub fn reset(&mut self, kind: Kind, objects: Vec<Object>) {
        let mut touched = HashSet::new();
        let mut stale = self.keys(kind);
        // Stale objects are deleted last and each service is joined once, after all changes:
        // readers find every object that is in both sets throughout, and no service is joined from
        // a mix of both.
        for object in objects {
            stale.remove(&key_of(&object));
            self.put(object, &mut touched);
        }
        for key in &stale {
            self.remove(kind, key, &mut touched);
        }
        self.namespaces.retain(|namespace| !is_unused(namespace));
        self.join(touched);
    }

    fn keys(&self, kind: Kind) -> HashSet<ObjectKey> {
        match kind {
            Kind::Node => self
                .cluster
                .nodes
                .iter()
                .map(|node| ObjectKey::new("", node.key()))
                .collect(),
            Kind::Pod => self
                .cluster
                .pods
                .iter()
                .map(|pod| pod.key().clone())
                .collect(),
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
        }
    }

    fn put(&mut self, object: Object, touched: &mut HashSet<ObjectKey>) {
        match object {
            Object::Node(node) => {
                let node = Arc::new(node);
                let nodes = &self.cluster.nodes;
                let previous = nodes.insert((*node.name).into(), Arc::clone(&node));
                self.move_node(previous.as_deref(), Some(&node));
            }
            Object::Pod(key, mut pod) => {
                pod.namespace = self.intern(pod.namespace);
                // A join reads only the addresses of a pod, whether it has ended, and the ports on
                // the network of its node. Most updates change none of them, and need no join.
                let affects_join = self.cluster.pods.get(&key).is_none_or(|previous| {
                    previous.ips != pod.ips
                        || previous.phase.has_ended() != pod.phase.has_ended()
                        || previous.host_network != pod.host_network
                        || pod.host_network && previous.ports != pod.ports
                });
                if affects_join {
                    touched.extend(self.services_of.get(&key).into_iter().flatten().cloned());
                }
                // Stored before the join, which looks the pod up.
                let pod = Arc::new(pod);
                let previous = self.cluster.pods.insert(key, Arc::clone(&pod));
                self.move_pod(previous.as_deref(), Some(&pod));
            }
            Object::Service(key, spec) => {
                for address in &spec.cluster_ips {
                    self.cluster.services_by_ip.insert(*address, key.clone());
                }
                let previous = self.services.insert(key.clone(), spec);
                self.release_cluster_ips(&key, previous);
                touched.insert(key);
            }
            Object::EndpointSlice(key, mut slice) => {
                for endpoint in &mut slice.endpoints {
                    endpoint
                        .node
                        .take_if(|node| Some(&**node) != self.local_node.as_deref());
                }
                // The update may move the slice to another service (its label changed) or drop
                // pods: the links of the previous version go first, and its service is joined, too.
                self.unlink(&key, touched);
                let service = ObjectKey {
                    namespace: key.namespace.clone(),
                    name: slice.service.clone(),
                };
                for pod in slice
                    .endpoints
                    .iter()
                    .filter_map(|endpoint| endpoint.pod.as_ref())
                {
                    self.services_of
                        .entry(pod.clone())
                        .or_default()
                        .insert(service.clone());
                }
                self.slices_of
                    .entry(service.clone())
                    .or_default()
                    .insert(key.name.clone());
                self.slices.insert(key, slice);
                touched.insert(service);
            }
        }
    }

    fn remove(&mut self, kind: Kind, key: &ObjectKey, touched: &mut HashSet<ObjectKey>) {
        match kind {
            Kind::Node => {
                let previous = self.cluster.nodes.remove(&*key.name);
                self.move_node(previous.map(|(_, node)| node).as_deref(), None);
            }
            Kind::Pod => {
                let previous = self.cluster.pods.remove(key);
                self.move_pod(previous.map(|(_, pod)| pod).as_deref(), None);
                let namespace = self.namespaces.get(&*key.namespace);
                if namespace.is_some_and(is_unused) {
                    self.namespaces.remove(&*key.namespace);
                }
                // The links stay: they belong to the slices, and a pod of the same name may be
                // created again (StatefulSet).
                touched.extend(self.services_of.get(key).into_iter().flatten().cloned());
            }
            Kind::Service => {
                let previous = self.services.remove(key);
                self.release_cluster_ips(key, previous);
                touched.insert(key.clone());
            }
            Kind::EndpointSlice => self.unlink(key, touched),
        }
    }

    /// Returns the stored namespace that equals `namespace`.
    fn intern(&mut self, namespace: Arc<str>) -> Arc<str> {
        if let Some(stored) = self.namespaces.get(&namespace) {
            return Arc::clone(stored);
        }
        self.namespaces.insert(Arc::clone(&namespace));
        namespace
    }

    /// Updates the nodes by address for a node that was changed, added or removed.
    fn move_node(&self, previous: Option<&Node>, node: Option<&Node>) {
        let by_ip = &self.cluster.nodes_by_ip;
        if let Some(node) = node {
            for address in node.ips() {
                by_ip.insert(address, Arc::clone(&node.name));
            }
        }
        if let Some(previous) = previous {
            for address in previous.ips() {
                if node.is_none_or(|node| node.ips().all(|kept| kept != address)) {
                    // Another node may have it now.
                    by_ip.remove_if(&address, |_, holder| *holder == previous.name);
                }
            }
        }
    }

    /// Updates the pods by address for a pod that was changed, added or removed.
    ///
    /// A pod does not take over an address from another that has it: its status may be forged, or
    /// older than the other pod.
    fn move_pod(&mut self, previous: Option<&Pod>, pod: Option<&Arc<Pod>>) {
        let owner = pod.filter(|pod| pod.owns_addresses());
        if let Some(previous) = previous {
            for address in &previous.ips {
                if owner.is_none_or(|pod| !pod.ips.contains(address)) {
                    self.release(*address, previous);
                }
            }
        }
        let by_ip = &self.cluster.pods_by_ip;
        if let Some(pod) = owner {
            for address in &pod.ips {
                let mut holder = by_ip.entry(*address).or_insert_with(|| Arc::clone(pod));
                if is_same(&holder, pod) {
                    *holder = Arc::clone(pod);
                } else {
                    let others = self.contested.entry(*address).or_default();
                    others.insert(ObjectKey::new(&pod.namespace, &pod.name));
                }
            }
        }
    }

    /// Takes an address from a pod and gives it to another that has it. If another is the holder
    /// already, as for the address of an ended pod, the pod only loses its claim.
    fn release(&mut self, address: IpAddr, pod: &Pod) {
        let by_ip = &self.cluster.pods_by_ip;
        let released = by_ip.remove_if(&address, |_, holder| is_same(holder, pod));
        if released.is_none() {
            let key = ObjectKey::new(&pod.namespace, &pod.name);
            remove_from(&mut self.contested, &address, &key);
            return;
        }
        let others = self.contested.get(&address);
        let next = others.and_then(|others| others.iter().next().cloned());
        if let Some(next) = next {
            if let Some(other) = self.cluster.pods.get(&next) {
                by_ip.insert(address, Arc::clone(&other));
            }
            remove_from(&mut self.contested, &address, &next);
        }
    }

    /// Removes the cluster IPs of the previous version of a service, unless it still has them or
    /// another one has them now.
    fn release_cluster_ips(&self, key: &ObjectKey, previous: Option<ServiceSpec>) {
        let kept = self.services.get(key);
        for address in previous.into_iter().flat_map(|spec| spec.cluster_ips) {
            if kept.is_none_or(|spec| !spec.cluster_ips.contains(&address)) {
                let by_ip = &self.cluster.services_by_ip;
                by_ip.remove_if(&address, |_, holder| holder == key);
            }
        }
    }

    /// Removes a slice and the links from its pods to its service, except those that another slice
    /// of the service needs.
    fn unlink(&mut self, key: &ObjectKey, touched: &mut HashSet<ObjectKey>) {
        let Some(slice) = self.slices.remove(key) else {
            return;
        };
        let service = ObjectKey {
            namespace: key.namespace.clone(),
            name: slice.service,
        };
        remove_from(&mut self.slices_of, &service, &key.name);
        // The controller moves endpoints between slices (KEP-752): a pod that is in both the old
        // and the new slice must keep its link when the old one is deleted.
        let kept: HashSet<&ObjectKey> = self
            .slices_of(&service)
            .flat_map(|slice| &slice.endpoints)
            .filter_map(|endpoint| endpoint.pod.as_ref())
            .collect();
        let unreferenced: Vec<_> = slice
            .endpoints
            .into_iter()
            .filter_map(|endpoint| endpoint.pod)
            .filter(|pod| !kept.contains(pod))
            .collect();
        for pod in unreferenced {
            remove_from(&mut self.services_of, &pod, &service);
        }
        touched.insert(service);
    }

    /// Returns the slices of a service. A slice is in the namespace of its service.
    fn slices_of<'a>(&'a self, service: &'a ObjectKey) -> impl Iterator<Item = &'a Slice> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| {
            self.slices.get(&ObjectKey {
                namespace: service.namespace.clone(),
                name: name.clone(),
            })
        })
    }

    /// Joins the services whose spec, slices or pods changed, and publishes the results.
    fn join(&self, touched: HashSet<ObjectKey>) {
        for key in touched {
            let Some(spec) = self.services.get(&key) else {
                self.cluster.services.remove(&key);
                continue;
            };
            let slices: Vec<&Slice> = self.slices_of(&key).collect();
            let previous = self
                .cluster
                .services
                .get(&key)
                .map(|service| Arc::clone(&service));
            // `previous` is a clone, not a guard of the map: `insert` below would wait for a guard
            // of the same shard forever.
            let join = Join {
                namespace: &key.namespace,
                slices: &slices,
                pod: |namespace: &str, name: &str| self.cluster.pod(namespace, name),
                addresses: self.addresses,
                pod_less: self.pod_less,
                previous: previous.as_deref(),
            };
            let service = Arc::new(join.service(spec));
            self.cluster.services.insert(key, service);
        }
    }
}

fn key_of(object: &Object) -> ObjectKey {
    match object {
        Object::Node(node) => ObjectKey::new("", &node.name),
        Object::Pod(key, _) | Object::Service(key, _) | Object::EndpointSlice(key, _) => {
            key.clone()
        }
    }
}

/// Returns true for a namespace that nothing but its set holds.
fn is_unused(namespace: &Arc<str>) -> bool {
    Arc::strong_count(namespace) == 1
}

/// Returns true for two versions of one pod.
fn is_same(pod: &Pod, other: &Pod) -> bool {
    pod.name == other.name && pod.namespace == other.namespace
}

/// Removes `value` from the set of `key`, and the set if it is empty then.
fn remove_from<K: Hash + Eq, V: Hash + Eq>(sets: &mut HashMap<K, HashSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
