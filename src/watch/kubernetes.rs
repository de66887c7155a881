//! A Kubernetes API as the source: nodes, pods, services and EndpointSlices by list and watch, and the CAs of client
//! certificates that the cluster publishes.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::stream::{BoxStream, select_all};
use futures::{StreamExt, TryStreamExt};
use http::Response;
use http::header::HeaderName;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::Api;
use kube::client::{ClientBuilder, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tower::util::MapResultLayer;

use super::objects::{SlimNode, SlimPod, SlimService, SlimSlice, Watched, key, trigger_time};
use crate::cluster::{Kind, Object, ObjectKey, Writer};
use crate::config::KubernetesSource;
use crate::identify::{FrontProxy, Names};
use crate::metrics::Metrics;
use crate::ready::{Hold, Ready};
use crate::tls::ClientCas;

/// Where every cluster publishes how it authenticates, for those to whom it delegates.
const AUTHENTICATION_NAMESPACE: &str = "kube-system";
const AUTHENTICATION_NAME: &str = "extension-apiserver-authentication";
/// The name under which it stands in `/readyz` and in the metrics.
const AUTHENTICATION: &str = "authentication";

/// Why the API cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error("the kubeconfig {path:?} cannot be used")]
    Kubeconfig { path: std::path::PathBuf, source: kube::config::KubeconfigError },
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
/// Its clients retry nothing by themselves: a review has a deadline of its own, and a watch pauses between its tries
/// and tells of each that failed.
///
/// # Errors
/// Where neither is there, or the kubeconfig is no good.
pub async fn connect(source: &KubernetesSource) -> Result<kube::Config, KubernetesError> {
    let mut config = match &source.kubeconfig {
        None => kube::Config::incluster()?,
        Some(path) => {
            let options = KubeConfigOptions { context: source.context.clone(), ..KubeConfigOptions::default() };
            let fault = |source| KubernetesError::Kubeconfig { path: path.clone(), source };
            let kubeconfig = Kubeconfig::read_from(path).map_err(fault)?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(fault)?
        }
    };
    config.default_retry = false;
    Ok(config)
}

/// A client for reviews.
///
/// # Errors
/// Where the credentials of the configuration cannot be loaded.
pub fn review_client(config: &kube::Config) -> Result<Client, KubernetesError> {
    Ok(Client::try_from(config.clone())?)
}

/// Watches the API. Built before anything runs, so that bad credentials stop the start.
#[expect(missing_debug_implementations, reason = "it is streams, about which there is nothing to tell")]
pub struct KubernetesWatch {
    told: BoxStream<'static, (Kind, Told)>,
    holds: Vec<(Kind, Hold)>,
    ready: Ready,
    metrics: Metrics,
}

/// What the API told of one kind.
enum Told {
    /// A list begins: what was known stays until it is whole.
    Begin,
    Listed(Object),
    Whole,
    /// Changed, and when that happened, where the object tells.
    Changed(Object, Option<f64>),
    Gone(ObjectKey),
    /// An object that is none of ours, or malformed (and then logged): what was known of it stays.
    Skipped,
    Lost(String),
}

impl KubernetesWatch {
    /// # Errors
    /// Where the credentials of the configuration cannot be loaded.
    pub fn new(config: &kube::Config, ready: &Ready, metrics: &Metrics) -> Result<Self, KubernetesError> {
        let told = select_all([
            told::<SlimNode>(config, ready, metrics)?,
            told::<SlimPod>(config, ready, metrics)?,
            told::<SlimService>(config, ready, metrics)?,
            told::<SlimSlice>(config, ready, metrics)?,
        ]);
        let holds = Kind::ALL.into_iter().map(|kind| (kind, ready.hold(kind.plural()))).collect();
        Ok(Self { told: told.boxed(), holds, ready: ready.clone(), metrics: metrics.clone() })
    }

    /// Tells `writer` what the API tells, for ever.
    pub async fn run(mut self, mut writer: Writer) {
        let mut lists: [Vec<Object>; Kind::ALL.len()] = Default::default();
        while let Some((kind, told)) = self.told.next().await {
            if !matches!(told, Told::Lost(_)) {
                self.metrics.watch_event(kind.plural());
            }
            let list = &mut lists[kind as usize];
            match told {
                Told::Begin => list.clear(),
                Told::Listed(object) => list.push(object),
                Told::Whole => {
                    tracing::info!(resource = kind.plural(), objects = list.len(), "listed");
                    writer.reset(kind, std::mem::take(list));
                    self.holds.retain(|(held, _)| *held != kind);
                }
                Told::Changed(object, trigger) => {
                    writer.apply(object);
                    if let Some(trigger) = trigger {
                        self.metrics.endpoint_lag((unix_now() - trigger).max(0.0));
                    }
                }
                Told::Gone(key) => writer.delete(kind, &key),
                Told::Skipped => {}
                Told::Lost(fault) => lost(&self.ready, &self.metrics, kind.plural(), &fault),
            }
        }
    }
}

/// One watch, which picks itself up with growing, jittered pauses.
fn told<K: Watched>(
    config: &kube::Config,
    ready: &Ready,
    metrics: &Metrics,
) -> Result<BoxStream<'static, (Kind, Told)>, KubernetesError> {
    let client = watch_client(config, K::KIND.plural(), ready, metrics)?;
    let metrics = metrics.clone();
    let events = watcher::watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff();
    Ok(events.map(move |event| (K::KIND, translate::<K>(event, &metrics))).boxed())
}

fn translate<K: Watched>(event: watcher::Result<Event<K>>, metrics: &Metrics) -> Told {
    let object = |item: K| {
        let (name, trigger) = (key(item.meta()), trigger_time(item.meta()));
        match item.object() {
            Ok(object) => object.map(|object| (object, trigger)),
            Err(fault) => {
                tracing::warn!(resource = K::KIND.plural(), %name, fault, "a malformed object is skipped");
                metrics.watch_malformed(K::KIND.plural());
                None
            }
        }
    };
    match event {
        Ok(Event::Init) => Told::Begin,
        Ok(Event::InitApply(item)) => object(item).map_or(Told::Skipped, |(object, _)| Told::Listed(object)),
        Ok(Event::InitDone) => Told::Whole,
        Ok(Event::Apply(item)) => {
            object(item).map_or(Told::Skipped, |(object, trigger)| Told::Changed(object, trigger))
        }
        Ok(Event::Delete(item)) => Told::Gone(key(item.meta())),
        Err(error) => Told::Lost(with_sources(&error)),
    }
}

/// A client of its own for each watch: what it is answered tells whether that watch is connected, which the watcher
/// itself does not tell when it resumes.
fn watch_client(
    config: &kube::Config,
    what: &'static str,
    ready: &Ready,
    metrics: &Metrics,
) -> Result<Client, KubernetesError> {
    let (ready, metrics) = (ready.clone(), metrics.clone());
    let observe = MapResultLayer::new(move |answer: Result<Response<Box<DynBody>>, tower::BoxError>| {
        if answer.as_ref().is_ok_and(|response| response.status().is_success()) {
            ready.mend(what);
            metrics.watch_up(what, true);
        }
        answer
    });
    Ok(ClientBuilder::try_from(config.clone())?.with_layer(&observe).build::<Box<DynBody>>())
}

fn lost(ready: &Ready, metrics: &Metrics, what: &'static str, fault: &str) {
    tracing::warn!(resource = what, fault, "the watch is broken; the last known state serves, trying again");
    ready.impair(what, fault.to_owned());
    metrics.watch_up(what, false);
}

/// Whose word counts, as the cluster publishes it for those to whom it delegates.
#[derive(Debug)]
pub struct Trusted {
    /// None where the configuration says which CAs count.
    pub client_cas: Option<ClientCas>,
    pub front_proxy: FrontProxy,
}

impl Trusted {
    /// Follows what is published.
    ///
    /// # Errors
    /// Where the credentials of the configuration cannot be loaded.
    pub fn follow(
        self,
        config: &kube::Config,
        ready: &Ready,
        metrics: &Metrics,
    ) -> Result<impl Future<Output = ()> + Send + 'static + use<>, KubernetesError> {
        let client = watch_client(config, AUTHENTICATION, ready, metrics)?;
        let api = Api::<ConfigMap>::namespaced(client, AUTHENTICATION_NAMESPACE);
        let only = watcher::Config::default().fields(&format!("metadata.name={AUTHENTICATION_NAME}"));
        let mut hold = Some(ready.hold(AUTHENTICATION));
        let (ready, metrics) = (ready.clone(), metrics.clone());
        Ok(async move {
            let mut events = watcher::watcher(api, only).default_backoff().boxed();
            loop {
                match events.try_next().await {
                    Ok(Some(Event::Apply(map) | Event::InitApply(map))) => self.take(&map.data.unwrap_or_default()),
                    Ok(Some(Event::InitDone)) => drop(hold.take()),
                    // Without the map no new CA is trusted, and the old ones are: the cluster lost a piece, not its CA.
                    Ok(Some(Event::Init | Event::Delete(_))) => {}
                    Ok(None) => return,
                    Err(error) => {
                        let fault = format!(
                            "{}; the bastion's account needs the Role extension-apiserver-authentication-reader in \
                             kube-system",
                            with_sources(&error)
                        );
                        lost(&ready, &metrics, AUTHENTICATION, &fault);
                        // With CAs of its own the bastion can do without: only front proxies are then not known.
                        if self.client_cas.is_some() {
                            continue;
                        }
                        drop(hold.take());
                    }
                }
            }
        })
    }

    fn take(&self, published: &BTreeMap<String, String>) {
        if let Some(cas) = &self.client_cas {
            take_cas(cas, published.get("client-ca-file"), "client certificates");
        }
        take_cas(&self.front_proxy.cas, published.get("requestheader-client-ca-file"), "front proxies");
        match names(published) {
            Ok(names) => self.front_proxy.replace(names),
            Err(fault) => tracing::warn!(fault, "what is published of front proxies cannot be read; the old stays"),
        }
    }
}

fn take_cas(cas: &ClientCas, pem: Option<&String>, of: &str) {
    let Some(pem) = pem else {
        return tracing::info!("the cluster publishes no CA of {of}: they identify nobody");
    };
    match cas.replace(pem.as_bytes()) {
        Ok(count) => tracing::info!(count, "the CAs of {of} are those that the cluster publishes"),
        Err(error) => tracing::warn!(%error, "the published CAs of {of} cannot be read; the old ones stay"),
    }
}

/// The lists stand as JSON in strings.
fn names(published: &BTreeMap<String, String>) -> Result<Names, String> {
    let list = |key: &str| -> Result<Vec<String>, String> {
        let text = published.get(key).map(|text| text.trim()).filter(|text| !text.is_empty());
        text.map_or(Ok(Vec::new()), |text| serde_json::from_str(text).map_err(|error| format!("{key}: {error}")))
    };
    let headers = |key: &str| -> Result<Vec<HeaderName>, String> {
        let names =
            list(key)?.into_iter().map(|name| name.parse().map_err(|error| format!("{key}: {name:?}: {error}")));
        names.collect()
    };
    Ok(Names {
        allowed: list("requestheader-allowed-names")?,
        user: headers("requestheader-username-headers")?,
        uid: headers("requestheader-uid-headers")?,
        group: headers("requestheader-group-headers")?,
        extra: list("requestheader-extra-headers-prefix")?
            .into_iter()
            .map(|prefix| prefix.to_ascii_lowercase())
            // An empty prefix would make an identity of every header.
            .filter(|prefix| !prefix.is_empty())
            .collect(),
    })
}

/// An error with what it came from: the cause of a failed watch stands at the end of the chain.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = error.source();
    }
    text
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_of_front_proxies_is_read() {
        let published = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let read = names(&published(&[
            ("requestheader-allowed-names", r#"["front-proxy"]"#),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-",""]"#),
        ]));
        let read = read.unwrap();
        assert_eq!(
            (&read.allowed[..], &read.extra[..]),
            (&["front-proxy".into()][..], &["x-remote-extra-".into()][..])
        );
        assert_eq!((&read.user[0], read.uid.len()), (&HeaderName::from_static("x-remote-user"), 0));
        assert_eq!(names(&published(&[])).unwrap(), Names::default());
        let fault = names(&published(&[("requestheader-allowed-names", "front-proxy")])).unwrap_err();
        assert!(fault.starts_with("requestheader-allowed-names: "), "{fault}");
    }
}
