//! Whose word counts: the CAs of client certificates and what is known of front proxies, as the
//! cluster publishes them.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::header::HeaderName;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};

use super::{Health, KubernetesError, Pauses, SERVES, UNREADY, fault, watch_client, watch_failed};
use crate::metrics::Metrics;
use crate::ready::{BlockReady, Ready};
use crate::trust::{DynamicClientCas, FrontProxy, RequestHeaderConfig};

/// Where every cluster publishes how it authenticates, for those to whom it delegates.
const AUTHENTICATION_NAMESPACE: &str = "kube-system";
const AUTHENTICATION_NAME: &str = "extension-apiserver-authentication";
/// The name under which it stands in `/readyz` and in the metrics.
const AUTHENTICATION: &str = "authentication";
const RIGHTS: &str = "the Role extension-apiserver-authentication-reader in kube-system";

/// Whose word counts, as the cluster publishes it for those to whom it delegates.
#[derive(Clone, Debug)]
pub struct AuthenticationConfigMap {
    /// None where the configuration says which CAs count.
    pub client_cas: Option<DynamicClientCas>,
    pub front_proxy: FrontProxy,
}

impl AuthenticationConfigMap {
    /// Makes the task that follows what is published.
    ///
    /// # Errors
    /// Where the credentials of the configuration cannot be loaded.
    pub fn follow(
        self,
        config: &kube::Config,
        ready: &Ready,
        metrics: &Metrics,
    ) -> Result<impl FnMut() -> BoxFuture<'static, ()> + Send + 'static + use<>, KubernetesError>
    {
        let health = Health {
            watch: AUTHENTICATION,
            ready: ready.clone(),
            metrics: metrics.clone(),
        };
        let client = watch_client(config, health.clone())?;
        let api = Api::<ConfigMap>::namespaced(client, AUTHENTICATION_NAMESPACE);
        // Shared by the runs of the task, so that one that breaks does not make the bastion ready.
        let hold = Arc::new(Mutex::new(Some(ready.block(AUTHENTICATION))));
        Ok(move || {
            self.clone()
                .run(api.clone(), Arc::clone(&hold), health.clone())
                .boxed()
        })
    }

    async fn run(self, api: Api<ConfigMap>, hold: Arc<Mutex<Option<BlockReady>>>, health: Health) {
        let release = || drop(hold.lock().unwrap_or_else(PoisonError::into_inner).take());
        let only =
            watcher::Config::default().fields(&format!("metadata.name={AUTHENTICATION_NAME}"));
        let mut events = pin!(watcher::watcher(api, only).backoff(Pauses::default()));
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(map) | Event::InitApply(map)) => {
                    self.take(&map.data.unwrap_or_default());
                }
                Ok(Event::InitDone) => release(),
                // Without the map no new CA is trusted, and the old ones are: the cluster lost a
                // piece, not its CA.
                Ok(Event::Init | Event::Delete(_)) => {}
                Err(error) => {
                    // With CAs of its own the bastion can do without: only front proxies are then
                    // not known.
                    let optional = self.client_cas.is_none();
                    let meanwhile = match health.ready.is_pending(AUTHENTICATION) {
                        false => SERVES,
                        true if optional => "front proxies identify nobody until the API answers",
                        true => UNREADY,
                    };
                    watch_failed(
                        &health.ready,
                        &health.metrics,
                        AUTHENTICATION,
                        &fault(&error, RIGHTS),
                        meanwhile,
                    );
                    if optional {
                        release();
                    }
                }
            }
        }
    }

    fn take(&self, published: &BTreeMap<String, String>) {
        if let Some(cas) = &self.client_cas {
            take_cas(cas, published.get("client-ca-file"), "client certificates");
        }
        take_cas(
            &self.front_proxy.cas,
            published.get("requestheader-client-ca-file"),
            "front proxies",
        );
        match names(published) {
            Ok(names) => self.front_proxy.replace(names),
            Err(fault) => tracing::warn!(
                fault,
                "what is published of front proxies cannot be read; the old stays"
            ),
        }
    }
}

/// As kube-apiserver's own readers of this map do, what lacks or cannot be read takes nothing away:
/// the old CAs stay.
fn take_cas(cas: &DynamicClientCas, pem: Option<&String>, of: &str) {
    let old = cas.roots().len();
    match (pem, old) {
        (None, 0) => tracing::info!("the cluster publishes no CA of {of}: they identify nobody"),
        (None, _) => tracing::warn!(
            old,
            "the cluster publishes no CA of {of} any more; the old ones stay"
        ),
        (Some(pem), _) => match cas.replace(pem.as_bytes()) {
            Ok(count) => tracing::info!(
                count,
                "the CAs of {of} are those that the cluster publishes"
            ),
            Err(error) => {
                tracing::warn!(%error, old, "the published CAs of {of} cannot be used; the old ones stay");
            }
        },
    }
}

/// The lists stand as JSON in strings.
fn names(published: &BTreeMap<String, String>) -> Result<RequestHeaderConfig, String> {
    let list = |key: &str| -> Result<Vec<String>, String> {
        let text = published
            .get(key)
            .map(|text| text.trim())
            .filter(|text| !text.is_empty());
        text.map_or(Ok(Vec::new()), |text| {
            serde_json::from_str(text).map_err(|error| format!("{key}: {error}"))
        })
    };
    let headers = |key: &str| -> Result<Vec<HeaderName>, String> {
        let names = list(key)?.into_iter().map(|name| {
            name.parse()
                .map_err(|error| format!("{key}: {name:?}: {error}"))
        });
        names.collect()
    };
    Ok(RequestHeaderConfig {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::install_provider;

    #[test]
    fn what_is_published_of_front_proxies_is_read() {
        let published = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let read = names(&published(&[
            ("requestheader-allowed-names", r#"["front-proxy"]"#),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            (
                "requestheader-extra-headers-prefix",
                r#"["X-Remote-Extra-",""]"#,
            ),
        ]));
        let read = read.unwrap();
        assert_eq!(
            (&read.allowed[..], &read.extra[..]),
            (&["front-proxy".into()][..], &["x-remote-extra-".into()][..])
        );
        assert_eq!(
            (&read.user[0], read.uid.len()),
            (&HeaderName::from_static("x-remote-user"), 0)
        );
        assert_eq!(
            names(&published(&[])).unwrap(),
            RequestHeaderConfig::default()
        );
        let fault = names(&published(&[(
            "requestheader-allowed-names",
            "front-proxy",
        )]))
        .unwrap_err();
        assert!(
            fault.starts_with("requestheader-allowed-names: "),
            "{fault}"
        );
    }
    #[test]
    fn what_is_no_longer_published_takes_no_ca_away() {
        install_provider();
        let cas = DynamicClientCas::default();
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()])
            .unwrap()
            .cert
            .pem();
        take_cas(&cas, None, "client certificates");
        assert_eq!(cas.roots().len(), 0);
        take_cas(&cas, Some(&ca), "client certificates");
        for published in [None, Some(String::new()), Some("no PEM".to_owned())] {
            take_cas(&cas, published.as_ref(), "client certificates");
            assert_eq!(cas.roots().len(), 1, "{published:?}");
        }
    }
}
