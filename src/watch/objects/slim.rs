//! Kubernetes objects with only the fields that the index needs; serde skips the others.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::{Indexed, SERVICE_NAME, Watched, keeps_path, key, slim_meta};
use crate::cluster::resources::{PortSpec, ServiceSpec, Slice, SliceEndpoint};
use crate::cluster::{
    Affinity, AppProtocol, Family, Kind, Node, Object, ObjectKey, Phase, Pod, PodPort,
};
use crate::model::Protocol;

/// Kubelet port of a node without `daemonEndpoints` (CONFORMANCE C32).
pub(super) const KUBELET_PORT: u16 = 10250;

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub(in crate::watch) struct SlimNode {
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
    /// Text rather than an enum: an unknown type must not make the node malformed, and errors list
    /// all addresses.
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

impl Indexed for SlimNode {
    const KIND: Kind = Kind::Node;
}

impl Watched for SlimNode {
    const IS_NAMESPACED: bool = false;

    type Kept = Object;

    fn kept(self) -> Option<Object> {
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
pub(in crate::watch) struct SlimPod {
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    host_network: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    ports: Vec<ContainerPort>,
    restart_policy: String,
}

impl Container {
    /// Returns true for an init container that runs beside the containers (KEP-753).
    fn is_sidecar(&self) -> bool {
        self.restart_policy == "Always"
    }
}

#[derive(Clone, Debug, Deserialize)]
struct ContainerPort {
    name: Option<Box<str>>,
    #[serde(rename = "containerPort")]
    number: u16,
    #[serde(default)]
    protocol: SlimProtocol,
}

/// `protocol` of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum SlimProtocol {
    /// Also the default of the API, which manifests often omit.
    #[default]
    #[serde(rename = "TCP", alias = "")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
    #[serde(other)]
    Other,
}

impl SlimProtocol {
    /// `None` for a protocol that the bastion does not forward.
    fn supported(self) -> Option<Protocol> {
        match self {
            Self::Tcp => Some(Protocol::Tcp),
            Self::Udp => Some(Protocol::Udp),
            Self::Other => None,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIP", deserialize_with = "address")]
    pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    #[serde(deserialize_with = "address")]
    ip: Option<IpAddr>,
}

/// Decodes an address. `None` if it is empty.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse::<IpAddr>();
    address.map(Some).map_err(D::Error::custom)
}

impl Indexed for SlimPod {
    const KIND: Kind = Kind::Pod;
}

impl Watched for SlimPod {
    type Kept = Object;

    fn kept(self) -> Option<Object> {
        let (spec, status) = (self.spec, self.status);
        // Sidecars last, so that the port of a pod does not change when one is injected (C37).
        let sidecars = spec.init_containers.into_iter();
        let sidecars = sidecars.filter(Container::is_sidecar);
        let containers = spec.containers.into_iter().chain(sidecars);
        let ports = containers
            .flat_map(|container| container.ports)
            .filter_map(|port| {
                Some(PodPort {
                    name: port.name.unwrap_or_default(),
                    number: port.number,
                    protocol: port.protocol.supported()?,
                })
            });
        let mut ips: Box<[IpAddr]> = status.pod_ips.into_iter().filter_map(|ip| ip.ip).collect();
        if ips.is_empty() {
            // As the API server completes a status.
            ips = status.pod_ip.into_iter().collect();
        }
        let pod = Pod {
            namespace: self
                .metadata
                .namespace
                .as_deref()
                .unwrap_or_default()
                .into(),
            name: self.metadata.name.as_deref().unwrap_or_default().into(),
            ips,
            ports: ports.collect(),
            host_network: spec.host_network,
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
pub(in crate::watch) struct SlimService {
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
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    session_affinity: String,
    ip_families: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimServicePort {
    name: Option<Box<str>>,
    port: u16,
    #[serde(default)]
    protocol: SlimProtocol,
    app_protocol: Option<String>,
}

impl Indexed for SlimService {
    const KIND: Kind = Kind::Service;
}

impl Watched for SlimService {
    type Kept = Object;

    fn kept(self) -> Option<Object> {
        let SlimServiceSpec {
            r#type,
            mut ports,
            cluster_ips,
            session_affinity,
            ip_families,
        } = self.spec;
        // The external name is never dialed (CONFORMANCE C47, C107).
        if r#type == "ExternalName" {
            ports.clear();
        }
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        let mut has_other_protocols = false;
        for port in ports {
            let app_protocol = port.app_protocol.as_deref().map(AppProtocol::parse);
            let spec = PortSpec {
                name: port.name.unwrap_or_default(),
                number: port.port,
                app_protocol: app_protocol.unwrap_or_default(),
            };
            has_other_protocols |= port.protocol != SlimProtocol::Tcp;
            match port.protocol.supported() {
                Some(Protocol::Tcp) => tcp.push(spec),
                Some(Protocol::Udp) => udp.push(spec),
                None => {}
            }
        }
        let spec = ServiceSpec {
            ports: tcp,
            udp_ports: udp,
            // `None` of a headless service is not an address.
            cluster_ips: cluster_ips
                .iter()
                .filter_map(|ip| ip.parse().ok())
                .collect(),
            affinity: if session_affinity == "ClientIP" {
                Affinity::ClientIp
            } else {
                Affinity::None
            },
            has_other_protocols,
            primary_family: ip_families.first().and_then(|family| self::family(family)),
            keeps_path: keeps_path(&self.metadata),
        };
        Some(Object::Service(key(&self.metadata), spec))
    }
}

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::discovery::v1::EndpointSlice")]
#[serde(rename_all = "camelCase")]
pub(in crate::watch) struct SlimSlice {
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
    hostname: Option<Box<str>>,
    node_name: Option<Box<str>>,
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
    #[serde(default)]
    protocol: SlimProtocol,
}

impl Indexed for SlimSlice {
    const KIND: Kind = Kind::EndpointSlice;
}

impl Watched for SlimSlice {
    type Kept = Object;

    fn kept(self) -> Option<Object> {
        let service = self
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME));
        // Slices with host names (addressType FQDN) have no IP addresses.
        let (Some(service), Some(family)) = (service, family(&self.address_type)) else {
            return None;
        };
        let endpoints = self.endpoints.into_iter().filter_map(|endpoint| {
            let Conditions {
                ready,
                serving,
                terminating,
            } = endpoint.conditions;
            // A missing `ready` means true, and a missing `serving` the value of `ready`
            // (KEP-1672).
            let ready = ready.unwrap_or(true);
            // References to other kinds count as missing.
            let pod = endpoint.target_ref.filter(|target| target.kind == "Pod");
            Some(SliceEndpoint {
                address: *endpoint.addresses.first()?,
                ready,
                serving: serving.unwrap_or(ready),
                terminating: terminating.unwrap_or(false),
                hostname: endpoint.hostname,
                node: endpoint.node_name,
                pod: pod.map(|pod| ObjectKey::new(&pod.namespace, &pod.name)),
            })
        });
        // A port without a number stands for all ports (KEP-752), so there is none to dial.
        let ports = |protocol| {
            let of_protocol = self
                .ports
                .iter()
                .filter(move |port| port.protocol == protocol);
            of_protocol.filter_map(|port| Some((port.name.clone().unwrap_or_default(), port.port?)))
        };
        let slice = Slice {
            service: (**service).into(),
            family,
            ports: ports(SlimProtocol::Tcp).collect(),
            udp_ports: ports(SlimProtocol::Udp).collect(),
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
