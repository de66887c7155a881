//! Tasks of the controller: the assignment on all replicas, and the writes of the elected one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::assign::{self, Facts, Holders, Outcome};
use super::events;
use super::inventory::Inventory;
use super::listener::{BindReport, ListenerSpec, Listeners};
use super::service::Service;
use crate::cluster::ObjectKey;
use crate::ready::Ready;
use crate::telemetry::LogLimit;

/// Interval at which the controller checks at the start whether the index is loaded.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

/// Log lines about listeners. Services are changed by many, and one may have many listeners.
static CHANGES: LogLimit = LogLimit::new(600);

/// Services that may need a change of their status.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Each in the version for which the outcome was determined. `None`: the Service is not of the
    /// class, or is being deleted.
    pub services: BTreeMap<ObjectKey, (Arc<Service>, Option<Outcome>)>,
    /// Services whose listeners are being opened, so that they have no outcome yet.
    pub opening: BTreeSet<ObjectKey>,
}

/// Assigns listeners whenever an object changes.
#[derive(Debug)]
pub struct Controller {
    settings: assign::Settings,
    inventory: Arc<Inventory>,
    binds: watch::Receiver<Arc<BindReport>>,
    ready: Ready,
    /// Kept here, so that a restart of the task takes no port from its holder.
    holders: Mutex<Holders>,
    listeners: watch::Sender<Arc<Listeners>>,
    results: watch::Sender<Arc<Results>>,
}

impl Controller {
    /// `binds` is the report of the data path. `ready` is blocked until the index has the endpoints of
    /// the Services.
    pub fn new(
        settings: assign::Settings,
        inventory: Arc<Inventory>,
        binds: watch::Receiver<Arc<BindReport>>,
        ready: Ready,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            inventory,
            binds,
            ready,
            holders: Mutex::default(),
            listeners: watch::Sender::default(),
            results: watch::Sender::default(),
        })
    }

    /// Follows the listeners of this replica.
    pub fn listeners(&self) -> watch::Receiver<Arc<Listeners>> {
        self.listeners.subscribe()
    }

    /// Follows the results for all Services.
    pub fn results(&self) -> watch::Receiver<Arc<Results>> {
        self.results.subscribe()
    }

    /// Assigns listeners until the process ends. The first are published once the index is loaded:
    /// before, their connections would be reset for lack of endpoints.
    pub async fn run(self: Arc<Self>) {
        while !self.ready.is_synced() {
            tokio::time::sleep(SYNC_INTERVAL).await;
        }
        let mut changes = self.inventory.changes();
        let mut binds = self.binds.clone();
        loop {
            // Marked before the objects are read, so that no change is missed.
            changes.mark_unchanged();
            let report = Arc::clone(&binds.borrow_and_update());
            self.update(&report);
            tokio::select! {
                // The inventory lives as long as the controller.
                _ = changes.changed() => {}
                true = async { binds.changed().await.is_ok() } => {}
            }
        }
    }

    /// Assigns and publishes once.
    fn update(&self, binds: &BindReport) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let assigned = self.inventory.read(|objects| {
            let mut assignment = assign::assign(
                &self.settings,
                &Facts {
                    services: &objects.services,
                    published: &objects.published,
                    namespaces: &objects.namespaces,
                    nodes: &objects.nodes,
                    slices: &objects.slices,
                    holders: &holders,
                    failures: &binds.failures,
                },
            );
            let mut results = results(&objects.services, &mut assignment.services);
            for (listener, spec) in &assignment.listeners {
                if !binds.is_settled(listener) {
                    let key = ObjectKey::new(&spec.namespace, &spec.service);
                    results.services.remove(&key);
                    results.opening.insert(key);
                }
            }
            (assignment, results)
        });
        let Some((assignment, results)) = assigned else {
            return;
        };
        *holders = assignment.holders;
        publish(&self.listeners, assignment.listeners);
        self.results.send_replace(Arc::new(results));
    }
}

fn results(
    services: &BTreeMap<ObjectKey, Arc<Service>>,
    outcomes: &mut BTreeMap<ObjectKey, Outcome>,
) -> Results {
    let services = services.iter().map(|(key, service)| {
        let outcome = outcomes.remove(key);
        (key.clone(), (Arc::clone(service), outcome))
    });
    Results {
        services: services.collect(),
        opening: BTreeSet::new(),
    }
}

/// Publishes listeners if they differ from the present ones, and logs the difference.
fn publish(sender: &watch::Sender<Arc<Listeners>>, listeners: Listeners) {
    sender.send_if_modified(|present| {
        if **present == listeners {
            return false;
        }
        for (key, spec) in &listeners {
            if present.get(key) == Some(spec) {
                continue;
            }
            if !CHANGES.permits() {
                continue;
            }
            tracing::info!(
                listener = %key,
                service = %format_args!("{}/{}", spec.namespace, spec.service),
                clients = clients(spec),
                "load balancer: listener opened or changed"
            );
        }
        for key in present.keys().filter(|key| !listeners.contains_key(key)) {
            if !CHANGES.permits() {
                break;
            }
            tracing::info!(listener = %key, "load balancer: listener closed");
        }
        *present = Arc::new(listeners);
        true
    });
}

/// Returns the clients of a listener, cut to the length of a message.
fn clients(spec: &ListenerSpec) -> String {
    let Some(ranges) = &spec.source_ranges else {
        return "all".to_owned();
    };
    let ranges: Vec<_> = ranges.iter().map(|range| range.to_string()).collect();
    let mut clients = ranges.join(",");
    events::cut(&mut clients);
    clients
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::inventory::Change;
    use super::super::listener::{BindFailures, ListenerKey, Protocol};
    use super::super::nodes::SliceNodes;
    use super::*;
    use crate::config::LoadBalancer;
    use crate::testing::eventually;

    const WAIT: Duration = Duration::from_hours(1);

    fn service(name: &str, more: &Value) -> Service {
        let mut spec = json!({
            "type": "LoadBalancer", "loadBalancerClass": "a/b", "ipFamilies": ["IPv4"],
            "ports": [{"port": 80}],
        });
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name},
            "spec": spec,
        }))
        .unwrap()
    }

    struct Running {
        controller: Arc<Controller>,
        inventory: Arc<Inventory>,
        binds: watch::Sender<Arc<BindReport>>,
        /// Listeners that the data path cannot bind.
        failures: watch::Sender<BindFailures>,
    }

    /// Binds the wanted listeners, as the data path, but for those that fail.
    async fn bind(
        mut wanted: watch::Receiver<Arc<Listeners>>,
        mut failing: watch::Receiver<BindFailures>,
        binds: watch::Sender<Arc<BindReport>>,
    ) {
        loop {
            let failures = failing.borrow_and_update().clone();
            let keys = wanted
                .borrow_and_update()
                .keys()
                .copied()
                .collect::<Vec<_>>();
            let bound = keys.into_iter().filter(|key| !failures.contains_key(key));
            let bound = bound.collect();
            binds.send_replace(Arc::new(BindReport { bound, failures }));
            tokio::select! {
                _ = wanted.changed() => {}
                _ = failing.changed() => {}
            }
        }
    }

    fn start(ready: &Ready) -> Running {
        let running = start_unbound(ready, &watch::Sender::default());
        let binds = running.binds.clone();
        let (wanted, failing) = (running.controller.listeners(), running.failures.subscribe());
        tokio::spawn(bind(wanted, failing, binds));
        running
    }

    fn start_unbound(ready: &Ready, binds: &watch::Sender<Arc<BindReport>>) -> Running {
        let settings = json!({"class": "a/b", "addresses": ["192.0.2.1"]});
        let settings: LoadBalancer = serde_json::from_value(settings).unwrap();
        let inventory = Inventory::new(&settings);
        let controller = Controller::new(
            assign::Settings {
                class: settings.class,
                bind_addresses: vec!["0.0.0.0".parse().unwrap()],
                namespace_selector: None,
                allowed_ports: settings.allowed_ports,
                own_ports: BTreeSet::new(),
                node_name: Some("node-1".into()),
            },
            Arc::clone(&inventory),
            binds.subscribe(),
            ready.clone(),
        );
        tokio::spawn(Arc::clone(&controller).run());
        Running {
            controller,
            inventory,
            binds: binds.clone(),
            failures: watch::Sender::default(),
        }
    }

    impl Running {
        fn holder(&self) -> Option<String> {
            let listeners = self.controller.listeners.borrow();
            listeners
                .values()
                .next()
                .map(|spec| spec.service.to_string())
        }

        fn reasons(&self, name: &str) -> Vec<&'static str> {
            let results = self.controller.results.borrow();
            let result = results.services.get(&ObjectKey::new("shop", name));
            let outcome = result.and_then(|(_, outcome)| outcome.as_ref());
            let problems = outcome.iter().flat_map(|outcome| &outcome.problems);
            problems
                .map(super::super::request::Problem::reason)
                .collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn listeners_follow_the_services() {
        let running = start(&Ready::default());
        let apply = |change| running.inventory.apply(change);
        apply(Change::Nodes(Vec::new()));
        apply(Change::Services(vec![
            service("a", &json!({})),
            service("b", &json!({})),
        ]));
        eventually(WAIT, || running.holder().as_deref() == Some("a")).await;
        assert_eq!(running.reasons("b"), ["PortConflict"]);
        apply(Change::ServiceDeleted(ObjectKey::new("shop", "a")));
        eventually(WAIT, || running.holder().as_deref() == Some("b")).await;
        // The first by name does not get it back.
        apply(Change::Service(Box::new(service("a", &json!({})))));
        eventually(WAIT, || running.reasons("a") == ["PortConflict"]).await;
        assert_eq!(running.holder().as_deref(), Some("b"));
        apply(Change::Service(Box::new(service(
            "b",
            &json!({"type": "ClusterIP"}),
        ))));
        eventually(WAIT, || running.holder().as_deref() == Some("a")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_assigned_before_the_index_is_loaded() {
        let ready = Ready::default();
        let blocker = ready.block("endpointslices");
        let running = start(&ready);
        running.inventory.apply(Change::Nodes(Vec::new()));
        running
            .inventory
            .apply(Change::Services(vec![service("a", &json!({}))]));
        tokio::time::sleep(WAIT).await;
        assert_eq!(running.holder(), None);
        assert!(running.controller.results.borrow().services.is_empty());
        drop(blocker);
        eventually(WAIT, || running.holder().as_deref() == Some("a")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn service_has_no_result_before_its_listeners_are_open() {
        let running = start_unbound(&Ready::default(), &watch::Sender::default());
        running.inventory.apply(Change::Nodes(Vec::new()));
        let without_listener = json!({"ipFamilies": ["IPv6"]});
        running.inventory.apply(Change::Services(vec![
            service("a", &json!({})),
            service("b", &without_listener),
        ]));
        eventually(WAIT, || running.reasons("b") == ["NoAddress"]).await;
        assert_eq!(running.holder().as_deref(), Some("a"));
        let has_result = || {
            let results = running.controller.results.borrow();
            results.services.contains_key(&ObjectKey::new("shop", "a"))
        };
        assert!(!has_result());
        let wanted = running.controller.listeners();
        let bound = wanted.borrow().keys().copied().collect();
        let failures = BindFailures::new();
        running
            .binds
            .send_replace(Arc::new(BindReport { bound, failures }));
        eventually(WAIT, has_result).await;
    }

    #[tokio::test(start_paused = true)]
    async fn results_follow_bind_failures_and_nodes_of_endpoints() {
        let running = start(&Ready::default());
        running.inventory.apply(Change::Nodes(Vec::new()));
        let local = json!({"externalTrafficPolicy": "Local"});
        running
            .inventory
            .apply(Change::Services(vec![service("a", &local)]));
        let nodes = SliceNodes {
            service: "a".into(),
            nodes: BTreeSet::from(["node-1".into()]),
        };
        running
            .inventory
            .apply(Change::Slice(ObjectKey::new("shop", "a-1"), nodes));
        eventually(WAIT, || running.holder().is_some()).await;
        assert_eq!(running.reasons("a"), [""; 0]);
        let key = ListenerKey {
            address: "0.0.0.0".parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
        };
        let failed = BindFailures::from([(key, "in use".to_owned())]);
        running.failures.send_replace(failed);
        eventually(WAIT, || running.reasons("a") == ["BindFailed"]).await;
        running.failures.send_replace(BindFailures::new());
        eventually(WAIT, || running.reasons("a").is_empty()).await;
        let deleted = Change::SliceDeleted(ObjectKey::new("shop", "a-1"));
        running.inventory.apply(deleted);
        eventually(WAIT, || running.reasons("a") == ["NoLocalEndpoint"]).await;
    }
}
