//! Cluster state from a Kubernetes API: lists and watches nodes, pods, services and EndpointSlices,
//! and follows the authentication configuration that the cluster publishes.

mod api_servers;
mod authentication_config;
mod client;
mod failures;
mod follow;
mod load_balancer;

pub use api_servers::follow_api_servers;
pub use authentication_config::AuthenticationConfigMap;
pub use client::{Connections, review_client};
use client::{Health, watch_client};
pub use failures::FailureLog;
use follow::{Sink, Update, follow, follow_all};
use kube::Client;
use kube::config::InClusterError;
pub use load_balancer::follow_load_balancers;

use super::objects::{Indexed, SlimNode, SlimPod, SlimService, SlimSlice};
use super::{Change, Feed};
use crate::cluster::{Kind, Object};
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
            follow_all::<SlimNode, _>(nodes, feed.clone(), health(Kind::Node)),
        );
        supervisor.restart(
            "watch-pods",
            follow_all::<SlimPod, _>(pods, feed.clone(), health(Kind::Pod)),
        );
        supervisor.restart(
            "watch-services",
            follow_all::<SlimService, _>(services, feed.clone(), health(Kind::Service)),
        );
        supervisor.restart(
            "watch-endpointslices",
            follow_all::<SlimSlice, _>(slices, feed.clone(), health(Kind::EndpointSlice)),
        );
        supervisor.restart("watch-failures", move || failures.clone().run());
    }
}

impl<K: Indexed> Sink<K> for Feed {
    async fn update(&mut self, update: Update<Object>) {
        let change = match update {
            Update::Reset(objects) => Change::Reset(K::KIND, objects),
            Update::Apply(object, trigger) => Change::Apply(object, trigger),
            Update::Delete(key) => Change::Delete(K::KIND, key),
        };
        self.send(change).await;
    }

    fn failed(&self, ready: &Ready) -> &'static str {
        if ready.is_pending(K::KIND.plural()) {
            NOT_READY
        } else {
            SERVING_LAST_STATE
        }
    }
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
