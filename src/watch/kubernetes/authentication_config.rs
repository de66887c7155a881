//! Follows the `ConfigMap` `extension-apiserver-authentication`, in which the cluster publishes its
//! CAs for client certificates and its front proxies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use http::header::{HeaderName, InvalidHeaderName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::Api;
use kube::runtime::watcher::Config;
use serde::Deserialize;

use super::{
    FailureLog, Health, KubernetesError, NOT_READY, SERVING_LAST_STATE, Sink, Update, follow,
    watch_client,
};
use crate::metrics::Metrics;
use crate::model::error_chain;
use crate::ready::{BlockReady, Ready};
use crate::trust::{DynamicClientCas, FrontProxy, RequestHeaderConfig};
use crate::watch::objects::{Item, Watched, slim_meta};

/// Namespace of the `ConfigMap`, which kube-apiserver writes for servers that delegate
/// authentication.
const AUTHENTICATION_NAMESPACE: &str = "kube-system";
const AUTHENTICATION_NAME: &str = "extension-apiserver-authentication";
/// Name of the watch in `/readyz` and in the metrics.
pub(super) const AUTHENTICATION: &str = "authentication";

/// Authentication configuration that the cluster publishes.
#[derive(Clone, Debug)]
pub struct AuthenticationConfigMap {
    /// CAs to keep current. `None` if the bastion's own configuration sets them.
    pub client_cas: Option<DynamicClientCas>,
    pub front_proxy: FrontProxy,
}

impl AuthenticationConfigMap {
    /// Returns the task that follows the `ConfigMap`.
    ///
    /// # Errors
    /// The credentials of the configuration cannot be loaded.
    pub fn follow(
        self,
        config: &kube::Config,
        ready: &Ready,
        metrics: &Metrics,
        failures: FailureLog,
    ) -> Result<impl FnMut() -> BoxFuture<'static, ()> + Send + 'static + use<>, KubernetesError>
    {
        let health = Health {
            watch: AUTHENTICATION,
            ready: ready.clone(),
            metrics: metrics.clone(),
            failures,
        };
        let client = watch_client(config, health.clone())?;
        let api = Api::<Item<ConfigMap>>::namespaced(client, AUTHENTICATION_NAMESPACE);
        // The Role permits this object only, and RBAC grants a list or watch by name only to
        // requests with this field selector.
        let selector = Config::default().fields(&format!("metadata.name={AUTHENTICATION_NAME}"));
        let sink = Published {
            config_map: self,
            // Shared by the runs of the task, so that a panic of one does not make the bastion
            // ready.
            blocker: Arc::new(Mutex::new(Some(ready.block(AUTHENTICATION)))),
        };
        Ok(follow(api, selector, sink, health))
    }

    fn apply(&self, published: &BTreeMap<String, String>) {
        if let Some(cas) = &self.client_cas {
            apply_cas(cas, published.get("client-ca-file"), "client certificates");
        }
        apply_cas(
            &self.front_proxy.cas,
            published.get("requestheader-client-ca-file"),
            "front proxies",
        );
        match request_header_config(published) {
            Ok(config) => self.front_proxy.replace(config),
            Err(error) => tracing::warn!(
                error = error_chain(&error),
                "invalid front proxy settings in the ConfigMap; keeping the previous ones"
            ),
        }
    }
}

/// The `ConfigMap` of the API, without the metadata that is not used.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::ConfigMap")]
struct ConfigMap {
    #[serde(deserialize_with = "slim_meta")]
    metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

impl Watched for ConfigMap {
    type Kept = BTreeMap<String, String>;

    fn kept(self) -> Option<Self::Kept> {
        Some(self.data)
    }
}

/// Receiver of the `ConfigMap`. Readiness is blocked until its list is complete, or has failed if
/// the CAs are configured.
#[derive(Clone)]
struct Published {
    config_map: AuthenticationConfigMap,
    blocker: Arc<Mutex<Option<BlockReady>>>,
}

impl Published {
    fn unblock(&self) {
        let mut blocker = self.blocker.lock().unwrap_or_else(PoisonError::into_inner);
        *blocker = None;
    }
}

impl Sink<ConfigMap> for Published {
    async fn update(&mut self, update: Update<BTreeMap<String, String>>) {
        match update {
            Update::Reset(maps) => {
                for map in &maps {
                    self.config_map.apply(map);
                }
                self.unblock();
            }
            Update::Apply(map, _) => self.config_map.apply(&map),
            // A missing ConfigMap keeps the CAs: the cluster still has them, and an empty list
            // would lock out all users with certificates.
            Update::Delete(_) => {}
        }
    }

    fn failed(&self, ready: &Ready) -> &'static str {
        // With configured CAs, only front proxies depend on the ConfigMap, and the bastion can
        // serve without them.
        let optional = self.config_map.client_cas.is_none();
        let effect = match ready.is_pending(AUTHENTICATION) {
            false => SERVING_LAST_STATE,
            true if optional => "rejecting front proxies until the initial list succeeds",
            true => NOT_READY,
        };
        if optional {
            self.unblock();
        }
        effect
    }
}

/// Replaces the CAs by the published ones. Missing or invalid CAs change nothing, as in the readers
/// of this `ConfigMap` in Kubernetes. `purpose` is for the log.
fn apply_cas(cas: &DynamicClientCas, pem: Option<&String>, purpose: &str) {
    let current = cas.roots().len();
    match (pem, current) {
        (None, 0) => tracing::info!("the cluster publishes no CA for {purpose}; rejecting them"),
        (None, _) => tracing::warn!(
            current,
            "the cluster no longer publishes CAs for {purpose}; keeping the current ones"
        ),
        (Some(pem), _) => match cas.replace(pem.as_bytes()) {
            Ok(count) => tracing::info!(count, "using the published CAs for {purpose}"),
            Err(error) => tracing::warn!(
                error = error_chain(&error),
                current,
                "invalid published CAs for {purpose}; keeping the current ones"
            ),
        },
    }
}

/// Reason why the published settings of front proxies are invalid.
#[derive(Debug, thiserror::Error)]
enum RequestHeaderError {
    #[error("{key} is not a JSON list of strings")]
    List {
        key: &'static str,
        source: serde_json::Error,
    },
    #[error("{key} contains {name:?}, which is not a header name")]
    HeaderName {
        key: &'static str,
        name: String,
        source: InvalidHeaderName,
    },
}

/// Parses the settings of front proxies. Each value is a string with a JSON list.
fn request_header_config(
    published: &BTreeMap<String, String>,
) -> Result<RequestHeaderConfig, RequestHeaderError> {
    let list = |key: &'static str| -> Result<Vec<String>, RequestHeaderError> {
        let text = published
            .get(key)
            .map(|text| text.trim())
            .filter(|text| !text.is_empty());
        text.map_or(Ok(Vec::new()), |text| {
            serde_json::from_str(text).map_err(|source| RequestHeaderError::List { key, source })
        })
    };
    let headers = |key: &'static str| -> Result<Vec<HeaderName>, RequestHeaderError> {
        let names = list(key)?.into_iter().map(|name| {
            name.parse()
                .map_err(|source| RequestHeaderError::HeaderName { key, name, source })
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
            // An empty prefix would make every header an extra attribute of the user.
            .filter(|prefix| !prefix.is_empty())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::install_provider;

    #[test]
    fn parses_published_front_proxy_settings() {
        let published = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let config = request_header_config(&published(&[
            ("requestheader-allowed-names", r#"["front-proxy"]"#),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            (
                "requestheader-extra-headers-prefix",
                r#"["X-Remote-Extra-",""]"#,
            ),
        ]));
        let config = config.unwrap();
        assert_eq!(
            (&config.allowed[..], &config.extra[..]),
            (&["front-proxy".into()][..], &["x-remote-extra-".into()][..])
        );
        assert_eq!(
            (&config.user[0], config.uid.len()),
            (&HeaderName::from_static("x-remote-user"), 0)
        );
        assert_eq!(
            request_header_config(&published(&[])).unwrap(),
            RequestHeaderConfig::default()
        );
        for (key, value, reason) in [
            (
                "requestheader-allowed-names",
                "front-proxy",
                "requestheader-allowed-names is not a JSON list of strings",
            ),
            (
                "requestheader-uid-headers",
                r#"["X Remote Uid"]"#,
                r#"requestheader-uid-headers contains "X Remote Uid", which is not a header name"#,
            ),
        ] {
            let error = request_header_config(&published(&[(key, value)])).unwrap_err();
            assert_eq!(error.to_string(), reason);
        }
    }

    #[test]
    fn keeps_cas_that_are_no_longer_published() {
        install_provider();
        let cas = DynamicClientCas::default();
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()])
            .unwrap()
            .cert
            .pem();
        apply_cas(&cas, None, "client certificates");
        assert_eq!(cas.roots().len(), 0);
        apply_cas(&cas, Some(&ca), "client certificates");
        for published in [None, Some(String::new()), Some("no PEM".to_owned())] {
            apply_cas(&cas, published.as_ref(), "client certificates");
            assert_eq!(cas.roots().len(), 1, "{published:?}");
        }
    }
}
