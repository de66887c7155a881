//! Kubernetes objects with only the fields that the index needs: the rest is skipped while decoding, never kept.
//!
//! Spec and status are decoded apart from the metadata, so that one malformed object is one object skipped and not a
//! whole list lost.

use std::fmt::Debug;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::cluster::facts::{PortSpec, ServiceSpec, Slice, SliceEndpoint};
use crate::cluster::{Affinity, AppProtocol, Family, Kind, Node, Object, ObjectKey, Pod};

/// The port of a kubelet that names none (CONFORMANCE C32).
const KUBELET_PORT: u16 = 10250;
/// The label by which a slice belongs to a service (KEP-752).
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The annotation that tells when the pod changed for which the slice was written.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An object that a source can tell of.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    const KIND: Kind;

    /// The object in the terms of the index. None where it is none of ours, as a slice without a service.
    ///
    /// # Errors
    /// What is malformed.
    fn object(self) -> Result<Option<Object>, String>;
}

/// Namespace and name; nodes have no namespace.
pub(super) fn key(meta: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// When the change happened that a slice tells of, in Unix seconds.
pub(super) fn trigger_time(meta: &ObjectMeta) -> Option<f64> {
    let time: jiff::Timestamp = meta.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok()?;
    Some(time.as_duration().as_secs_f64())
}

/// A part of an object, decoded on its own.
#[derive(Clone, Debug)]
pub(super) struct Part<T>(Result<T, String>);

impl<T: Default> Default for Part<T> {
    fn default() -> Self {
        Self(Ok(T::default()))
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Part<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(serde_json::from_str(raw.get()).map_err(|error| error.to_string())))
    }
}

/// Metadata without managed fields, owners, and all but the one label and annotation that are read.
fn slim_meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        uid: Option<String>,
        #[serde(default)]
        labels: Labels,
        #[serde(default)]
        annotations: Annotations,
    }
    #[derive(Default, Deserialize)]
    struct Labels {
        #[serde(rename = "kubernetes.io/service-name")]
        service_name: Option<String>,
    }
    #[derive(Default, Deserialize)]
    struct Annotations {
        #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
        trigger_time: Option<String>,
    }
    let meta = Meta::deserialize(deserializer)?;
    let one = |key: &str, value: Option<String>| value.map(|value| [(key.to_owned(), value)].into());
    Ok(ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        resource_version: meta.resource_version,
        uid: meta.uid,
        labels: one(SERVICE_NAME, meta.labels.service_name),
        annotations: one(TRIGGER_TIME, meta.annotations.trigger_time),
        ..ObjectMeta::default()
    })
}

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub(super) struct SlimNode {
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    status: Part<NodeStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeStatus {
    addresses: Vec<NodeAddress>,
    daemon_endpoints: DaemonEndpoints,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeAddress {
    /// As text: a type that is not known here must not cost the whole node, and is told where none is known.
    r#type: Box<str>,
    address: Box<str>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DaemonEndpoints {
    kubelet_endpoint: DaemonEndpoint,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct DaemonEndpoint {
    port: u16,
}

impl Watched for SlimNode {
    const KIND: Kind = Kind::Node;

    fn object(self) -> Result<Option<Object>, String> {
        let NodeStatus { addresses, daemon_endpoints } = self.status.0?;
        let port = daemon_endpoints.kubelet_endpoint.port;
        let addresses = addresses.into_iter().map(|NodeAddress { r#type, address }| (r#type, address)).collect();
        Ok(Some(Object::Node(Node {
            name: self.metadata.name.unwrap_or_default().into(),
            addresses,
            kubelet_port: if port == 0 { KUBELET_PORT } else { port },
        })))
    }
}

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub(super) struct SlimPod {
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: Part<PodSpec>,
    #[serde(default)]
    status: Part<PodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodSpec {
    containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<Box<str>>,
    container_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    ip: IpAddr,
}

impl Watched for SlimPod {
    const KIND: Kind = Kind::Pod;

    fn object(self) -> Result<Option<Object>, String> {
        let (spec, status) = (self.spec.0?, self.status.0?);
        let ports = || spec.containers.iter().flat_map(|container| &container.ports);
        let pod = Pod {
            name: self.metadata.name.as_deref().unwrap_or_default().into(),
            ips: status.pod_ips.into_iter().map(|PodIp { ip }| ip).collect(),
            first_port: ports().next().map(|port| port.container_port),
            named_ports: ports().filter_map(|port| Some((port.name.clone()?, port.container_port))).collect(),
        };
        Ok(Some(Object::Pod(key(&self.metadata), pod)))
    }
}

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Service")]
pub(super) struct SlimService {
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: Part<SlimServiceSpec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SlimServiceSpec {
    r#type: String,
    ports: Vec<SlimServicePort>,
    session_affinity: String,
    ip_families: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimServicePort {
    name: Option<Box<str>>,
    port: u16,
    app_protocol: Option<String>,
}

impl Watched for SlimService {
    const KIND: Kind = Kind::Service;

    fn object(self) -> Result<Option<Object>, String> {
        let SlimServiceSpec { r#type, mut ports, session_affinity, ip_families } = self.spec.0?;
        // The name that it stands for is never dialled (CONFORMANCE C47, C107).
        if r#type == "ExternalName" {
            ports.clear();
        }
        let ports = ports.into_iter().map(|port| PortSpec {
            name: port.name.unwrap_or_default(),
            number: port.port,
            app_protocol: port.app_protocol.as_deref().map(AppProtocol::parse).unwrap_or_default(),
        });
        let spec = ServiceSpec {
            ports: ports.collect(),
            affinity: if session_affinity == "ClientIP" { Affinity::ClientIp } else { Affinity::None },
            primary_family: ip_families.first().and_then(|family| self::family(family)),
        };
        Ok(Some(Object::Service(key(&self.metadata), spec)))
    }
}

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::discovery::v1::EndpointSlice")]
#[serde(rename_all = "camelCase")]
pub(super) struct SlimSlice {
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    endpoints: Part<Option<Vec<SlimEndpoint>>>,
    #[serde(default)]
    ports: Part<Option<Vec<SlimPort>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SlimEndpoint {
    addresses: Vec<IpAddr>,
    conditions: Conditions,
    target_ref: Option<TargetRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TargetRef {
    kind: String,
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct SlimPort {
    name: Option<Box<str>>,
    port: Option<u16>,
}

impl Watched for SlimSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn object(self) -> Result<Option<Object>, String> {
        let service = self.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        // A slice of names (addressType FQDN) has no address that could be dialled.
        let (Some(service), Some(family)) = (service, family(&self.address_type)) else { return Ok(None) };
        let endpoints = self.endpoints.0?.unwrap_or_default().into_iter().filter_map(|endpoint| {
            let Conditions { ready, serving, terminating } = endpoint.conditions;
            // Unknown means ready, and serving follows ready (KEP-1672).
            let ready = ready.unwrap_or(true);
            let pod = endpoint.target_ref.filter(|target| target.kind == "Pod");
            Some(SliceEndpoint {
                address: *endpoint.addresses.first()?,
                ready,
                serving: serving.unwrap_or(ready),
                terminating: terminating.unwrap_or(false),
                pod: pod.map(|pod| ObjectKey::new(&pod.namespace, &pod.name)),
            })
        });
        let ports = self.ports.0?.unwrap_or_default();
        let ports = ports.into_iter().filter_map(|port| Some((port.name.unwrap_or_default(), port.port?)));
        let slice =
            Slice { service: (**service).into(), family, ports: ports.collect(), endpoints: endpoints.collect() };
        Ok(Some(Object::EndpointSlice(key(&self.metadata), slice)))
    }
}

fn family(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object<K: Watched>(json: &serde_json::Value) -> Result<Option<Object>, String> {
        // As the API sends it: text, not values.
        serde_json::from_str::<K>(&json.to_string()).unwrap().object()
    }

    #[test]
    fn a_pod_gives_its_addresses_and_ports() {
        let pod = object::<SlimPod>(&json!({
            "metadata": {"name": "p", "namespace": "ns", "managedFields": [{"x": 1}]},
            "spec": {"initContainers": [{"ports": [{"containerPort": 1}]}], "containers": [
                {"name": "a"},
                {"name": "b", "ports": [{"containerPort": 8080, "name": "web"}, {"containerPort": 9090}]},
            ]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]},
        }));
        let Ok(Some(Object::Pod(key, pod))) = pod else { panic!("{pod:?}") };
        assert_eq!(key.to_string(), "ns/p");
        assert_eq!((pod.first_port, &*pod.named_ports), (Some(8080), &[("web".into(), 8080)][..]));
        assert_eq!(pod.ips[0].to_string(), "10.0.0.7");
    }

    #[test]
    fn a_node_gives_its_addresses_and_kubelet_port() {
        let node =
            |status: serde_json::Value| object::<SlimNode>(&json!({"metadata": {"name": "n"}, "status": status}));
        let known = node(json!({
            "addresses": [{"type": "Moon", "address": "x"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10255}},
        }));
        let Ok(Some(Object::Node(known))) = known else { panic!("{known:?}") };
        assert_eq!(
            (known.kubelet_port, &*known.addresses),
            (10255, &[("Moon".into(), "x".into()), ("InternalIP".into(), "10.0.0.1".into())][..])
        );
        let Ok(Some(Object::Node(bare))) = node(json!({})) else { panic!() };
        assert_eq!(bare.kubelet_port, KUBELET_PORT);
    }

    #[test]
    fn missing_conditions_mean_ready_and_ports_without_a_number_are_left_out() {
        let slice = object::<SlimSlice>(&json!({
            "metadata": {"name": "s-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "s", "x": "y"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.2"], "targetRef": {"kind": "Pod", "namespace": "ns", "name": "p"}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": []},
            ],
            "ports": [{"name": "", "port": 80}, {"name": "any", "port": null}],
        }));
        let Ok(Some(Object::EndpointSlice(_, slice))) = slice else { panic!("{slice:?}") };
        let told: Vec<_> = slice.endpoints.iter().map(|e| (e.address.to_string(), e.ready, e.serving)).collect();
        assert_eq!(told, [("10.0.0.1".to_owned(), true, true), ("10.0.0.3".to_owned(), false, true)]);
        assert_eq!(slice.ports, [("".into(), 80)]);
        assert_eq!(slice.endpoints[0].pod, Some(ObjectKey::new("ns", "p")));
    }

    #[test]
    fn an_external_name_has_no_ports_to_reach_it_by() {
        let service = object::<SlimService>(&json!({
            "metadata": {"name": "s", "namespace": "ns"},
            "spec": {"type": "ExternalName", "externalName": "metadata.internal", "ports": [{"port": 80}]},
        }));
        let Ok(Some(Object::Service(_, spec))) = service else { panic!("{service:?}") };
        assert!(spec.ports.is_empty());
    }

    #[test]
    fn a_malformed_object_is_told_and_costs_nobody_else() {
        #[derive(Deserialize)]
        struct List {
            items: Vec<SlimPod>,
        }
        let list: List = serde_json::from_str(
            r#"{"items": [
                {"metadata": {"name": "bad"}, "spec": {"containers": [{"ports": [{"containerPort": "http"}]}]}},
                {"metadata": {"name": "good"}, "status": {"podIPs": [{"ip": "10.0.0.1"}]}}
            ]}"#,
        )
        .unwrap();
        let objects: Vec<_> = list.items.into_iter().map(Watched::object).collect();
        assert!(objects[0].as_ref().unwrap_err().contains("invalid type"), "{objects:?}");
        assert!(matches!(objects[1], Ok(Some(Object::Pod(..)))));
    }
}
