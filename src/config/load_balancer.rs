//! Section `loadBalancer`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::fields;

/// Ports of node components, which Services may not use by default, in order. On a node where the
/// component does not run, a Service on its port would receive connections that are meant for it,
/// possibly with credentials.
const RESERVED_PORTS: [RangeInclusive<u16>; 16] = [
    // SSH
    22..=22,
    // BGP
    179..=179,
    // Docker with TLS
    2376..=2376,
    // etcd and its metrics
    2379..=2381,
    // Health checks of Cilium
    4240..=4240,
    // VXLAN
    4789..=4789,
    // API server
    6443..=6443,
    // Membership of Swarm and MetalLB
    7946..=7946,
    // VXLAN of Flannel and Cilium
    8472..=8472,
    // Metrics of nodes, CoreDNS and cert-manager
    9100..=9100,
    9153..=9153,
    9402..=9402,
    // Longhorn
    9500..=9500,
    // kube-proxy, kubelet, scheduler and controllers
    10249..=10259,
    // Node ports
    30000..=32767,
    // WireGuard
    51820..=51820,
];
/// Name of the Lease.
const LEASE_NAME: &str = "kube-bastion-load-balancer";

/// Listeners for Services of `type: LoadBalancer`. A listener is public: every client that reaches
/// its address can use it, unless the Service has `loadBalancerSourceRanges`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LoadBalancer {
    /// The `spec.loadBalancerClass` of the Services that are served, for example
    /// `kube-bastion.dev/bastion`. If empty, none is.
    #[serde(deserialize_with = "fields::class")]
    pub class: String,
    /// Addresses that clients use, in the status of the Services: IP addresses and DNS names.
    #[serde(deserialize_with = "fields::published_addresses")]
    #[schemars(with = "Vec<String>", extend("x-type" = "list of addresses"))]
    pub addresses: Vec<PublishedAddress>,
    /// Service whose own status has the addresses, as `NAMESPACE/NAME`, for example that of a cloud
    /// load balancer in front of the bastion. Cannot be set beside `addresses`.
    #[serde(deserialize_with = "fields::optional_object_name")]
    pub addresses_from: Option<String>,
    /// Addresses of this machine on which the listeners are opened. The unspecified address of a
    /// family stands for all of them.
    #[serde(deserialize_with = "fields::ips")]
    #[schemars(with = "Vec<String>", extend("x-type" = "list of IP addresses"))]
    pub bind_addresses: Vec<IpAddr>,
    /// Namespaces whose Services are served, by their labels. If not set, all are.
    #[serde(deserialize_with = "fields::or_default")]
    pub namespace_selector: Option<LabelSelector>,
    /// Ports that Services may use, as numbers and ranges. The bastion's own ports are never
    /// available. The default leaves out those of programs that run on nodes: 22, 179, 2376,
    /// 2379-2381, 4240, 4789, 6443, 7946, 8472, 9100, 9153, 9402, 9500, 10249-10259, 30000-32767 and
    /// 51820.
    #[serde(deserialize_with = "fields::port_ranges")]
    #[schemars(with = "Vec<String>", extend("x-type" = "list of port ranges"))]
    pub allowed_ports: Vec<PortRange>,
    /// Adds the finalizer `service.kubernetes.io/load-balancer-cleanup` to the Services (KEP-1959).
    /// Services with it cannot be deleted while no bastion runs. Listeners hold nothing outside the
    /// process, so that the default is false, which also removes the finalizer.
    #[serde(deserialize_with = "fields::flag")]
    pub finalizer: bool,
    #[serde(deserialize_with = "fields::or_default")]
    pub lease: Lease,
    /// Name of the node of this replica, for `externalTrafficPolicy: Local` and for the label
    /// `node.kubernetes.io/exclude-from-external-load-balancers`. In a pod, set it from the field
    /// `spec.nodeName` by the environment variable `KUBE_BASTION_NODE_NAME`.
    #[serde(deserialize_with = "fields::or_default")]
    pub node_name: Option<String>,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self {
            class: String::new(),
            addresses: Vec::new(),
            addresses_from: None,
            bind_addresses: vec![
                IpAddr::from([0, 0, 0, 0]),
                IpAddr::from([0, 0, 0, 0, 0, 0, 0, 0u16]),
            ],
            namespace_selector: None,
            allowed_ports: default_ports(),
            finalizer: false,
            lease: Lease::default(),
            node_name: None,
        }
    }
}

/// Returns the ranges between the reserved ports.
fn default_ports() -> Vec<PortRange> {
    let mut first = 1;
    let mut ranges = Vec::new();
    for reserved in RESERVED_PORTS {
        ranges.push(PortRange(first..=reserved.start() - 1));
        first = reserved.end() + 1;
    }
    ranges.push(PortRange(first..=u16::MAX));
    ranges
}

impl LoadBalancer {
    /// Returns true if Services are served.
    pub fn is_enabled(&self) -> bool {
        !self.class.is_empty()
    }
}

/// Lease by which one replica is elected to write the status of Services.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Lease {
    /// Name of the Lease.
    pub name: String,
    /// Namespace of the Lease. If not set, that of the pod, or of the kubeconfig's context.
    #[serde(deserialize_with = "fields::or_default")]
    pub namespace: Option<String>,
    /// Name of this replica in the Lease, different for each. If not set, the host name and random
    /// digits.
    #[serde(deserialize_with = "fields::or_default")]
    pub identity: Option<String>,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            name: LEASE_NAME.into(),
            namespace: None,
            identity: None,
        }
    }
}

/// Address that clients use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum PublishedAddress {
    Ip(IpAddr),
    /// DNS name in lower case.
    Hostname(String),
}

impl std::fmt::Display for PublishedAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Hostname(name) => f.write_str(name),
        }
    }
}

/// Range of ports, as `80` or `8000-8999`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

impl Serialize for PortRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Selector of objects by their labels, as in the Kubernetes API. All requirements must be met.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels with their values.
    pub match_labels: BTreeMap<String, String>,
    pub match_expressions: Vec<LabelRequirement>,
}

/// Requirement for a label.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelRequirement {
    /// Key of the label.
    pub key: String,
    pub operator: LabelOperator,
    /// Values for `In` and `NotIn`.
    #[serde(default)]
    pub values: Vec<String>,
}

/// Operator of a [`LabelRequirement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum LabelOperator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is missing.
    NotIn,
    /// The label has any value.
    Exists,
    /// The label is missing.
    DoesNotExist,
}

impl LabelSelector {
    /// Returns true if the labels meet all requirements.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let mut equal = self.match_labels.iter();
        equal.all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                let is_listed = || value.is_some_and(|value| requirement.values.contains(value));
                match requirement.operator {
                    LabelOperator::In => is_listed(),
                    LabelOperator::NotIn => !is_listed(),
                    LabelOperator::Exists => value.is_some(),
                    LabelOperator::DoesNotExist => value.is_none(),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_ports_are_all_but_the_reserved_ones() {
        let default = default_ports();
        for port in 1..=u16::MAX {
            let is_reserved = RESERVED_PORTS.iter().any(|it| it.contains(&port));
            let is_allowed = default.iter().any(|range| range.0.contains(&port));
            assert_eq!(is_allowed, !is_reserved, "{port}");
        }
        for port in [22, 2380, 6443, 10249, 10250, 10256, 32767, 51820] {
            assert!(!default.iter().any(|range| range.0.contains(&port)));
        }
        assert!(default.iter().all(|range| !range.0.is_empty()));
    }

    #[test]
    fn selector_requires_all_labels_and_expressions() {
        let selector: LabelSelector = serde_json::from_value(serde_json::json!({
            "matchLabels": {"team": "a"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["web", "api"]},
                {"key": "zone", "operator": "NotIn", "values": ["x"]},
                {"key": "public", "operator": "Exists"},
                {"key": "frozen", "operator": "DoesNotExist"},
            ],
        }))
        .unwrap();
        let matching = [("team", "a"), ("tier", "api"), ("public", "")];
        let labels = |more: &[(&str, &str)]| -> BTreeMap<String, String> {
            let all = matching.iter().chain(more);
            all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        for (more, matches) in [
            (&[][..], true),
            (&[("zone", "y")], true),
            (&[("zone", "x")], false),
            (&[("team", "b")], false),
            (&[("tier", "db")], false),
            (&[("frozen", "")], false),
        ] {
            assert_eq!(selector.matches(&labels(more)), matches, "{more:?}");
        }
        assert!(!selector.matches(&BTreeMap::new()));
        assert!(LabelSelector::default().matches(&BTreeMap::new()));
    }
}
