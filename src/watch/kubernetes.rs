//! A Kubernetes API as the source: nodes, pods, services and EndpointSlices by list and watch, and
//! the CAs of client certificates that the cluster publishes.

mod authentication_config;
mod client;

use std::pin::pin;
use std::time::Duration;

pub use authentication_config::AuthenticationConfigMap;
pub use client::{Connections, review_client};
use client::{Health, watch_client};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use kube::{Client, Resource};

use super::objects::{Item, SlimNode, SlimPod, SlimService, SlimSlice, Watched, key, trigger_time};
use super::{Change, Feed};
use crate::cluster::{Kind, Object, ObjectKey};
use crate::config::KubernetesSource;
use crate::metrics::Metrics;
use crate::model::error_chain;
use crate::ready::{BlockReady, Ready};
use crate::supervise::Supervisor;

/// The rights that the watches of facts need, as deploy/ gives them.
const RIGHTS: &str =
    "list and watch on nodes, pods, services and endpointslices (ClusterRole kube-bastion)";
/// What becomes of requests while a watch is broken: once it has told all, and before.
const SERVES: &str = "the last known state serves";
const UNREADY: &str =
    "nothing is known of these yet, and the bastion is not ready until the API answers";

/// Why the API cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error("the kubeconfig {path:?} cannot be used")]
    Kubeconfig {
        path: std::path::PathBuf,
        source: kube::config::KubeconfigError,
    },
    #[error(
        "no --kubeconfig is given and this is no pod with a service account: give --kubeconfig=FILE (or \
         source.kubernetes.kubeconfig), or run without Kubernetes by --manifests-dir (source.type: manifests)"
    )]
    InCluster(#[from] kube::config::InClusterError),
    #[error("the client of the Kubernetes API cannot be set up")]
    Client(#[from] kube::Error),
}

/// How to reach the API: the kubeconfig that is configured, else the pod's service account.
///
/// The clients made of it (`kubernetes/client.rs`) retry nothing by themselves: a review has a
/// deadline of its own, and a watch pauses between its tries and tells of each that failed.
///
/// # Errors
/// Where neither is there, or the kubeconfig is no good.
pub async fn connect(source: &KubernetesSource) -> Result<kube::Config, KubernetesError> {
    Ok(match &source.kubeconfig {
        None => kube::Config::incluster()?,
        Some(path) => {
            let options = KubeConfigOptions {
                context: source.context.clone(),
                ..KubeConfigOptions::default()
            };
            let fault = |source| KubernetesError::Kubeconfig {
                path: path.clone(),
                source,
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(fault)?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(fault)?
        }
    })
}

/// Watches the API. Built before anything runs, so that bad credentials stop the start.
#[expect(
    missing_debug_implementations,
    reason = "clients of the API have nothing to show"
)]
pub struct KubernetesWatch {
    /// One for each of [`Kind::ALL`].
    clients: [Client; Kind::ALL.len()],
    ready: Ready,
    metrics: Metrics,
}

/// What the API told of one kind.
enum WatchEvent {
    /// A list begins: what was known stays until it is whole.
    Begin,
    Listed(Object),
    Whole,
    /// Changed, and when that happened, where the object tells.
    Changed(Object, Option<f64>),
    Gone(ObjectKey),
    /// Listed, and none of ours; or malformed, which has been logged. Where a change is malformed,
    /// what was known of the object before stays.
    Skipped,
    Lost(String),
}

impl KubernetesWatch {
    /// # Errors
    /// Where the credentials of the configuration cannot be loaded.
    pub fn new(
        config: &kube::Config,
        ready: &Ready,
        metrics: &Metrics,
    ) -> Result<Self, KubernetesError> {
        let client = |kind: Kind| {
            let (watch, ready, metrics) = (kind.plural(), ready.clone(), metrics.clone());
            watch_client(
                config,
                Health {
                    watch,
                    ready,
                    metrics,
                },
            )
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
        })
    }

    /// The holds that keep the bastion unready until every kind has been listed.
    pub fn holds(ready: &Ready) -> Vec<(Kind, BlockReady)> {
        Kind::ALL
            .into_iter()
            .map(|kind| (kind, ready.block(kind.plural())))
            .collect()
    }

    /// Starts a task for each kind, so that one that hangs delays no other. A restarted one lists
    /// anew, while the old set serves.
    pub fn start(self, feed: &Feed, supervisor: &mut Supervisor) {
        let [nodes, pods, services, slices] = self.clients;
        let (ready, metrics) = (&self.ready, &self.metrics);
        supervisor.restart(
            "watch-nodes",
            follow::<SlimNode>(nodes, feed, ready, metrics),
        );
        supervisor.restart("watch-pods", follow::<SlimPod>(pods, feed, ready, metrics));
        supervisor.restart(
            "watch-services",
            follow::<SlimService>(services, feed, ready, metrics),
        );
        supervisor.restart(
            "watch-endpointslices",
            follow::<SlimSlice>(slices, feed, ready, metrics),
        );
    }
}

/// Pauses after failures of a watch: a quarter of kube's, from 0.2 s to 7.5 s, and up to as much
/// again for jitter. kube's own grow to 60 s: after an API server had been down for a minute,
/// changes of endpoints were unknown for another 82 s. A few watches are no load that would need
/// that.
#[derive(Default)]
struct Pauses(DefaultBackoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause / 4)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// Makes the task that follows one kind.
fn follow<K: Watched>(
    client: Client,
    feed: &Feed,
    ready: &Ready,
    metrics: &Metrics,
) -> impl FnMut() -> BoxFuture<'static, ()> + Send + 'static + use<K> {
    let (feed, ready, metrics) = (feed.clone(), ready.clone(), metrics.clone());
    move || run::<K>(client.clone(), feed.clone(), ready.clone(), metrics.clone()).boxed()
}

/// Lists and watches one kind for ever, with growing, jittered pauses after failures.
async fn run<K: Watched>(client: Client, feed: Feed, ready: Ready, metrics: Metrics) {
    let kind = K::KIND;
    let events = watcher::watcher(Api::<Item<K>>::all(client), watcher::Config::default());
    let mut events = pin!(events.backoff(Pauses::default()));
    let mut list = Vec::new();
    while let Some(event) = events.next().await {
        let told = translate::<K>(event, &metrics);
        // That a list begins is no word of the API: it has not even been asked.
        if !matches!(told, WatchEvent::Begin | WatchEvent::Lost(_)) {
            metrics.watch_event(kind.plural());
        }
        match told {
            WatchEvent::Begin => list.clear(),
            WatchEvent::Listed(object) => list.push(object),
            WatchEvent::Whole => {
                tracing::info!(resource = kind.plural(), objects = list.len(), "listed");
                feed.send(Change::Reset(kind, std::mem::take(&mut list)))
                    .await;
            }
            WatchEvent::Changed(object, trigger) => feed.send(Change::Apply(object, trigger)).await,
            WatchEvent::Gone(key) => feed.send(Change::Delete(kind, key)).await,
            WatchEvent::Skipped => {}
            WatchEvent::Lost(fault) => {
                let meanwhile = if ready.is_pending(kind.plural()) {
                    UNREADY
                } else {
                    SERVES
                };
                watch_failed(&ready, &metrics, kind.plural(), &fault, meanwhile);
            }
        }
    }
}

fn translate<K: Watched>(event: watcher::Result<Event<Item<K>>>, metrics: &Metrics) -> WatchEvent {
    match event {
        Ok(Event::Init) => WatchEvent::Begin,
        Ok(Event::InitApply(item)) => match read(item, metrics) {
            Ok(Some(object)) => WatchEvent::Listed(object),
            Ok(None) | Err(Malformed) => WatchEvent::Skipped,
        },
        Ok(Event::InitDone) => WatchEvent::Whole,
        Ok(Event::Apply(item)) => {
            let (key, trigger) = (key(item.meta()), trigger_time(item.meta()));
            match read(item, metrics) {
                Ok(Some(object)) => WatchEvent::Changed(object, trigger),
                // It may have been ours before the change: a slice can be taken off its service.
                Ok(None) => WatchEvent::Gone(key),
                Err(Malformed) => WatchEvent::Skipped,
            }
        }
        Ok(Event::Delete(item)) => WatchEvent::Gone(key(item.meta())),
        Err(error) => WatchEvent::Lost(fault(&error, RIGHTS)),
    }
}

/// It has been logged and counted.
struct Malformed;

/// None where the object is none of ours.
fn read<K: Watched>(item: Item<K>, metrics: &Metrics) -> Result<Option<Object>, Malformed> {
    let name = key(item.meta());
    item.object().map_err(|fault| {
        tracing::warn!(resource = K::KIND.plural(), %name, fault, "a malformed object is skipped");
        metrics.watch_malformed(K::KIND.plural());
        Malformed
    })
}

/// `meanwhile` tells what becomes of requests.
fn watch_failed(
    ready: &Ready,
    metrics: &Metrics,
    what: &'static str,
    fault: &str,
    meanwhile: &str,
) {
    tracing::warn!(
        resource = what,
        fault,
        "the watch is broken: {meanwhile}; trying again"
    );
    ready.set_degraded(what, fault.to_owned());
    metrics.watch_up(what, false);
}

/// What failed and, where the API refused, what to look at. `rights` are those that the watch
/// needs.
fn fault(error: &watcher::Error, rights: &str) -> String {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    let text = error_chain(error);
    let code = match error {
        WatchError(status)
        | InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => status.code,
        _ => return text,
    };
    match code {
        401 => {
            format!(
                "{text}; the API does not know the bastion's own credentials: look at its account or kubeconfig"
            )
        }
        403 => format!("{text}; the bastion's account needs {rights}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests;
