//! Objects of the cluster that the controller needs, as the watches deliver them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::assign::Labels;
use super::nodes::{NodeFacts, SliceNodes};
use super::service::Service;
use crate::cluster::ObjectKey;
use crate::config::{LoadBalancer, PublishedAddress, parse_published_address};

/// Change of an object, or the complete list of a kind.
#[derive(Debug)]
pub enum Change {
    Services(Vec<Service>),
    Service(Box<Service>),
    ServiceDeleted(ObjectKey),
    Namespaces(Vec<(Box<str>, Labels)>),
    Namespace(Box<str>, Labels),
    NamespaceDeleted(Box<str>),
    Nodes(Vec<(Box<str>, NodeFacts)>),
    Node(Box<str>, NodeFacts),
    NodeDeleted(Box<str>),
    Slices(Vec<(ObjectKey, SliceNodes)>),
    Slice(ObjectKey, SliceNodes),
    SliceDeleted(ObjectKey),
}

/// Objects, written by the watches and read by the controller.
#[derive(Debug)]
pub struct Inventory {
    class: String,
    addresses_from: Option<ObjectKey>,
    objects: Mutex<Objects>,
    /// Notifies of changes.
    changed: watch::Sender<()>,
}

/// The objects at one moment.
#[derive(Debug)]
pub struct Objects {
    /// Services of the class, and those that have a status of the controller.
    pub services: BTreeMap<ObjectKey, Arc<Service>>,
    /// Empty unless namespaces are selected by labels.
    pub namespaces: BTreeMap<Box<str>, Labels>,
    pub nodes: BTreeMap<Box<str>, NodeFacts>,
    /// Empty unless the node of this replica is configured.
    pub slices: BTreeMap<ObjectKey, SliceNodes>,
    /// Addresses of the bastion.
    pub published: Vec<PublishedAddress>,
    /// Lists that are not complete yet.
    pending: Pending,
}

#[derive(Debug)]
struct Pending {
    services: bool,
    namespaces: bool,
    nodes: bool,
    slices: bool,
}

impl Pending {
    fn is_any(&self) -> bool {
        self.services || self.namespaces || self.nodes || self.slices
    }
}

impl Objects {
    /// Returns true for a Service with the policy `Local`.
    fn has_local(&self, namespace: &str, service: &str) -> bool {
        let service = self.services.get(&ObjectKey::new(namespace, service));
        service.is_some_and(|service| service.is_local_only())
    }
}

impl Inventory {
    pub fn new(settings: &LoadBalancer) -> Arc<Self> {
        let addresses_from = settings.addresses_from.as_ref();
        let addresses_from = addresses_from.and_then(|name| name.split_once('/'));
        Arc::new(Self {
            class: settings.class.clone(),
            addresses_from: addresses_from.map(|(namespace, name)| ObjectKey::new(namespace, name)),
            objects: Mutex::new(Objects {
                services: BTreeMap::new(),
                namespaces: BTreeMap::new(),
                nodes: BTreeMap::new(),
                slices: BTreeMap::new(),
                published: settings.addresses.clone(),
                pending: Pending {
                    services: true,
                    namespaces: settings.namespace_selector.is_some(),
                    nodes: true,
                    slices: settings.node_name.is_some(),
                },
            }),
            changed: watch::Sender::new(()),
        })
    }

    /// Follows changes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Reads the objects. `None` until every list is complete, because a decision on a part of the
    /// Services could take a port from its holder.
    pub fn read<T>(&self, read: impl FnOnce(&Objects) -> T) -> Option<T> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        (!objects.pending.is_any()).then(|| read(&objects))
    }

    /// Returns true if every list is complete.
    pub fn is_complete(&self) -> bool {
        self.read(|_| ()).is_some()
    }

    /// Applies a change. Readers are notified if it may change a decision: nodes and endpoints change
    /// far more often than what is read of them.
    pub fn apply(&self, change: Change) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let objects = &mut *objects;
        let matters = match change {
            Change::Services(services) => {
                objects.services.clear();
                if self.addresses_from.is_some() {
                    objects.published.clear();
                }
                for service in services {
                    self.apply_service(objects, service);
                }
                objects.pending.services = false;
                true
            }
            Change::Service(service) => self.apply_service(objects, *service),
            Change::ServiceDeleted(key) => {
                let has_addresses = self.addresses_from.as_ref() == Some(&key);
                if has_addresses {
                    objects.published.clear();
                }
                objects.services.remove(&key).is_some() || has_addresses
            }
            Change::Namespaces(namespaces) => {
                objects.namespaces = namespaces.into_iter().collect();
                objects.pending.namespaces = false;
                true
            }
            Change::Namespace(name, labels) => replace(&mut objects.namespaces, name, labels),
            Change::NamespaceDeleted(name) => objects.namespaces.remove(&name).is_some(),
            Change::Nodes(nodes) => {
                objects.nodes = nodes.into_iter().collect();
                objects.pending.nodes = false;
                true
            }
            Change::Node(name, facts) => replace(&mut objects.nodes, name, facts),
            Change::NodeDeleted(name) => objects.nodes.remove(&name).is_some(),
            Change::Slices(slices) => {
                objects.slices = slices.into_iter().collect();
                objects.pending.slices = false;
                true
            }
            Change::Slice(key, nodes) => {
                let has_local = objects.has_local(&key.namespace, &nodes.service);
                replace(&mut objects.slices, key, nodes) && has_local
            }
            Change::SliceDeleted(key) => {
                let removed = objects.slices.remove(&key);
                removed.is_some_and(|nodes| objects.has_local(&key.namespace, &nodes.service))
            }
        };
        if matters {
            self.changed.send_replace(());
        }
    }

    /// Applies a Service. Returns true if it may change a decision.
    fn apply_service(&self, objects: &mut Objects, service: Service) -> bool {
        let key = service.key();
        let has_addresses = self.addresses_from.as_ref() == Some(&key);
        if has_addresses {
            objects.published = addresses(&service);
        }
        if service.is_of_class(&self.class) || service.is_marked() {
            objects.services.insert(key, Arc::new(service));
            return true;
        }
        objects.services.remove(&key).is_some() || has_addresses
    }
}

/// Inserts a value. Returns true if it differs from the present one.
fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    let differs = map.get(&key) != Some(&value);
    map.insert(key, value);
    differs
}

/// Returns the addresses in the status of a Service.
fn addresses(service: &Service) -> Vec<PublishedAddress> {
    let ingress = service.status.load_balancer.ingress.iter();
    let texts = ingress.filter_map(|ingress| ingress.ip.as_deref().or(ingress.hostname.as_deref()));
    texts
        .filter_map(|text| parse_published_address(text).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::service::CONDITION;
    use super::*;

    fn service(name: &str, class: &str, status: &Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": class},
            "status": status,
        }))
        .unwrap()
    }

    fn inventory(more: &Value) -> Arc<Inventory> {
        let mut settings = json!({"class": "a/b"});
        settings
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let inventory = Inventory::new(&serde_json::from_value(settings).unwrap());
        inventory.apply(Change::Nodes(Vec::new()));
        inventory
    }

    #[test]
    fn is_read_after_every_list_is_complete() {
        let selector =
            json!({"namespaceSelector": {}, "nodeName": "a", "addresses": ["192.0.2.1"]});
        let inventory = inventory(&selector);
        inventory.apply(Change::Service(Box::new(service("web", "a/b", &json!({})))));
        assert!(inventory.read(|_| ()).is_none());
        inventory.apply(Change::Services(Vec::new()));
        assert!(inventory.read(|_| ()).is_none());
        inventory.apply(Change::Namespaces(Vec::new()));
        assert!(inventory.read(|_| ()).is_none());
        inventory.apply(Change::Slices(Vec::new()));
        assert_eq!(inventory.read(|objects| objects.services.len()), Some(0));
    }

    #[test]
    fn keeps_services_of_its_class_and_those_with_its_status() {
        let inventory = inventory(&json!({"addresses": ["192.0.2.1"]}));
        let marked = json!({"conditions": [{"type": CONDITION}]});
        inventory.apply(Change::Services(vec![
            service("own", "a/b", &json!({})),
            service("left", "a/c", &marked),
            service("foreign", "a/c", &json!({})),
        ]));
        let names = || {
            inventory.read(|objects| {
                let keys = objects.services.keys();
                keys.map(|key| key.name.to_string()).collect::<Vec<_>>()
            })
        };
        assert_eq!(names().unwrap(), ["left", "own"]);
        inventory.apply(Change::Service(Box::new(service(
            "left",
            "a/c",
            &json!({}),
        ))));
        assert_eq!(names().unwrap(), ["own"]);
        inventory.apply(Change::ServiceDeleted(ObjectKey::new("shop", "own")));
        assert_eq!(names().unwrap(), [""; 0]);
    }

    #[test]
    fn notifies_of_changes_that_matter() {
        let inventory = inventory(&json!({"addresses": ["192.0.2.1"], "addressesFrom": "shop/x"}));
        let mut notified = inventory.changes();
        let mut apply = |change| {
            inventory.apply(change);
            let has_changed = notified.has_changed().unwrap();
            notified.mark_unchanged();
            has_changed
        };
        let node = |is_excluded| {
            let facts = NodeFacts {
                is_excluded,
                ..NodeFacts::default()
            };
            Change::Node("node-1".into(), facts)
        };
        let labels = |value: &str| {
            let labels = Labels::from([("public".into(), value.into())]);
            Change::Namespace("shop".into(), labels)
        };
        let changed = |name, class| Change::Service(Box::new(service(name, class, &json!({}))));
        let deleted = |name| Change::ServiceDeleted(ObjectKey::new("shop", name));
        for (step, (change, matters)) in [
            (Change::Services(Vec::new()), true),
            (node(false), true),
            (node(false), false),
            (node(true), true),
            (Change::NodeDeleted("node-1".into()), true),
            (Change::NodeDeleted("node-1".into()), false),
            (labels("yes"), true),
            (labels("yes"), false),
            (labels("no"), true),
            (changed("foreign", "a/c"), false),
            (deleted("foreign"), false),
            (changed("web", "a/b"), true),
            (changed("web", "a/c"), true),
            (changed("web", "a/c"), false),
            (changed("x", "a/c"), true),
            (deleted("x"), true),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(apply(change), matters, "step {step}");
        }
    }

    #[test]
    fn endpoints_matter_for_services_with_the_local_policy_only() {
        let inventory = inventory(&json!({"addresses": ["192.0.2.1"]}));
        let mut local = service("local", "a/b", &json!({}));
        local.spec.external_traffic_policy = "Local".into();
        inventory.apply(Change::Services(vec![
            local,
            service("web", "a/b", &json!({})),
        ]));
        let mut changes = inventory.changes();
        let mut apply = |service: &str, node: &str| {
            let nodes = SliceNodes {
                service: service.into(),
                nodes: [node.into()].into(),
            };
            inventory.apply(Change::Slice(ObjectKey::new("shop", service), nodes));
            let has_changed = changes.has_changed().unwrap();
            changes.mark_unchanged();
            has_changed
        };
        assert!(apply("local", "a"));
        assert!(!apply("local", "a"));
        assert!(apply("local", "b"));
        assert!(!apply("web", "a"));
        assert!(!apply("other", "a"));
    }

    #[test]
    fn publishes_the_addresses_of_the_named_service() {
        let inventory = inventory(&json!({"addressesFrom": "shop/front"}));
        let front = |ingress: Value| {
            service(
                "front",
                "cloud/lb",
                &json!({"loadBalancer": {"ingress": ingress}}),
            )
        };
        let published = || {
            inventory.read(|objects| {
                let addresses = objects.published.iter();
                addresses.map(ToString::to_string).collect::<Vec<_>>()
            })
        };
        inventory.apply(Change::Services(vec![front(json!([
            {"ip": "192.0.2.1"}, {"hostname": "lb.test"}, {},
        ]))]));
        assert_eq!(published().unwrap(), ["192.0.2.1", "lb.test"]);
        inventory.apply(Change::Service(Box::new(front(
            json!([{"ip": "192.0.2.2"}]),
        ))));
        assert_eq!(published().unwrap(), ["192.0.2.2"]);
        inventory.apply(Change::Services(Vec::new()));
        assert_eq!(published().unwrap(), [""; 0]);
    }
}
