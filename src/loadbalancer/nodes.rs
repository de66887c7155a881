//! Nodes, namespaces and EndpointSlices as the controller needs them: decoding of the API's
//! objects.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

use super::metadata::metadata;

/// A node of the API, without the fields that the controller does not use.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
#[serde(default)]
pub struct Node {
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    address: String,
}

/// The fields of a node that the controller needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// IP addresses of `status.addresses`.
    pub addresses: Vec<IpAddr>,
    /// The node has the label `node.kubernetes.io/exclude-from-external-load-balancers`.
    pub is_excluded: bool,
}

impl NodeFacts {
    /// Extracts the facts of a node.
    pub fn new(node: &Node) -> Self {
        let labels = node.metadata.labels.as_ref();
        let addresses = node.status.addresses.iter();
        Self {
            addresses: addresses
                .filter_map(|address| address.address.parse::<IpAddr>().ok())
                .map(|address| address.to_canonical())
                .collect(),
            is_excluded: labels.is_some_and(|labels| labels.contains_key(EXCLUDE)),
        }
    }
}

/// A namespace of the API, without the fields that the controller does not use.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Namespace")]
#[serde(default)]
pub struct Namespace {
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
}

/// An EndpointSlice of the API, without the fields that the controller does not use.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::discovery::v1::EndpointSlice")]
#[serde(default)]
pub struct EndpointSlice {
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SliceEndpoint {
    node_name: Option<String>,
    conditions: Conditions,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
}

/// Nodes of the ready endpoints of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceNodes {
    /// Name of the Service of the slice.
    pub service: Box<str>,
    pub nodes: BTreeSet<Arc<str>>,
}

impl SliceNodes {
    /// Extracts the nodes of a slice. A missing condition means ready (KEP-1672).
    pub fn new(slice: &EndpointSlice) -> Self {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
        let endpoints = slice.endpoints.iter();
        let ready = endpoints.filter(|endpoint| endpoint.conditions.ready != Some(false));
        Self {
            service: service.map_or("", String::as_str).into(),
            nodes: ready
                .filter_map(|endpoint| endpoint.node_name.as_deref())
                .map(Into::into)
                .collect(),
        }
    }
}

/// Label with the name of the Service to which a slice belongs (KEP-752).
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of nodes that are left out of load balancers, with any value (KEP-1143).
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn excluded_node_has_the_label_with_any_value() {
        for (labels, is_excluded) in [
            (json!({EXCLUDE: ""}), true),
            (json!({EXCLUDE: "false"}), true),
            (json!({}), false),
        ] {
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": "node-1", "labels": labels},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": "192.0.2.1"},
                    {"type": "Hostname", "address": "node-1"},
                ]},
            }))
            .unwrap();
            let facts = NodeFacts::new(&node);
            assert_eq!(facts.is_excluded, is_excluded, "{labels}");
            assert_eq!(facts.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        }
    }

    #[test]
    fn reads_nodes_of_ready_endpoints() {
        let endpoint = |node: Option<&str>, ready: Option<bool>| json!({"addresses": ["10.0.0.1"], "nodeName": node, "conditions": {"ready": ready}});
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-x", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "endpoints": [
                endpoint(Some("node-1"), Some(true)),
                endpoint(Some("node-2"), Some(false)),
                endpoint(Some("node-3"), None),
                endpoint(None, Some(true)),
            ],
        }))
        .unwrap();
        let nodes = SliceNodes::new(&slice);
        assert_eq!(&*nodes.service, "web");
        assert_eq!(
            nodes.nodes,
            BTreeSet::from(["node-1".into(), "node-3".into()])
        );
        let empty = json!({"metadata": {}, "addressType": "IPv4"});
        let empty: EndpointSlice = serde_json::from_value(empty).unwrap();
        assert_eq!(SliceNodes::new(&empty), SliceNodes::default());
    }
}
