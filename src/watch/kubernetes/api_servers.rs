//! Follows the addresses of the API servers, which the cluster publishes in the EndpointSlices of
//! the service `default/kubernetes`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::Api;
use kube::runtime::watcher::Config;
use serde::Deserialize;

use super::{FailureLog, Health, KubernetesError, Sink, Update, follow, watch_client};
use crate::metrics::Metrics;
use crate::ready::Ready;
use crate::watch::objects::{Watched, slim_meta};

const NAMESPACE: &str = "default";
const SELECTOR: &str = "kubernetes.io/service-name=kubernetes";
/// Name of the watch in `/readyz` and in the metrics.
const API_SERVERS: &str = "apiservers";
/// Port that slices name.
const PORT_NAME: &str = "https";

/// Receiver of the complete set of addresses, whenever it changes.
pub type SetAddresses = Arc<dyn Fn(BTreeSet<SocketAddr>) + Send + Sync>;

/// Returns the task that follows the addresses. An empty set is never reported: API servers remove
/// themselves when they end, and the last one that is known may come back.
///
/// # Errors
/// The credentials of the configuration cannot be loaded.
pub fn follow_api_servers(
    config: &kube::Config,
    ready: &Ready,
    metrics: &Metrics,
    failures: FailureLog,
    set: SetAddresses,
) -> Result<impl FnMut() -> BoxFuture<'static, ()> + Send + 'static + use<>, KubernetesError> {
    let health = Health {
        watch: API_SERVERS,
        ready: ready.clone(),
        metrics: metrics.clone(),
        failures,
    };
    let client = watch_client(config, health.clone())?;
    let api = Api::namespaced(client, NAMESPACE);
    let sink = ApiServers {
        slices: BTreeMap::new(),
        set,
    };
    Ok(follow(
        api,
        Config::default().labels(SELECTOR),
        sink,
        health,
    ))
}

/// Receiver of the slices.
#[derive(Clone)]
struct ApiServers {
    /// Addresses by the name of their slice.
    slices: BTreeMap<Box<str>, Vec<SocketAddr>>,
    set: SetAddresses,
}

impl Sink<Slice> for ApiServers {
    async fn update(&mut self, update: Update<(Box<str>, Vec<SocketAddr>)>) {
        match update {
            Update::Reset(slices) => self.slices = slices.into_iter().collect(),
            Update::Apply((name, addresses), _) => {
                self.slices.insert(name, addresses);
            }
            Update::Delete(key) => {
                self.slices.remove(&key.name);
            }
        }
        let addresses: BTreeSet<_> = self.slices.values().flatten().copied().collect();
        if !addresses.is_empty() {
            (self.set)(addresses);
        }
    }

    fn failed(&self, _: &Ready) -> &'static str {
        "using the last known API servers"
    }
}

/// EndpointSlice of the API, without the fields that are not used.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::discovery::v1::EndpointSlice")]
struct Slice {
    #[serde(deserialize_with = "slim_meta")]
    metadata: ObjectMeta,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    addresses: Vec<String>,
    conditions: Conditions,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Option<String>,
    port: Option<i32>,
}

impl Watched for Slice {
    /// Name and addresses.
    type Kept = (Box<str>, Vec<SocketAddr>);

    fn kept(self) -> Option<Self::Kept> {
        let addresses = addresses(&self);
        Some((self.metadata.name.unwrap_or_default().into(), addresses))
    }
}

/// Returns the addresses of a slice.
fn addresses(slice: &Slice) -> Vec<SocketAddr> {
    let ports = slice.ports.iter();
    let port = ports
        .filter(|port| port.name.as_deref().is_none_or(|name| name == PORT_NAME))
        .find_map(|port| u16::try_from(port.port?).ok());
    let Some(port) = port.filter(|port| *port > 0) else {
        return Vec::new();
    };
    let endpoints = slice.endpoints.iter();
    let ready = endpoints.filter(|endpoint| endpoint.conditions.ready != Some(false));
    ready
        .flat_map(|endpoint| &endpoint.addresses)
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn reads_ready_addresses_with_their_port() {
        let slice = |ports, ready: Option<bool>| -> Slice {
            serde_json::from_value(json!({
                "metadata": {"name": "kubernetes"}, "addressType": "IPv4", "ports": ports,
                "endpoints": [
                    {"addresses": ["10.0.0.1"], "conditions": {"ready": ready}},
                    {"addresses": ["10.0.0.2", "odd"], "conditions": {}},
                ],
            }))
            .unwrap()
        };
        let https = json!([{"name": "other", "port": 1}, {"name": "https", "port": 6443}]);
        for (ports, ready, expected) in [
            (
                https.clone(),
                Some(true),
                &["10.0.0.1:6443", "10.0.0.2:6443"][..],
            ),
            (https.clone(), None, &["10.0.0.1:6443", "10.0.0.2:6443"]),
            (https, Some(false), &["10.0.0.2:6443"]),
            (json!([{"name": "other", "port": 1}]), Some(true), &[]),
            (json!([{"name": "https", "port": 70000}]), Some(true), &[]),
        ] {
            let read: Vec<_> = addresses(&slice(ports, ready))
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(read, expected);
        }
    }
}
