//! Services as the controller needs them: decoding of the API's objects.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, Serialize};

use super::metadata::metadata;
use crate::cluster::ObjectKey;
use crate::model::Protocol;

/// Finalizer of Services whose load balancer must be removed first (KEP-1959).
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Type of the condition that the controller sets. It marks the Services that have a status of it.
pub const CONDITION: &str = "kube-bastion.dev/LoadBalancerReady";
/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_TIMEOUT: u64 = 10_800;

/// A Service of the API, without the fields that the controller does not use.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Service")]
#[serde(default)]
pub struct Service {
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    pub spec: Spec,
    pub status: Status,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    pub r#type: String,
    pub load_balancer_class: Option<String>,
    pub ports: Vec<Port>,
    ip_families: Vec<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: String,
    pub load_balancer_source_ranges: Vec<String>,
    pub external_traffic_policy: String,
    session_affinity: String,
    session_affinity_config: AffinityConfig,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: ClientIp,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Option<u64>,
}

/// Port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Port {
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(default = "tcp")]
    pub protocol: String,
}

fn tcp() -> String {
    "TCP".to_owned()
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    pub load_balancer: LoadBalancerStatus,
    pub conditions: Vec<Condition>,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    pub ingress: Vec<Ingress>,
}

/// Address in the status of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ingress {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_mode: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortStatus>,
}

/// State of a port at an address (KEP-1435).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct PortStatus {
    /// 0 for a number that is not a port, which the API server accepts here.
    #[serde(deserialize_with = "port")]
    pub port: u16,
    pub protocol: String,
    /// `DOMAIN/CamelCase`. `None` if the port works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let number = i64::deserialize(deserializer)?;
    Ok(u16::try_from(number).unwrap_or_default())
}

/// Condition in the status of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    pub r#type: String,
    /// `True` or `False`.
    pub status: String,
    pub reason: String,
    pub message: String,
    /// `None` for a time that cannot be represented, which the API server accepts.
    #[serde(deserialize_with = "time")]
    pub last_transition_time: Option<Timestamp>,
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

impl Service {
    pub fn key(&self) -> ObjectKey {
        let meta = &self.metadata;
        ObjectKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }

    pub fn uid(&self) -> Arc<str> {
        self.metadata.uid.as_deref().unwrap_or_default().into()
    }

    pub fn created(&self) -> Option<Timestamp> {
        let time = self.metadata.creation_timestamp.as_ref();
        time.map(|time| time.0)
    }

    /// Returns true for a Service of `type: LoadBalancer` and of the class.
    pub fn is_of_class(&self, class: &str) -> bool {
        self.spec.r#type == "LoadBalancer"
            && self.spec.load_balancer_class.as_deref() == Some(class)
    }

    /// Returns true if the status has the condition of the controller.
    pub fn is_marked(&self) -> bool {
        self.condition(CONDITION).is_some()
    }

    pub fn condition(&self, r#type: &str) -> Option<&Condition> {
        let mut conditions = self.status.conditions.iter();
        conditions.find(|condition| condition.r#type == r#type)
    }

    /// Returns true once the deletion of the Service has begun. Only finalizers keep it then.
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    pub fn has_finalizer(&self) -> bool {
        let mut finalizers = self.metadata.finalizers.iter().flatten();
        finalizers.any(|finalizer| finalizer == FINALIZER)
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        let annotations = self.metadata.annotations.as_ref()?;
        Some(annotations.get(name)?.trim()).filter(|value| !value.is_empty())
    }

    /// Returns true if the Service has addresses of the family of `address`. A Service without
    /// families, which the API server completes, has that of its cluster IP.
    pub fn has_family_of(&self, address: IpAddr) -> bool {
        let name = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let families = &self.spec.ip_families;
        if families.is_empty() {
            let cluster_ip = self.spec.cluster_ip.parse::<IpAddr>();
            return cluster_ip.map_or(true, |own| own.is_ipv4() == address.is_ipv4());
        }
        families.iter().any(|listed| listed == name)
    }

    /// Returns true if the Service has a port with this number.
    pub fn has_port(&self, number: u16, protocol: Protocol) -> bool {
        let mut ports = self.spec.ports.iter();
        ports.any(|port| port.port == number && Protocol::parse(&port.protocol) == Some(protocol))
    }

    /// Returns true for `externalTrafficPolicy: Local`.
    pub fn is_local_only(&self) -> bool {
        self.spec.external_traffic_policy == "Local"
    }

    /// Returns the time for which a client keeps its endpoint. `None` without affinity.
    pub fn client_affinity(&self) -> Option<Duration> {
        let config = &self.spec.session_affinity_config;
        let seconds = config.client_ip.timeout_seconds.unwrap_or(AFFINITY_TIMEOUT);
        (self.spec.session_affinity == "ClientIP").then(|| Duration::from_secs(seconds))
    }

    /// Removes what the controller does not use, so that all Services of a cluster can be kept.
    pub fn slim(mut self) -> Self {
        self.metadata.labels = None;
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.retain(|name, _| super::request::ANNOTATIONS.contains(&&**name));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: &Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap()
    }

    #[test]
    fn matches_services_of_its_type_and_class_only() {
        for (spec, matches) in [
            (
                json!({"type": "LoadBalancer", "loadBalancerClass": "x/y"}),
                true,
            ),
            (
                json!({"type": "LoadBalancer", "loadBalancerClass": "x/z"}),
                false,
            ),
            (json!({"type": "LoadBalancer"}), false),
            (
                json!({"type": "ClusterIP", "loadBalancerClass": "x/y"}),
                false,
            ),
        ] {
            assert_eq!(service(&spec).is_of_class("x/y"), matches, "{spec}");
        }
    }

    #[test]
    fn reads_families_of_the_service() {
        for (spec, v4, v6) in [
            (json!({"ipFamilies": ["IPv4"]}), true, false),
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), true, true),
            (json!({"clusterIP": "fd00::1"}), false, true),
            (json!({}), true, true),
        ] {
            let service = service(&spec);
            let families = (
                service.has_family_of([192, 0, 2, 1].into()),
                service.has_family_of(std::net::Ipv6Addr::LOCALHOST.into()),
            );
            assert_eq!(families, (v4, v6), "{spec}");
        }
    }

    #[test]
    fn reads_timeout_of_client_affinity() {
        let config = json!({"clientIP": {"timeoutSeconds": 60}});
        for (spec, seconds) in [
            (
                json!({"sessionAffinity": "None", "sessionAffinityConfig": config}),
                None,
            ),
            (json!({"sessionAffinity": "ClientIP"}), Some(10_800)),
            (
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}),
                Some(60),
            ),
        ] {
            let affinity = service(&spec).client_affinity();
            assert_eq!(affinity, seconds.map(Duration::from_secs), "{spec}");
        }
    }

    #[test]
    fn status_with_an_impossible_port_is_read() {
        let status = json!({"loadBalancer": {"ingress": [{"ports": [
            {"port": 70_000, "protocol": "TCP"}, {"port": -1}, {"port": 80},
        ]}]}});
        let status: Status = serde_json::from_value(status).unwrap();
        let ports = status.load_balancer.ingress[0].ports.iter();
        assert_eq!(ports.map(|port| port.port).collect::<Vec<_>>(), [0, 0, 80]);
    }
}
