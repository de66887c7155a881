//! Watches of the objects that the controller for load balancers needs: Services and nodes,
//! namespaces if they are selected by labels, and EndpointSlices if this replica knows its node.

use std::sync::Arc;

use futures::future::BoxFuture;
use kube::ResourceExt;

use super::{
    FailureLog, Health, KubernetesError, SERVING_LAST_STATE, Sink, Update, follow_all, watch_client,
};
use crate::cluster::ObjectKey;
use crate::config::LoadBalancer;
use crate::loadbalancer::Inventory;
use crate::loadbalancer::assign::Labels;
use crate::loadbalancer::inventory::Change;
use crate::loadbalancer::nodes::{EndpointSlice, Namespace, Node, NodeFacts, SliceNodes};
use crate::loadbalancer::service::Service;
use crate::metrics::Metrics;
use crate::ready::Ready;
use crate::supervise::Supervisor;
use crate::watch::objects::{Watched, key};

/// Remedy for missing permissions of the controller.
const APPLY_COMPONENT: &str =
    "apply the ClusterRole kube-bastion:load-balancer (deploy/components/load-balancer-controller)";

/// Effect of a failed list before the lists are complete.
const NO_LOAD_BALANCERS: &str = "serving no load balancers until the initial lists succeed";

/// Starts the watches, which fill the inventory.
///
/// # Errors
/// The credentials of the configuration cannot be loaded.
pub fn follow_load_balancers(
    config: &kube::Config,
    ready: &Ready,
    metrics: &Metrics,
    inventory: &Arc<Inventory>,
    settings: &LoadBalancer,
    supervisor: &mut Supervisor,
) -> Result<(), KubernetesError> {
    // A log of its own: it works without these watches.
    let failures = FailureLog::default();
    let health = |watch| Health {
        watch,
        ready: ready.clone(),
        metrics: metrics.clone(),
        failures: failures.clone(),
    };
    let services = task::<Service>(config, health("loadbalancer-services"), inventory)?;
    supervisor.restart("loadbalancer-services", services);
    let nodes = task::<Node>(config, health("loadbalancer-nodes"), inventory)?;
    supervisor.restart("loadbalancer-nodes", nodes);
    if settings.namespace_selector.is_some() {
        let namespaces = task::<Namespace>(config, health("loadbalancer-namespaces"), inventory)?;
        supervisor.restart("loadbalancer-namespaces", namespaces);
    }
    if settings.node_name.is_some() {
        let slices = task::<EndpointSlice>(config, health("loadbalancer-slices"), inventory)?;
        supervisor.restart("loadbalancer-slices", slices);
    }
    supervisor.restart("loadbalancer-failures", move || failures.clone().run());
    Ok(())
}

/// Returns the task that lists and watches one kind.
fn task<K: Listed>(
    config: &kube::Config,
    health: Health,
    inventory: &Arc<Inventory>,
) -> Result<impl FnMut() -> BoxFuture<'static, ()> + Send + 'static + use<K>, KubernetesError> {
    let client = watch_client(config, health.clone())?;
    Ok(follow_all::<K, _>(client, Arc::clone(inventory), health))
}

impl Watched for Service {
    type Kept = Self;

    fn kept(self) -> Option<Self> {
        Some(self.slim())
    }
}

impl Watched for Node {
    const IS_NAMESPACED: bool = false;

    type Kept = (Box<str>, NodeFacts);

    fn kept(self) -> Option<Self::Kept> {
        Some((self.name_any().into(), NodeFacts::new(&self)))
    }
}

impl Watched for Namespace {
    const IS_NAMESPACED: bool = false;

    type Kept = (Box<str>, Labels);

    fn kept(self) -> Option<Self::Kept> {
        let name = self.name_any().into();
        Some((name, self.metadata.labels.unwrap_or_default()))
    }
}

impl Watched for EndpointSlice {
    type Kept = (ObjectKey, SliceNodes);

    fn kept(self) -> Option<Self::Kept> {
        Some((key(&self.metadata), SliceNodes::new(&self)))
    }
}

/// A kind of the inventory.
trait Listed: Watched {
    fn change(update: Update<Self::Kept>) -> Change;
}

impl Listed for Service {
    fn change(update: Update<Self>) -> Change {
        match update {
            Update::Reset(list) => Change::Services(list),
            Update::Apply(service, _) => Change::Service(Box::new(service)),
            Update::Delete(key) => Change::ServiceDeleted(key),
        }
    }
}

impl Listed for Node {
    fn change(update: Update<Self::Kept>) -> Change {
        match update {
            Update::Reset(list) => Change::Nodes(list),
            Update::Apply((name, facts), _) => Change::Node(name, facts),
            Update::Delete(key) => Change::NodeDeleted(key.name),
        }
    }
}

impl Listed for Namespace {
    fn change(update: Update<Self::Kept>) -> Change {
        match update {
            Update::Reset(list) => Change::Namespaces(list),
            Update::Apply((name, labels), _) => Change::Namespace(name, labels),
            Update::Delete(key) => Change::NamespaceDeleted(key.name),
        }
    }
}

impl Listed for EndpointSlice {
    fn change(update: Update<Self::Kept>) -> Change {
        match update {
            Update::Reset(list) => Change::Slices(list),
            Update::Apply((key, nodes), _) => Change::Slice(key, nodes),
            Update::Delete(key) => Change::SliceDeleted(key),
        }
    }
}

impl<K: Listed> Sink<K> for Arc<Inventory> {
    const REMEDY: &str = APPLY_COMPONENT;

    async fn update(&mut self, update: Update<K::Kept>) {
        self.apply(K::change(update));
    }

    fn failed(&self, _: &Ready) -> &'static str {
        if self.is_complete() {
            SERVING_LAST_STATE
        } else {
            NO_LOAD_BALANCERS
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::watch::objects::Item;

    /// Decodes objects as a list of the API has them. `None` for malformed ones.
    fn kept<K: Watched>(object: &Value) -> Option<K::Kept> {
        let item = serde_json::from_str::<Item<K>>(&object.to_string()).unwrap();
        item.kept().ok().flatten()
    }

    #[test]
    fn decodes_objects_with_malformed_fields_that_are_not_used() {
        // Go's API server accepts and stores such times.
        let time = "9999-12-31T23:59:59-23:00";
        let metadata = json!({
            "name": "a", "namespace": "b", "labels": {"x": "y"},
            "managedFields": [{"time": time}], "ownerReferences": [{"controller": "odd"}],
        });
        let service = kept::<Service>(&json!({
            "metadata": metadata,
            "status": {"conditions": [{"type": "other", "lastTransitionTime": time}]},
        }));
        assert_eq!(service.unwrap().key(), ObjectKey::new("b", "a"));
        let object = json!({"metadata": metadata});
        assert_eq!(&*kept::<Node>(&object).unwrap().0, "a");
        assert_eq!(kept::<Namespace>(&object).unwrap().1["x"], "y");
        assert_eq!(kept::<EndpointSlice>(&object).unwrap().0.to_string(), "b/a");
    }

    #[tokio::test]
    async fn failure_names_its_effect() {
        let settings = json!({"class": "a/b", "addresses": ["192.0.2.1"]});
        let mut inventory = Inventory::new(&serde_json::from_value(settings).unwrap());
        let effect = |inventory: &_| Sink::<Service>::failed(inventory, &Ready::default());
        Sink::<Service>::update(&mut inventory, Update::Reset(Vec::new())).await;
        assert_eq!(effect(&inventory), NO_LOAD_BALANCERS);
        Sink::<Node>::update(&mut inventory, Update::Reset(Vec::new())).await;
        assert_eq!(effect(&inventory), SERVING_LAST_STATE);
    }

    #[test]
    fn one_malformed_service_hides_no_other() {
        let list = json!([
            {"metadata": {"name": "a", "namespace": "ns"}, "spec": {"ports": 5}},
            {"metadata": {"name": "b", "namespace": "ns"}, "spec": {"ports": null}},
            {"metadata": {"name": "c"}},
        ]);
        let list: Vec<Item<Service>> = serde_json::from_str(&list.to_string()).unwrap();
        let services = list.into_iter().filter_map(|item| item.kept().ok()?);
        let names: Vec<_> = services.map(|service| service.key().to_string()).collect();
        assert_eq!(names, ["ns/b"]);
    }
}
