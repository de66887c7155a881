//! Watches of the objects that the controller for load balancers needs: Services and nodes,
//! namespaces if they are selected by labels, and EndpointSlices if this replica knows its node.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::super::objects::key;
use super::{
    Failure, FailureLog, Health, KubernetesError, SERVING_LAST_STATE, WatchBackoff, watch_client,
};
use crate::cluster::ObjectKey;
use crate::config::LoadBalancer;
use crate::loadbalancer::Inventory;
use crate::loadbalancer::assign::Labels;
use crate::loadbalancer::inventory::Change;
use crate::loadbalancer::nodes::{EndpointSlice, Node, NodeFacts, SliceNodes};
use crate::loadbalancer::service::Service;
use crate::metrics::Metrics;
use crate::ready::Ready;
use crate::supervise::Supervisor;

/// Remedy for missing permissions of the controller.
const APPLY_COMPONENT: &str =
    "apply the ClusterRole kube-bastion:load-balancer (deploy/components/load-balancer-controller)";

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
    let services = health("loadbalancer-services");
    let task = follow::<Service>(config, services, inventory)?;
    supervisor.restart("loadbalancer-services", task);
    let task = follow::<Node>(config, health("loadbalancer-nodes"), inventory)?;
    supervisor.restart("loadbalancer-nodes", task);
    if settings.namespace_selector.is_some() {
        let namespaces = health("loadbalancer-namespaces");
        let task = follow::<Namespace>(config, namespaces, inventory)?;
        supervisor.restart("loadbalancer-namespaces", task);
    }
    if settings.node_name.is_some() {
        let task = follow::<EndpointSlice>(config, health("loadbalancer-slices"), inventory)?;
        supervisor.restart("loadbalancer-slices", task);
    }
    supervisor.restart("loadbalancer-failures", move || failures.clone().run());
    Ok(())
}

/// Kind of object of the inventory.
trait Listed: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    /// Kept part of an object.
    type Kept: Send;

    fn kept(self) -> Self::Kept;
    fn list(list: Vec<Self::Kept>) -> Change;
    fn apply(kept: Self::Kept) -> Change;
    fn delete(self) -> Change;
}

impl Listed for Service {
    type Kept = Self;

    fn kept(self) -> Self {
        self.slim()
    }

    fn list(list: Vec<Self>) -> Change {
        Change::Services(list)
    }

    fn apply(kept: Self) -> Change {
        Change::Service(Box::new(kept))
    }

    fn delete(self) -> Change {
        Change::ServiceDeleted(self.key())
    }
}

impl Listed for Node {
    type Kept = (Box<str>, NodeFacts);

    fn kept(self) -> Self::Kept {
        (self.name_any().into(), NodeFacts::new(&self))
    }

    fn list(list: Vec<Self::Kept>) -> Change {
        Change::Nodes(list)
    }

    fn apply((name, facts): Self::Kept) -> Change {
        Change::Node(name, facts)
    }

    fn delete(self) -> Change {
        Change::NodeDeleted(self.name_any().into())
    }
}

impl Listed for Namespace {
    type Kept = (Box<str>, Labels);

    fn kept(self) -> Self::Kept {
        let name = self.name_any().into();
        (name, self.metadata.labels.unwrap_or_default())
    }

    fn list(list: Vec<Self::Kept>) -> Change {
        Change::Namespaces(list)
    }

    fn apply((name, labels): Self::Kept) -> Change {
        Change::Namespace(name, labels)
    }

    fn delete(self) -> Change {
        Change::NamespaceDeleted(self.name_any().into())
    }
}

impl Listed for EndpointSlice {
    type Kept = (ObjectKey, SliceNodes);

    fn kept(self) -> Self::Kept {
        (key(&self.metadata), SliceNodes::new(&self))
    }

    fn list(list: Vec<Self::Kept>) -> Change {
        Change::Slices(list)
    }

    fn apply((key, nodes): Self::Kept) -> Change {
        Change::Slice(key, nodes)
    }

    fn delete(self) -> Change {
        Change::SliceDeleted(key(&self.metadata))
    }
}

/// Returns the task that lists and watches one kind.
fn follow<K: Listed>(
    config: &kube::Config,
    health: Health,
    inventory: &Arc<Inventory>,
) -> Result<impl FnMut() -> BoxFuture<'static, ()> + Send + 'static + use<K>, KubernetesError> {
    let api = Api::<K>::all(watch_client(config, health.clone())?);
    let inventory = Arc::clone(inventory);
    Ok(move || run(api.clone(), Arc::clone(&inventory), health.clone()).boxed())
}

async fn run<K: Listed>(api: Api<K>, inventory: Arc<Inventory>, health: Health) {
    let events = watcher::watcher(api, watcher::Config::default());
    let mut events = pin!(events.backoff(WatchBackoff::default()));
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => listed.push(object.kept()),
            Ok(Event::InitDone) => inventory.apply(K::list(std::mem::take(&mut listed))),
            Ok(Event::Apply(object)) => inventory.apply(K::apply(object.kept())),
            Ok(Event::Delete(object)) => inventory.apply(object.delete()),
            Err(error) => {
                health.set_failed(Failure::new(&error, APPLY_COMPONENT), SERVING_LAST_STATE);
            }
        }
    }
}
