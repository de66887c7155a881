mod holders;
mod limits;
mod selection;

use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::status::{self, Patch};
use super::*;
use crate::config::{LoadBalancer, parse_published_address};

const CLASS: &str = "kube-bastion.dev/bastion";

/// A cluster, and the bastion's view of it.
struct Setting {
    settings: Settings,
    services: BTreeMap<ObjectKey, Arc<Service>>,
    published: Vec<PublishedAddress>,
    namespaces: BTreeMap<Box<str>, Labels>,
    nodes: BTreeMap<Box<str>, NodeFacts>,
    slices: BTreeMap<ObjectKey, SliceNodes>,
    holders: Holders,
    failures: BindFailures,
}

impl Setting {
    fn new() -> Self {
        Self {
            settings: Settings {
                class: CLASS.into(),
                bind_addresses: vec!["192.0.2.1".parse().unwrap()],
                namespace_selector: None,
                allowed_ports: LoadBalancer::default().allowed_ports,
                own_ports: BTreeSet::from([8443, 8080]),
                node_name: Some("node-1".into()),
            },
            services: BTreeMap::new(),
            published: addresses(&["192.0.2.1"]),
            namespaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            slices: BTreeMap::new(),
            holders: Holders::new(),
            failures: BindFailures::new(),
        }
    }

    fn dual_stack(mut self) -> Self {
        self.settings.bind_addresses = vec!["0.0.0.0".parse().unwrap(), "::".parse().unwrap()];
        self.published = addresses(&["192.0.2.1", "2001:db8::1", "lb.test"]);
        self
    }

    /// Adds a Service that was created at a second, with its ports as `80/TCP`.
    fn with(mut self, name: &str, second: u32, ports: &[&str], more: &Value) -> Self {
        self.add(name, second, ports, more);
        self
    }

    fn add(&mut self, name: &str, second: u32, ports: &[&str], more: &Value) {
        let ports: Vec<_> = ports
            .iter()
            .map(|port| {
                let (number, protocol) = port.split_once('/').unwrap();
                json!({"port": number.parse::<u16>().unwrap(), "protocol": protocol})
            })
            .collect();
        let mut service = json!({
            "metadata": {
                "name": name,
                "namespace": "shop",
                "uid": format!("{name}-{second}"),
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
            },
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": CLASS, "ipFamilies": ["IPv4"],
                "ports": ports,
            },
        });
        for (section, fields) in more.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                service[section][field] = value.clone();
            }
        }
        let service: Service = serde_json::from_value(service).unwrap();
        self.services.insert(service.key(), Arc::new(service));
    }

    /// Adds a Service with a range of ports, in another namespace.
    fn add_range(&mut self, namespace: &str, name: &str, second: u32, ports: Range<u16>) {
        let ports: Vec<_> = ports.map(|port| format!("{port}/TCP")).collect();
        let ports: Vec<_> = ports.iter().map(String::as_str).collect();
        self.add(
            name,
            second,
            &ports,
            &json!({"metadata": {"namespace": namespace}}),
        );
    }

    fn remove(&mut self, name: &str) {
        self.services.remove(&ObjectKey::new("shop", name)).unwrap();
    }

    fn assign(&self) -> Assignment {
        let facts = Facts {
            services: &self.services,
            published: &self.published,
            namespaces: &self.namespaces,
            nodes: &self.nodes,
            slices: &self.slices,
            holders: &self.holders,
            failures: &self.failures,
        };
        assign(&self.settings, &facts)
    }

    /// Assigns, keeps the holders, and writes the status as the leader does.
    fn step(&mut self) -> Assignment {
        let assignment = self.assign();
        self.holders.clone_from(&assignment.holders);
        let settings = status::Settings {
            class: CLASS.into(),
            finalizer: false,
        };
        for (key, outcome) in &assignment.services {
            let mut service = Service::clone(&self.services[key]);
            let change = status::change(&service, Some(outcome), &settings, Timestamp::UNIX_EPOCH);
            if let Some(Patch::Status(patch)) = change.map(|change| change.patch) {
                service.status = serde_json::from_value(patch["status"].clone()).unwrap();
                self.services.insert(key.clone(), Arc::new(service));
            }
        }
        assignment
    }
}

fn marker() -> super::super::service::Condition {
    serde_json::from_value(json!({"type": super::super::service::CONDITION})).unwrap()
}

fn slice(service: &str, node: &str) -> SliceNodes {
    SliceNodes {
        service: service.into(),
        nodes: BTreeSet::from([node.into()]),
    }
}

fn node(address: &str, is_excluded: bool) -> NodeFacts {
    NodeFacts {
        addresses: vec![address.parse().unwrap()],
        is_excluded,
    }
}

fn addresses(texts: &[&str]) -> Vec<PublishedAddress> {
    let parsed = texts
        .iter()
        .map(|text| parse_published_address(text).unwrap());
    parsed.collect()
}

/// Formats listeners as `192.0.2.1:80/TCP → web:80`.
fn listeners(assignment: &Assignment) -> Vec<String> {
    let listeners = assignment.listeners.iter();
    listeners
        .map(|(key, spec)| format!("{key} → {}:{}", spec.service, spec.service_port))
        .collect()
}

/// Formats the status of a Service as `192.0.2.1 80/TCP 81/TCP=PortConflict`.
fn ingress(assignment: &Assignment, name: &str) -> Vec<String> {
    let outcome = &assignment.services[&ObjectKey::new("shop", name)];
    let ingress = outcome.ingress.iter().map(|ingress| {
        let mut text = ingress.ip.clone().or(ingress.hostname.clone()).unwrap();
        for port in &ingress.ports {
            text += &format!(" {}/{}", port.port, port.protocol);
            if let Some(error) = &port.error {
                text += &format!("={}", error.strip_prefix("kube-bastion.dev/").unwrap());
            }
        }
        text
    });
    ingress.collect()
}

fn problems(assignment: &Assignment, name: &str) -> Vec<&'static str> {
    let outcome = &assignment.services[&ObjectKey::new("shop", name)];
    outcome.problems.iter().map(Problem::reason).collect()
}

#[test]
fn serves_tcp_and_udp_of_one_number_for_different_services() {
    let assignment = Setting::new()
        .with("dns-tcp", 0, &["53/TCP"], &json!({}))
        .with("dns-udp", 1, &["53/UDP"], &json!({}))
        .with("both", 2, &["443/TCP", "443/UDP"], &json!({}))
        .assign();
    assert_eq!(
        listeners(&assignment),
        [
            "192.0.2.1:53/TCP → dns-tcp:53",
            "192.0.2.1:53/UDP → dns-udp:53",
            "192.0.2.1:443/TCP → both:443",
            "192.0.2.1:443/UDP → both:443",
        ]
    );
    assert_eq!(ingress(&assignment, "dns-tcp"), ["192.0.2.1 53/TCP"]);
    assert_eq!(ingress(&assignment, "dns-udp"), ["192.0.2.1 53/UDP"]);
    assert_eq!(ingress(&assignment, "both"), ["192.0.2.1 443/TCP 443/UDP"]);
}

#[test]
fn serves_other_ports_beside_those_in_error() {
    let mut setting = Setting::new()
        .with(
            "web",
            1,
            &["80/TCP", "9/SCTP", "22/TCP", "8443/TCP", "81/TCP"],
            &json!({}),
        )
        .with("first", 0, &["81/TCP"], &json!({}));
    setting.settings.bind_addresses = vec!["0.0.0.0".parse().unwrap()];
    let key = ListenerKey {
        address: "0.0.0.0".parse().unwrap(),
        port: 82,
        protocol: Protocol::Tcp,
    };
    setting.failures.insert(key, "permission denied".into());
    setting.add("low", 2, &["82/TCP", "83/TCP"], &json!({}));
    let assignment = setting.assign();
    assert_eq!(
        ingress(&assignment, "web"),
        [
            "192.0.2.1 80/TCP 9/SCTP=UnsupportedProtocol 22/TCP=PortNotAllowed \
          8443/TCP=PortNotAllowed 81/TCP=PortConflict"
        ]
    );
    assert_eq!(
        problems(&assignment, "web"),
        [
            "PortConflict",
            "UnsupportedProtocol",
            "PortNotAllowed",
            "PortNotAllowed"
        ]
    );
    assert_eq!(
        ingress(&assignment, "low"),
        ["192.0.2.1 82/TCP=BindFailed 83/TCP"]
    );
    // A listener that could not be bound stays assigned, so that it is tried again.
    assert!(assignment.listeners.contains_key(&key));
    assert_eq!(
        assignment.services[&ObjectKey::new("shop", "low")].problems[0].to_string(),
        "cannot listen on 0.0.0.0:82/TCP: permission denied"
    );
}

#[test]
fn publishes_no_address_where_nothing_is_served() {
    for ports in [
        &["9/SCTP"][..],
        &["22/TCP", "6443/TCP", "2379/TCP", "10250/TCP", "30000/UDP"],
    ] {
        let assignment = Setting::new().with("web", 0, ports, &json!({})).assign();
        assert_eq!(ingress(&assignment, "web"), [""; 0]);
        assert_eq!(problems(&assignment, "web").len(), ports.len());
        assert!(assignment.listeners.is_empty());
    }
}

#[test]
fn own_ports_of_tcp_are_available_for_udp() {
    let setting = Setting::new().with("web", 0, &["8443/TCP", "8443/UDP"], &json!({}));
    assert_eq!(
        listeners(&setting.assign()),
        ["192.0.2.1:8443/UDP → web:8443"]
    );
}

#[test]
fn opens_listeners_of_the_families_of_the_service() {
    let families = |families: &[&str]| json!({"spec": {"ipFamilies": families}});
    for (service, expected, published) in [
        (
            families(&["IPv4"]),
            &["0.0.0.0:80/TCP → web:80"][..],
            &["192.0.2.1 80/TCP", "lb.test 80/TCP"][..],
        ),
        (
            families(&["IPv6"]),
            &["[::]:80/TCP → web:80"],
            &["2001:db8::1 80/TCP", "lb.test 80/TCP"],
        ),
        (
            families(&["IPv6", "IPv4"]),
            &["0.0.0.0:80/TCP → web:80", "[::]:80/TCP → web:80"],
            &["192.0.2.1 80/TCP", "2001:db8::1 80/TCP", "lb.test 80/TCP"],
        ),
    ] {
        let setting = Setting::new().dual_stack();
        let assignment = setting.with("web", 0, &["80/TCP"], &service).assign();
        assert_eq!(listeners(&assignment), expected, "{service}");
        assert_eq!(ingress(&assignment, "web"), published, "{service}");
    }
    let only_v6 = Setting::new().with("web", 0, &["80/TCP"], &families(&["IPv6"]));
    assert_eq!(problems(&only_v6.assign(), "web"), ["NoAddress"]);
}

#[test]
fn addresses_have_the_mode_of_a_proxy_and_names_have_none() {
    let setting = Setting::new()
        .dual_stack()
        .with("web", 0, &["80/TCP"], &json!({}));
    let outcome = &setting.assign().services[&ObjectKey::new("shop", "web")];
    let modes: Vec<_> = outcome
        .ingress
        .iter()
        .map(|ingress| (ingress.hostname.as_deref(), ingress.ip_mode.as_deref()))
        .collect();
    assert_eq!(modes, [(None, Some("Proxy")), (Some("lb.test"), None)]);
}

#[test]
fn listeners_have_what_the_service_asks_for() {
    let more = json!({
        "metadata": {"annotations": {"kube-bastion.dev/proxy-protocol": "v2"}},
        "spec": {
            "loadBalancerSourceRanges": ["199.199.199.199/32", "4700::/32"],
            "externalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}},
        },
    });
    let assignment = Setting::new()
        .with("web", 0, &["80/TCP", "80/UDP"], &more)
        .assign();
    assert_eq!(assignment.listeners.len(), 2);
    for (key, spec) in &assignment.listeners {
        let ranges = spec.source_ranges.as_ref().unwrap();
        for (client, is_allowed) in [
            ("199.199.199.199", true),
            ("199.199.199.198", false),
            ("4700::1", true),
            ("4701::1", false),
        ] {
            assert_eq!(
                ranges.contains(client.parse().unwrap()),
                is_allowed,
                "{key} {client}"
            );
        }
        assert!(spec.local_only && spec.proxy_protocol, "{key}");
        assert_eq!(spec.client_affinity, Some(Duration::from_secs(30)), "{key}");
    }
    let outcome = &assignment.services[&ObjectKey::new("shop", "web")];
    assert!(!outcome.is_public);
}

#[test]
fn opens_nothing_for_an_invalid_request() {
    let ranges = json!({"spec": {"loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0/33"]}});
    let legacy = json!({"metadata": {"annotations": {
        "service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8 192.0.2.0/24",
    }}});
    let header = json!({"metadata": {"annotations": {"kube-bastion.dev/proxy-protocol": "v1"}}});
    for (more, reason) in [
        (ranges, "InvalidSourceRanges"),
        (legacy, "InvalidSourceRanges"),
        (header, "InvalidAnnotation"),
    ] {
        // An earlier status and holder keep nothing open.
        let mut setting = Setting::new().with("web", 0, &["80/TCP"], &json!({}));
        setting.step();
        setting.add("web", 0, &["80/TCP"], &more);
        let assignment = setting.with("other", 1, &["80/TCP"], &json!({})).assign();
        assert_eq!(
            listeners(&assignment),
            ["192.0.2.1:80/TCP → other:80"],
            "{more}"
        );
        assert_eq!(problems(&assignment, "web"), [reason], "{more}");
        assert_eq!(ingress(&assignment, "web"), [""; 0], "{more}");
    }
}
