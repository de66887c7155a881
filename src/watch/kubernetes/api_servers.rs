//! Follows the addresses of the API servers, which the cluster publishes in the EndpointSlices of
//! the service `default/kubernetes`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};

use super::{APPLY_ROLE, Failure, FailureLog, Health, KubernetesError, WatchBackoff, watch_client};
use crate::metrics::Metrics;
use crate::ready::Ready;

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
    let api = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
    Ok(move || run(api.clone(), Arc::clone(&set), health.clone()).boxed())
}

async fn run(api: Api<EndpointSlice>, set: SetAddresses, health: Health) {
    let selector = watcher::Config::default().labels(SELECTOR);
    let mut events = pin!(watcher::watcher(api, selector).backoff(WatchBackoff::default()));
    let mut slices = BTreeMap::new();
    let mut listed = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(slice)) => {
                listed.insert(slice.name_any(), addresses(&slice));
            }
            Ok(Event::InitDone) => slices = std::mem::take(&mut listed),
            Ok(Event::Apply(slice)) => {
                slices.insert(slice.name_any(), addresses(&slice));
            }
            Ok(Event::Delete(slice)) => {
                slices.remove(&slice.name_any());
            }
            Err(error) => {
                let failure = Failure::new(&error, APPLY_ROLE);
                health.set_failed(failure, "using the last known API servers");
                continue;
            }
        }
        let addresses: BTreeSet<_> = slices.values().flatten().copied().collect();
        if !addresses.is_empty() {
            set(addresses);
        }
    }
}

/// Returns the addresses of a slice.
fn addresses(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let ports = slice.ports.iter().flatten();
    let port = ports
        .filter(|port| port.name.as_deref().is_none_or(|name| name == PORT_NAME))
        .find_map(|port| u16::try_from(port.port?).ok());
    let Some(port) = port.filter(|port| *port > 0) else {
        return Vec::new();
    };
    let endpoints = slice.endpoints.iter().flatten();
    let ready = endpoints.filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.and_then(|conditions| conditions.ready) != Some(false)
    });
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
        let slice = |ports, ready: Option<bool>| -> EndpointSlice {
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
