//! Kubernetes objects with only the fields that the index needs: the rest is skipped while
//! decoding, never kept.
//!
//! Every object is decoded on its own ([`Item`]), so that a malformed one is one object skipped and
//! not a whole list or watch lost. `null` is the same as absent everywhere, as it is to the API
//! server.

use std::borrow::Cow;
use std::fmt::Debug;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cluster::resources::{PortSpec, ServiceSpec, Slice, SliceEndpoint};
use crate::cluster::{Affinity, AppProtocol, Family, Kind, Node, Object, ObjectKey, Phase, Pod};

/// The port of a kubelet that names none (CONFORMANCE C32).
const KUBELET_PORT: u16 = 10250;
/// The label by which a slice belongs to a service (KEP-752).
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The annotation that tells when the pod changed for which the slice was written.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An object that a source can tell of, well-formed.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    const KIND: Kind;

    /// The object in the terms of the index. None where it is none of ours, as a slice without a
    /// service.
    fn object(self) -> Option<Object>;
}

/// An object as a source gave it. Decoding it never fails, so that it fails nothing around it.
#[derive(Clone, Debug)]
pub(super) enum Item<K> {
    Object(K),
    /// The readable part of its metadata, and the fault.
    Malformed(Box<ObjectMeta>, String),
}

impl<K: Watched> Item<K> {
    /// The object in the terms of the index.
    ///
    /// # Errors
    /// What is malformed.
    pub fn object(self) -> Result<Option<Object>, String> {
        match self {
            Self::Object(object) => Ok(object.object()),
            Self::Malformed(_, fault) => Err(fault),
        }
    }

    fn from_text(json: &str) -> Self {
        // Nearly every object takes this way, which builds no tree of what is skipped.
        match serde_json::from_str(json) {
            Ok(object) => Self::checked(object),
            Err(_) => match serde_json::from_str(json) {
                Ok(value) => Self::from_value(value),
                Err(error) => Self::Malformed(Box::default(), error.to_string()),
            },
        }
    }

    pub fn from_value(mut value: Value) -> Self {
        remove_nulls(&mut value);
        match K::deserialize(&value) {
            Ok(object) => Self::checked(object),
            Err(error) => Self::Malformed(Box::new(readable_meta(&value)), error.to_string()),
        }
    }

    /// An object without a name could not be deleted again.
    fn checked(object: K) -> Self {
        let empty = |text: Option<&String>| text.is_none_or(String::is_empty);
        let meta = object.meta();
        let missing = if empty(meta.name.as_ref()) {
            "metadata.name"
        } else if K::KIND != Kind::Node && empty(meta.namespace.as_ref()) {
            "metadata.namespace"
        } else {
            return Self::Object(object);
        };
        Self::Malformed(Box::new(meta.clone()), format!("{missing} is missing"))
    }
}

impl<'de, K: Watched> Deserialize<'de> for Item<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_text(
            Box::<RawValue>::deserialize(deserializer)?.get(),
        ))
    }
}

impl<K: Watched> Resource for Item<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Object(object) => object.meta(),
            Self::Malformed(meta, _) => meta,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Object(object) => object.meta_mut(),
            Self::Malformed(meta, _) => meta,
        }
    }
}

/// Removes members and elements that are null, at every depth.
pub(super) fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(remove_nulls);
        }
        Value::Array(elements) => {
            elements.retain(|element| !element.is_null());
            elements.iter_mut().for_each(remove_nulls);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The readable part of a malformed object's metadata: its name for the log, and the version from
/// which the watch goes on behind it.
fn readable_meta(object: &Value) -> ObjectMeta {
    let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
    ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    }
}

/// Namespace and name; nodes have no namespace.
pub(super) fn key(meta: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// When the change happened that a slice tells of, in Unix seconds.
pub(super) fn trigger_time(meta: &ObjectMeta) -> Option<f64> {
    let time: jiff::Timestamp = meta.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok()?;
    Some(time.as_duration().as_secs_f64())
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
    let one =
        |key: &str, value: Option<String>| value.map(|value| [(key.to_owned(), value)].into());
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
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeStatus {
    addresses: Vec<NodeAddress>,
    daemon_endpoints: DaemonEndpoints,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeAddress {
    /// As text: a type that is not known here must not cost the whole node, and is told where none
    /// is known.
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

    fn object(self) -> Option<Object> {
        let NodeStatus {
            addresses,
            daemon_endpoints,
        } = self.status;
        let port = daemon_endpoints.kubelet_endpoint.port;
        let addresses = addresses
            .into_iter()
            .map(|NodeAddress { r#type, address }| (r#type, address))
            .collect();
        Some(Object::Node(Node {
            name: self.metadata.name.unwrap_or_default().into(),
            addresses,
            kubelet_port: if port == 0 { KUBELET_PORT } else { port },
        }))
    }
}

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub(super) struct SlimPod {
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
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
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    ip: IpAddr,
}

impl Watched for SlimPod {
    const KIND: Kind = Kind::Pod;

    fn object(self) -> Option<Object> {
        let (spec, status) = (self.spec, self.status);
        let ports = || {
            spec.containers
                .iter()
                .flat_map(|container| &container.ports)
        };
        let pod = Pod {
            name: self.metadata.name.as_deref().unwrap_or_default().into(),
            ips: status.pod_ips.into_iter().map(|PodIp { ip }| ip).collect(),
            first_port: ports().next().map(|port| port.container_port),
            named_ports: ports()
                .filter_map(|port| Some((port.name.clone()?, port.container_port)))
                .collect(),
            phase: match &*status.phase {
                "Succeeded" => Phase::Succeeded,
                "Failed" => Phase::Failed,
                _ => Phase::Active,
            },
        };
        Some(Object::Pod(key(&self.metadata), pod))
    }
}

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Service")]
pub(super) struct SlimService {
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: SlimServiceSpec,
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

    fn object(self) -> Option<Object> {
        let SlimServiceSpec {
            r#type,
            mut ports,
            session_affinity,
            ip_families,
        } = self.spec;
        // The name that it stands for is never dialled (CONFORMANCE C47, C107).
        if r#type == "ExternalName" {
            ports.clear();
        }
        let ports = ports.into_iter().map(|port| PortSpec {
            name: port.name.unwrap_or_default(),
            number: port.port,
            app_protocol: port
                .app_protocol
                .as_deref()
                .map(AppProtocol::parse)
                .unwrap_or_default(),
        });
        let spec = ServiceSpec {
            ports: ports.collect(),
            affinity: if session_affinity == "ClientIP" {
                Affinity::ClientIp
            } else {
                Affinity::None
            },
            primary_family: ip_families.first().and_then(|family| self::family(family)),
        };
        Some(Object::Service(key(&self.metadata), spec))
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
    endpoints: Vec<SlimEndpoint>,
    #[serde(default)]
    ports: Vec<SlimPort>,
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

    fn object(self) -> Option<Object> {
        let service = self
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME));
        // A slice of names (addressType FQDN) has no address that could be dialled.
        let (Some(service), Some(family)) = (service, family(&self.address_type)) else {
            return None;
        };
        let endpoints = self.endpoints.into_iter().filter_map(|endpoint| {
            let Conditions {
                ready,
                serving,
                terminating,
            } = endpoint.conditions;
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
        let ports = self
            .ports
            .into_iter()
            .filter_map(|port| Some((port.name.unwrap_or_default(), port.port?)));
        let slice = Slice {
            service: (**service).into(),
            family,
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        };
        Some(Object::EndpointSlice(key(&self.metadata), slice))
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

    fn object<K: Watched>(json: &Value) -> Result<Option<Object>, String> {
        // As the API sends it: text, not values.
        serde_json::from_str::<Item<K>>(&json.to_string())
            .unwrap()
            .object()
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
        let Ok(Some(Object::Pod(key, pod))) = pod else {
            panic!("{pod:?}")
        };
        assert_eq!(key.to_string(), "ns/p");
        assert_eq!(
            (pod.first_port, &*pod.named_ports),
            (Some(8080), &[("web".into(), 8080)][..])
        );
        assert_eq!(pod.ips[0].to_string(), "10.0.0.7");
    }

    #[test]
    fn a_node_gives_its_addresses_and_kubelet_port() {
        let node = |status: Value| {
            object::<SlimNode>(&json!({"metadata": {"name": "n"}, "status": status}))
        };
        let known = node(json!({
            "addresses": [{"type": "Moon", "address": "x"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10255}},
        }));
        let Ok(Some(Object::Node(known))) = known else {
            panic!("{known:?}")
        };
        assert_eq!(
            (known.kubelet_port, &*known.addresses),
            (
                10255,
                &[
                    ("Moon".into(), "x".into()),
                    ("InternalIP".into(), "10.0.0.1".into())
                ][..]
            )
        );
        let Ok(Some(Object::Node(bare))) = node(json!({})) else {
            panic!()
        };
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
        let Ok(Some(Object::EndpointSlice(_, slice))) = slice else {
            panic!("{slice:?}")
        };
        let told: Vec<_> = slice
            .endpoints
            .iter()
            .map(|e| (e.address.to_string(), e.ready, e.serving))
            .collect();
        assert_eq!(
            told,
            [
                ("10.0.0.1".to_owned(), true, true),
                ("10.0.0.3".to_owned(), false, true)
            ]
        );
        assert_eq!(slice.ports, [("".into(), 80)]);
        assert_eq!(slice.endpoints[0].pod, Some(ObjectKey::new("ns", "p")));
    }

    #[test]
    fn an_external_name_has_no_ports_to_reach_it_by() {
        let service = object::<SlimService>(&json!({
            "metadata": {"name": "s", "namespace": "ns"},
            "spec": {"type": "ExternalName", "externalName": "metadata.internal", "ports": [{"port": 80}]},
        }));
        let Ok(Some(Object::Service(_, spec))) = service else {
            panic!("{service:?}")
        };
        assert!(spec.ports.is_empty());
    }

    #[test]
    fn a_malformed_object_costs_itself_alone_in_a_list() {
        let good = json!({"metadata": {"name": "good", "namespace": "ns"}, "status": {"podIPs": [{"ip": "10.0.0.1"}]}});
        let with = |path: &str, value: Value| {
            let mut pod = good.clone();
            *pod.pointer_mut(path).unwrap() = value;
            pod
        };
        let malformed = [
            (with("/metadata", json!(5)), "invalid type"),
            (
                with("/metadata", json!({"namespace": "ns"})),
                "metadata.name is missing",
            ),
            (
                with("/metadata", json!({"name": "", "namespace": "ns"})),
                "metadata.name is missing",
            ),
            (
                with("/metadata", json!({"name": "bad"})),
                "metadata.namespace is missing",
            ),
            (with("/metadata/name", json!(["x"])), "invalid type"),
            (
                with(
                    "/metadata",
                    json!({"name": "bad", "namespace": "ns", "labels": "x"}),
                ),
                "invalid type",
            ),
            (
                with(
                    "/metadata",
                    json!({"name": "bad", "namespace": "ns", "annotations": [1]}),
                ),
                "invalid",
            ),
            (with("/status", json!("up")), "invalid type"),
            (
                with("/status/podIPs", json!({"ip": "10.0.0.1"})),
                "invalid type",
            ),
            (with("/status/podIPs/0/ip", json!("nowhere")), "IP address"),
            (json!(7), "invalid type"),
            (json!("pod"), "invalid type"),
            (json!([]), "invalid"),
            (json!(null), "invalid"),
        ];
        for (bad, fault) in malformed {
            let items =
                json!({"metadata": {"resourceVersion": "7"}, "items": [bad, good]}).to_string();
            let list: kube::core::ObjectList<Item<SlimPod>> = serde_json::from_str(&items).unwrap();
            let [bad_item, good_item] = <[_; 2]>::try_from(list.items).unwrap();
            assert!(bad_item.object().unwrap_err().contains(fault), "{bad}");
            assert!(
                matches!(good_item.object(), Ok(Some(Object::Pod(..)))),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_malformed_object_keeps_what_the_watch_needs_to_go_on() {
        let text = r#"{"metadata": {"name": "p", "namespace": "ns", "resourceVersion": "9", "labels": 5}}"#;
        let item = serde_json::from_str::<Item<SlimPod>>(text).unwrap();
        assert_eq!(
            (item.meta().resource_version.as_deref(), key(item.meta())),
            (Some("9"), ObjectKey::new("ns", "p"))
        );
        assert!(item.object().is_err());
    }

    #[test]
    fn null_is_the_same_as_absent_everywhere() {
        let meta = json!({"name": "x", "namespace": "ns", "labels": null, "annotations": null, "uid": null});
        let pod = object::<SlimPod>(&json!({
            "metadata": meta,
            "spec": {"containers": [null, {"ports": null}, {"ports": [null, {"name": null, "containerPort": 80}]}]},
            "status": {"phase": null, "podIPs": null},
        }));
        let Ok(Some(Object::Pod(_, pod))) = pod else {
            panic!("{pod:?}")
        };
        assert_eq!((pod.first_port, pod.ips.len()), (Some(80), 0));
        assert!(
            object::<SlimPod>(
                &json!({"metadata": meta, "spec": {"containers": null}, "status": null})
            )
            .is_ok()
        );
        let service = json!({"metadata": meta, "spec": {"type": null, "ports": null, "sessionAffinity": null}});
        assert!(matches!(object::<SlimService>(&service), Ok(Some(_))));
        let node = json!({"metadata": meta, "status": {"addresses": null, "daemonEndpoints": {"kubeletEndpoint": null}}});
        assert!(matches!(object::<SlimNode>(&node), Ok(Some(_))));
        let slice = object::<SlimSlice>(&json!({
            "metadata": {"name": "x", "namespace": "ns", "labels": {"kubernetes.io/service-name": "s", "y": null}},
            "addressType": "IPv4", "ports": null,
            "endpoints": [{"addresses": null}, {"addresses": ["10.0.0.1"], "conditions": null, "targetRef": null}],
        }));
        let Ok(Some(Object::EndpointSlice(_, slice))) = slice else {
            panic!("{slice:?}")
        };
        assert!(slice.endpoints.len() == 1 && slice.endpoints[0].ready && slice.ports.is_empty());
        let bare = json!({"metadata": {"name": "x", "namespace": "ns"}, "endpoints": null, "addressType": null});
        assert!(matches!(object::<SlimSlice>(&bare), Ok(None)));
    }
}
