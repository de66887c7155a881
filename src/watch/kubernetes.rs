//! Cluster state from a Kubernetes API: lists and watches nodes, pods, services and EndpointSlices,
//! and follows the authentication configuration that the cluster publishes.

mod api_servers;
mod authentication_config;
mod client;
mod failures;
mod load_balancer;

use std::pin::pin;
use std::time::Duration;

pub use api_servers::follow_api_servers;
pub use authentication_config::AuthenticationConfigMap;
pub use client::{Connections, review_client};
use client::{Health, watch_client};
use failures::Failure;
pub use failures::FailureLog;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kube::api::Api;
use kube::config::InClusterError;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use kube::{Client, Resource};
pub use load_balancer::follow_load_balancers;

use super::objects::{Item, SlimNode, SlimPod, SlimService, SlimSlice, Watched, key, trigger_time};
use super::{Change, Feed};
use crate::cluster::{Kind, Object, ObjectKey};
use crate::config::KubernetesSource;
use crate::kubeconfig::{self, Environment, KubeconfigError, Selection};
use crate::metrics::Metrics;
use crate::model::causes::plugin_failure;
use crate::ready::{BlockReady, Ready};
use crate::supervise::Supervisor;

/// Remedy for missing permissions of the bastion.
const APPLY_ROLE: &str = "apply the ClusterRole kube-bastion and its ClusterRoleBinding \
                          (deploy/base/rbac.yaml), or bind the role to the user of the kubeconfig";
/// Effect of a failed watch on requests, after and before its initial list.
const SERVING_LAST_STATE: &str = "serving the last known state";
const NOT_READY: &str = "not ready until the initial list succeeds";

/// Reason why no client of the API can be created.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(
        "no cluster: no --kubeconfig is set, nor $KUBECONFIG, ~/.kube/config does not exist, and \
         this is not a pod with a service account; set --kubeconfig=FILE (or \
         source.kubernetes.kubeconfig), or run without Kubernetes with --manifests-dir \
         (source.type: manifests)"
    )]
    NoCluster,
    #[error("the service account of the pod cannot be used")]
    InCluster(#[source] InClusterError),
    /// Without the URL, which may contain a password.
    #[error(
        "proxies are not supported: remove proxy-url of the kubeconfig, or HTTPS_PROXY of the \
         environment, and connect to the API server directly"
    )]
    Proxy,
    #[error("cannot create the client of the Kubernetes API")]
    Client(#[from] kube::Error),
}

/// Loads the configuration of the API client: that of a kubeconfig, or the pod's service account.
///
/// The clients (`kubernetes/client.rs`) do not retry. A review has its own deadline; a watch
/// retries with backoff and reports each failure.
///
/// # Errors
/// The kubeconfig is invalid, or there is neither a kubeconfig nor a service account.
pub async fn connect(source: &KubernetesSource) -> Result<kube::Config, KubernetesError> {
    match kubeconfig::select(source, &Environment::of_process()) {
        Selection::Kubeconfig(paths, origin) => {
            let context = source.context.as_deref();
            Ok(kubeconfig::load(paths, origin, context).await?)
        }
        Selection::ServiceAccount => kube::Config::incluster().map_err(KubernetesError::InCluster),
        Selection::None => Err(KubernetesError::NoCluster),
    }
}

/// Watches of the API. Created before any task runs, so that invalid credentials fail the start.
#[expect(missing_debug_implementations, reason = "kube's client has no Debug")]
pub struct KubernetesWatch {
    /// One per kind, in the order of [`Kind::ALL`].
    clients: [Client; Kind::ALL.len()],
    ready: Ready,
    metrics: Metrics,
    failures: FailureLog,
}

/// Event of the watch of one kind.
enum WatchEvent {
    /// A list begins. The previous objects stay until it is complete.
    ListStarted,
    Listed(Object),
    ListCompleted,
    /// An object was added or changed, with the trigger time of a slice.
    Changed(Object, Option<f64>),
    Deleted(ObjectKey),
    /// The object is not needed, or malformed and already logged. After a malformed change, the
    /// previous version of the object stays.
    Skipped,
    /// The watch or list failed.
    Failed(Failure),
}

impl KubernetesWatch {
    /// Creates a client per kind.
    ///
    /// # Errors
    /// The credentials of the configuration cannot be loaded.
    pub fn new(
        config: &kube::Config,
        ready: &Ready,
        metrics: &Metrics,
    ) -> Result<Self, KubernetesError> {
        let failures = FailureLog::default();
        let client = |kind: Kind| {
            let health = Health {
                watch: kind.plural(),
                ready: ready.clone(),
                metrics: metrics.clone(),
                failures: failures.clone(),
            };
            watch_client(config, health)
        };
        let [nodes, pods, services, slices] = Kind::ALL;
        let clients = [
            client(nodes)?,
            client(pods)?,
            client(services)?,
            client(slices)?,
        ];
        Ok(Self {
            clients,
            ready: ready.clone(),
            metrics: metrics.clone(),
            failures,
        })
    }

    /// Log of the failures of all watches of this API server.
    pub fn failures(&self) -> FailureLog {
        self.failures.clone()
    }

    /// Blocks readiness until every kind has been listed.
    pub fn blockers(ready: &Ready) -> Vec<(Kind, BlockReady)> {
        Kind::ALL
            .into_iter()
            .map(|kind| (kind, ready.block(kind.plural())))
            .collect()
    }

    /// Starts a task per kind, so that a list that hangs does not delay the others. A restarted
    /// task lists again; the previous objects stay in use until the list is complete.
    pub fn start(self, feed: &Feed, supervisor: &mut Supervisor) {
        let Self {
            clients: [nodes, pods, services, slices],
            ready,
            metrics,
            failures,
        } = self;
        let health = |kind: Kind| Health {
            watch: kind.plural(),
            ready: ready.clone(),
            metrics: metrics.clone(),
            failures: failures.clone(),
        };
        supervisor.restart(
            "watch-nodes",
            follow::<SlimNode>(nodes, feed, health(SlimNode::KIND)),
        );
        supervisor.restart(
            "watch-pods",
            follow::<SlimPod>(pods, feed, health(SlimPod::KIND)),
        );
        supervisor.restart(
            "watch-services",
            follow::<SlimService>(services, feed, health(SlimService::KIND)),
        );
        supervisor.restart(
            "watch-endpointslices",
            follow::<SlimSlice>(slices, feed, health(SlimSlice::KIND)),
        );
        supervisor.restart("watch-failures", move || failures.clone().run());
    }
}

/// Backoff after failures of a watch: a quarter of kube's, from 0.2 s to 7.5 s, plus up to the same
/// as jitter. kube's own grows to 60 s, so that after an API server had been down for a minute,
/// changes of endpoints were not seen for another 82 s. A handful of watches per replica does not
/// need that protection.
#[derive(Default)]
struct WatchBackoff(DefaultBackoff);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause / 4)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// Returns the task that lists and watches one kind.
fn follow<K: Watched>(
    client: Client,
    feed: &Feed,
    health: Health,
) -> impl FnMut() -> BoxFuture<'static, ()> + Send + 'static + use<K> {
    let feed = feed.clone();
    move || run::<K>(client.clone(), feed.clone(), health.clone()).boxed()
}

/// Lists and watches one kind until the process ends, with backoff after failures.
async fn run<K: Watched>(client: Client, feed: Feed, health: Health) {
    let kind = K::KIND;
    let events = watcher::watcher(Api::<Item<K>>::all(client), watcher::Config::default());
    let mut events = pin!(events.backoff(WatchBackoff::default()));
    let mut list = Vec::new();
    while let Some(event) = events.next().await {
        let event = translate::<K>(event, &health.metrics);
        // kube reports the start of a list before it sends the request, so that event does not
        // show that the API server responds.
        if !matches!(event, WatchEvent::ListStarted | WatchEvent::Failed(_)) {
            health.metrics.watch_event(kind.plural());
        }
        match event {
            // The list is collected here rather than applied object by object: a list that fails
            // half-way must not delete the objects that it did not reach.
            WatchEvent::ListStarted => list.clear(),
            WatchEvent::Listed(object) => list.push(object),
            WatchEvent::ListCompleted => {
                tracing::info!(
                    resource = kind.plural(),
                    objects = list.len(),
                    "list complete"
                );
                feed.send(Change::Reset(kind, std::mem::take(&mut list)))
                    .await;
            }
            WatchEvent::Changed(object, trigger) => feed.send(Change::Apply(object, trigger)).await,
            WatchEvent::Deleted(key) => feed.send(Change::Delete(kind, key)).await,
            WatchEvent::Skipped => {}
            WatchEvent::Failed(failure) => {
                let effect = if health.ready.is_pending(kind.plural()) {
                    NOT_READY
                } else {
                    SERVING_LAST_STATE
                };
                health.set_failed(failure, effect);
            }
        }
    }
}

fn translate<K: Watched>(event: watcher::Result<Event<Item<K>>>, metrics: &Metrics) -> WatchEvent {
    match event {
        Ok(Event::Init) => WatchEvent::ListStarted,
        Ok(Event::InitApply(item)) => match read(item, metrics) {
            Ok(Some(object)) => WatchEvent::Listed(object),
            Ok(None) | Err(Malformed) => WatchEvent::Skipped,
        },
        Ok(Event::InitDone) => WatchEvent::ListCompleted,
        Ok(Event::Apply(item)) => {
            let (key, trigger) = (key(item.meta()), trigger_time(item.meta()));
            match read(item, metrics) {
                Ok(Some(object)) => WatchEvent::Changed(object, trigger),
                // The index may hold the previous version: a slice can lose the label of its
                // service.
                Ok(None) => WatchEvent::Deleted(key),
                Err(Malformed) => WatchEvent::Skipped,
            }
        }
        Ok(Event::Delete(item)) => WatchEvent::Deleted(key(item.meta())),
        Err(error) => WatchEvent::Failed(Failure::new(&error, APPLY_ROLE)),
    }
}

/// A malformed object, already logged and counted.
struct Malformed;

/// Converts an object. `None` if the index does not need it.
fn read<K: Watched>(item: Item<K>, metrics: &Metrics) -> Result<Option<Object>, Malformed> {
    let name = key(item.meta());
    item.object().map_err(|error| {
        tracing::warn!(resource = K::KIND.plural(), %name, %error, "skipping a malformed object");
        metrics.watch_malformed(K::KIND.plural());
        Malformed
    })
}

/// Joins the causes of an error, without those that only name the layers of the client.
fn innermost_causes(error: &dyn std::error::Error) -> String {
    if let Some(failure) = plugin_failure(error) {
        return failure;
    }
    let mut causes: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        // The wrappers of kube repeat the text of their source.
        while causes
            .pop_if(|wrapper| wrapper.contains(&message))
            .is_some()
        {}
        causes.push(message);
        next = error.source();
    }
    let innermost = causes.len() - 1;
    let mut index = 0..;
    // Those of hyper do not.
    causes.retain(|cause| {
        index.next() == Some(innermost)
            || !(cause.starts_with("client error (") || cause == "tcp connect error")
    });
    causes.join(": ")
}

#[cfg(test)]
mod tests;
