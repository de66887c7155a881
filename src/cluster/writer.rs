//! The one writer of the index.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::resources::{Kind, Object, ServiceSpec, Slice};
use super::service::Join;
use super::{Cluster, ObjectKey};
use crate::model::address::AddressPolicy;

/// Applies facts to a [`Cluster`]. The whole contract is `apply`, `delete` and `reset`.
#[derive(Debug)]
pub struct Writer {
    cluster: Arc<Cluster>,
    addresses: AddressPolicy,
    pod_less: bool,
    services: HashMap<ObjectKey, ServiceSpec>,
    slices: HashMap<ObjectKey, Slice>,
    /// Service → names of its slices.
    slices_of: HashMap<ObjectKey, HashSet<Box<str>>>,
    /// Pod → services whose slices point at it, to be joined again when the pod changes.
    services_of: HashMap<ObjectKey, HashSet<ObjectKey>>,
}

impl Writer {
    pub(super) fn new(cluster: Arc<Cluster>, addresses: AddressPolicy, pod_less: bool) -> Self {
        Self {
            cluster,
            addresses,
            pod_less,
            services: HashMap::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            services_of: HashMap::new(),
        }
    }

    /// An object came or changed.
    pub fn apply(&mut self, object: Object) {
        let mut touched = HashSet::new();
        self.put(object, &mut touched);
        self.join(touched);
    }

    /// An object is gone. Nodes have an empty namespace.
    pub fn delete(&mut self, kind: Kind, key: &ObjectKey) {
        let mut touched = HashSet::new();
        self.remove(kind, key, &mut touched);
        self.join(touched);
    }

    /// `objects` is the whole set of a kind: what it does not hold is gone. Until the last object
    /// is in, readers still find the old ones.
    pub fn reset(&mut self, kind: Kind, objects: Vec<Object>) {
        let mut touched = HashSet::new();
        let mut stale = self.keys(kind);
        for object in objects {
            stale.remove(&key_of(&object));
            self.put(object, &mut touched);
        }
        for key in &stale {
            self.remove(kind, key, &mut touched);
        }
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
                self.cluster
                    .nodes
                    .insert((*node.name).into(), Arc::new(node));
            }
            Object::Pod(key, pod) => {
                // Most changes of a pod are none to us: only a new address, or its end, can change
                // a service.
                let moved = self.cluster.pods.get(&key).is_none_or(|before| {
                    before.ips != pod.ips || before.phase.has_ended() != pod.phase.has_ended()
                });
                if moved {
                    touched.extend(self.services_of.get(&key).into_iter().flatten().cloned());
                }
                self.cluster.pods.insert(key, Arc::new(pod));
            }
            Object::Service(key, spec) => {
                self.services.insert(key.clone(), spec);
                touched.insert(key);
            }
            Object::EndpointSlice(key, slice) => {
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
                self.cluster.nodes.remove(&*key.name);
            }
            Kind::Pod => {
                self.cluster.pods.remove(key);
                touched.extend(self.services_of.get(key).into_iter().flatten().cloned());
            }
            Kind::Service => {
                self.services.remove(key);
                touched.insert(key.clone());
            }
            Kind::EndpointSlice => self.unlink(key, touched),
        }
    }

    /// Takes a slice out, and the links from its pods unless another slice of the service keeps
    /// them.
    fn unlink(&mut self, key: &ObjectKey, touched: &mut HashSet<ObjectKey>) {
        let Some(slice) = self.slices.remove(key) else {
            return;
        };
        let service = ObjectKey {
            namespace: key.namespace.clone(),
            name: slice.service,
        };
        remove_from(&mut self.slices_of, &service, &key.name);
        let kept: HashSet<&ObjectKey> = self
            .slices_of
            .get(&service)
            .into_iter()
            .flatten()
            .filter_map(|name| {
                self.slices.get(&ObjectKey {
                    namespace: key.namespace.clone(),
                    name: name.clone(),
                })
            })
            .flat_map(|slice| &slice.endpoints)
            .filter_map(|endpoint| endpoint.pod.as_ref())
            .collect();
        let gone: Vec<_> = slice
            .endpoints
            .into_iter()
            .filter_map(|endpoint| endpoint.pod)
            .filter(|pod| !kept.contains(pod))
            .collect();
        for pod in gone {
            remove_from(&mut self.services_of, &pod, &service);
        }
        touched.insert(service);
    }

    /// Builds the services anew whose spec, slices or pods changed.
    fn join(&self, touched: HashSet<ObjectKey>) {
        for key in touched {
            let Some(spec) = self.services.get(&key) else {
                self.cluster.services.remove(&key);
                continue;
            };
            let names = self.slices_of.get(&key).into_iter().flatten();
            let slices: Vec<&Slice> = names
                .filter_map(|name| {
                    self.slices.get(&ObjectKey {
                        namespace: key.namespace.clone(),
                        name: name.clone(),
                    })
                })
                .collect();
            let before = self
                .cluster
                .services
                .get(&key)
                .map(|service| Arc::clone(&service));
            let join = Join {
                namespace: &key.namespace,
                slices: &slices,
                pod: |namespace: &str, name: &str| self.cluster.pod(namespace, name),
                addresses: self.addresses,
                pod_less: self.pod_less,
                before: before.as_deref(),
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

/// Takes `value` out of the set of `key`, and the set with it when it was the last.
fn remove_from<K: Hash + Eq, V: Hash + Eq>(sets: &mut HashMap<K, HashSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
