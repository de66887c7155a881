use std::ops::Range;
use std::time::Duration;

use serde_json::{Value, json};

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
        for (key, outcome) in &assignment.services {
            let mut service = Service::clone(&self.services[key]);
            service
                .status
                .load_balancer
                .ingress
                .clone_from(&outcome.ingress);
            service.status.conditions = vec![marker()];
            self.services.insert(key.clone(), Arc::new(service));
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
            "UnsupportedProtocol",
            "PortNotAllowed",
            "PortNotAllowed",
            "PortConflict"
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
fn oldest_service_gets_a_port_then_the_first_by_name() {
    let assignment = Setting::new()
        .with("young", 9, &["80/TCP"], &json!({}))
        .with("z-old", 1, &["80/TCP"], &json!({}))
        .with("old", 1, &["80/TCP"], &json!({}))
        .assign();
    assert_eq!(listeners(&assignment), ["192.0.2.1:80/TCP → old:80"]);
    for waiting in ["young", "z-old"] {
        let outcome = &assignment.services[&ObjectKey::new("shop", waiting)];
        assert_eq!(outcome.ingress, []);
        assert_eq!(
            outcome.problems[0].to_string(),
            "192.0.2.1:80/TCP is in use by the Service shop/old; it is taken over when that Service \
             releases it"
        );
    }
}

#[test]
fn holder_keeps_its_port_until_it_lets_go() {
    let mut setting = Setting::new().with("young", 9, &["80/TCP"], &json!({}));
    setting.step();
    // An older Service, such as one that was changed to the class.
    setting.add("old", 1, &["80/TCP"], &json!({}));
    assert_eq!(listeners(&setting.step()), ["192.0.2.1:80/TCP → young:80"]);
    // After a restart, only the status remains.
    setting.holders.clear();
    assert_eq!(listeners(&setting.step()), ["192.0.2.1:80/TCP → young:80"]);
    // Another port releases the previous one, and so does the deletion.
    setting.add("young", 9, &["81/TCP"], &json!({}));
    let moved = setting.step();
    assert_eq!(
        listeners(&moved),
        ["192.0.2.1:80/TCP → old:80", "192.0.2.1:81/TCP → young:81"]
    );
    assert_eq!(ingress(&moved, "old"), ["192.0.2.1 80/TCP"]);
    setting.add("next", 0, &["80/TCP"], &json!({}));
    setting.remove("old");
    assert_eq!(
        listeners(&setting.step()),
        ["192.0.2.1:80/TCP → next:80", "192.0.2.1:81/TCP → young:81"]
    );
}

#[test]
fn holder_keeps_its_port_before_its_status_is_written() {
    let mut setting = Setting::new().with("young", 9, &["80/TCP"], &json!({}));
    setting.holders = setting.assign().holders;
    setting.add("old", 1, &["80/TCP"], &json!({}));
    assert_eq!(
        listeners(&setting.assign()),
        ["192.0.2.1:80/TCP → young:80"]
    );
    // A new Service of the same name is not the holder.
    setting.add("young", 10, &["80/TCP"], &json!({}));
    assert_eq!(listeners(&setting.assign()), ["192.0.2.1:80/TCP → old:80"]);
}

#[test]
fn status_of_another_controller_holds_nothing() {
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.1", "ports": [{"port": 80, "protocol": "TCP"}]},
    ]}});
    let setting = Setting::new().with("old", 1, &["80/TCP"], &json!({})).with(
        "young",
        9,
        &["80/TCP"],
        &json!({"status": status}),
    );
    assert_eq!(listeners(&setting.assign()), ["192.0.2.1:80/TCP → old:80"]);
}

#[test]
fn services_share_a_port_at_different_addresses() {
    let mut setting = Setting::new();
    setting.settings.bind_addresses =
        vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
    setting.published = addresses(&["192.0.2.1", "192.0.2.2"]);
    let at = |address: &str| json!({"spec": {"loadBalancerIP": address}});
    let assignment = setting
        .with("a", 0, &["80/TCP"], &at("192.0.2.1"))
        .with("b", 1, &["80/TCP"], &at("192.0.2.2"))
        .with("c", 2, &["80/TCP", "81/TCP"], &json!({}))
        .with("d", 3, &["81/TCP"], &at("192.0.2.3"))
        .assign();
    assert_eq!(
        listeners(&assignment),
        [
            "192.0.2.1:80/TCP → a:80",
            "192.0.2.1:81/TCP → c:81",
            "192.0.2.2:80/TCP → b:80",
            "192.0.2.2:81/TCP → c:81",
        ]
    );
    assert_eq!(ingress(&assignment, "a"), ["192.0.2.1 80/TCP"]);
    assert_eq!(ingress(&assignment, "b"), ["192.0.2.2 80/TCP"]);
    assert_eq!(
        ingress(&assignment, "c"),
        [
            "192.0.2.1 80/TCP=PortConflict 81/TCP",
            "192.0.2.2 80/TCP=PortConflict 81/TCP"
        ]
    );
    assert_eq!(problems(&assignment, "d"), ["AddressNotConfigured"]);
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

#[test]
fn serves_selected_namespaces_only() {
    let mut setting = Setting::new().with("web", 0, &["80/TCP"], &json!({}));
    setting.settings.namespace_selector = Some(LabelSelector {
        match_labels: Labels::from([("public".to_owned(), "yes".to_owned())]),
        ..LabelSelector::default()
    });
    assert_eq!(problems(&setting.assign(), "web"), ["NamespaceNotAllowed"]);
    let mut label = |value: &str| {
        let labels = Labels::from([("public".to_owned(), value.to_owned())]);
        setting.namespaces.insert("shop".into(), labels);
        setting.assign()
    };
    assert_eq!(problems(&label("no"), "web"), ["NamespaceNotAllowed"]);
    assert_eq!(listeners(&label("yes")), ["192.0.2.1:80/TCP → web:80"]);
}

#[test]
fn ignores_other_classes_types_and_deleted_services() {
    let class = |class: Value| json!({"spec": {"loadBalancerClass": class}});
    let assignment = Setting::new()
        .with("foreign", 0, &["80/TCP"], &class(json!("other.example/lb")))
        .with("cloud", 0, &["80/TCP"], &class(Value::Null))
        .with(
            "internal",
            0,
            &["80/TCP"],
            &json!({"spec": {"type": "ClusterIP"}}),
        )
        .with(
            "deleting",
            0,
            &["80/TCP"],
            &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        )
        .assign();
    assert_eq!(assignment, Assignment::default());
}

#[test]
fn local_policy_publishes_addresses_of_nodes_with_endpoints() {
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let mut setting = Setting::new();
    setting.settings.bind_addresses = vec!["0.0.0.0".parse().unwrap()];
    setting.published = addresses(&["192.0.2.1", "192.0.2.2", "203.0.113.1"]);
    for (name, address) in [("node-1", "192.0.2.1"), ("node-2", "192.0.2.2")] {
        setting.nodes.insert(name.into(), node(address, false));
    }
    setting.add("web", 0, &["80/TCP"], &local);
    let all = ["192.0.2.1 80/TCP", "192.0.2.2 80/TCP", "203.0.113.1 80/TCP"];
    for (nodes, published) in [
        (&["node-1", "node-2"][..], &all[..]),
        (&["node-2"], &all[1..]),
        (&["node-3"], &all[2..]),
        (&[], &[]),
    ] {
        // Slices of other Services, and one for each node with an endpoint.
        setting.slices = ["node-1", "node-2"]
            .iter()
            .map(|node| {
                (
                    ObjectKey::new("shop", &format!("other-{node}")),
                    slice("other", node),
                )
            })
            .chain([(ObjectKey::new("shop-2", "web-a"), slice("web", "node-1"))])
            .collect();
        for node in nodes {
            let key = ObjectKey::new("shop", &format!("web-{node}"));
            setting.slices.insert(key, slice("web", node));
        }
        let assignment = setting.assign();
        assert_eq!(ingress(&assignment, "web"), published, "{nodes:?}");
        let expected = if published.is_empty() {
            &["NoLocalEndpoint"][..]
        } else {
            &[]
        };
        assert_eq!(problems(&assignment, "web"), expected, "{nodes:?}");
        // The data path rejects connections without a local endpoint.
        assert_eq!(assignment.listeners.len(), 1);
    }
    setting.settings.node_name = None;
    let assignment = setting.assign();
    assert_eq!(problems(&assignment, "web"), ["NoNodeName"]);
    assert!(assignment.listeners.is_empty());
}

#[test]
fn excluded_nodes_have_neither_listeners_nor_addresses() {
    let mut setting = Setting::new().with("web", 0, &["80/TCP"], &json!({}));
    setting.published = addresses(&["192.0.2.1", "192.0.2.2"]);
    setting
        .nodes
        .insert("node-1".into(), node("192.0.2.1", true));
    let assignment = setting.assign();
    assert!(assignment.listeners.is_empty());
    // Other replicas serve the other address, and the port stays with its holder.
    assert_eq!(ingress(&assignment, "web"), ["192.0.2.2 80/TCP"]);
    assert_eq!(assignment.holders.len(), 1);
    setting.published = addresses(&["192.0.2.1"]);
    assert_eq!(problems(&setting.assign(), "web"), ["NodesExcluded"]);
    setting.settings.node_name = Some("node-2".into());
    assert_eq!(setting.assign().listeners.len(), 1);
}

/// Two bind addresses, to both of which the name leads.
fn with_two_addresses() -> Setting {
    let mut setting = Setting::new();
    setting.settings.bind_addresses =
        vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
    setting.published = addresses(&["192.0.2.1", "192.0.2.2", "lb.test"]);
    setting
}

fn at(address: &str) -> Value {
    let name = "kube-bastion.dev/load-balancer-addresses";
    json!({"metadata": {"annotations": {name: address}}})
}

#[test]
fn address_that_leads_to_another_service_does_not_serve_the_port() {
    let assignment = with_two_addresses()
        .with("holder", 0, &["80/TCP"], &at("192.0.2.1"))
        .with("wide", 1, &["80/TCP", "81/TCP"], &at("lb.test"))
        .assign();
    assert_eq!(
        listeners(&assignment),
        [
            "192.0.2.1:80/TCP → holder:80",
            "192.0.2.1:81/TCP → wide:81",
            "192.0.2.2:80/TCP → wide:80",
            "192.0.2.2:81/TCP → wide:81",
        ]
    );
    assert_eq!(
        ingress(&assignment, "wide"),
        ["lb.test 80/TCP=PortConflict 81/TCP"]
    );
    assert_eq!(problems(&assignment, "wide"), ["PortConflict"]);
}

#[test]
fn status_claims_no_port_of_another_service() {
    // The name, to which every listener belongs, in the status of an older Service.
    let claim = |error: Value| {
        json!({"loadBalancer": {"ingress": [{"hostname": "lb.test", "ports": [
            {"port": 80, "protocol": "TCP", "error": error},
        ]}]}, "conditions": [marker()]})
    };
    let in_error = claim(json!("kube-bastion.dev/PortConflict"));
    for (is_restarted, is_confirmed, status, winner) in [
        // The holder keeps its port, before its own status and after.
        (false, false, claim(Value::Null), "holder"),
        (false, true, claim(Value::Null), "holder"),
        (false, true, in_error.clone(), "holder"),
        // After a restart, both statuses count, and one with an error does not.
        (true, true, in_error.clone(), "holder"),
        (true, true, claim(Value::Null), "wide"),
        (true, false, in_error, "wide"),
    ] {
        let mut setting = with_two_addresses().with("holder", 9, &["80/TCP"], &at("192.0.2.1"));
        if is_confirmed {
            setting.step();
        } else {
            setting.holders = setting.assign().holders;
        }
        let mut wide = at("lb.test");
        wide["status"] = status.clone();
        setting.add("wide", 1, &["80/TCP"], &wide);
        if is_restarted {
            setting.holders.clear();
        }
        let assignment = setting.assign();
        assert_eq!(
            listeners(&assignment)[0],
            format!("192.0.2.1:80/TCP → {winner}:80"),
            "{is_restarted} {is_confirmed} {status}"
        );
    }
}

#[test]
fn status_of_the_elected_replica_decides_between_replicas() {
    let mut setting = Setting::new().with("elected", 9, &["80/TCP"], &json!({}));
    setting.step();
    setting.add("old", 1, &["80/TCP"], &json!({}));
    setting.step();
    // Another replica has seen them in another order.
    for holder in setting.holders.values_mut() {
        *holder = "old-1".into();
    }
    assert_eq!(
        listeners(&setting.assign()),
        ["192.0.2.1:80/TCP → elected:80"]
    );
}

/// Counts the ports of a Service that are served, and those with the error `TooManyPorts`.
fn counts(assignment: &Assignment, namespace: &str, name: &str) -> (usize, usize) {
    let outcome = &assignment.services[&ObjectKey::new(namespace, name)];
    let ports = outcome.ingress.iter().flat_map(|ingress| &ingress.ports);
    let of_error = |error: Option<&str>| {
        let ports = ports.clone();
        ports.filter(|port| port.error.as_deref() == error).count()
    };
    let limited = Some("kube-bastion.dev/TooManyPorts");
    (of_error(None), of_error(limited))
}

#[test]
fn first_ports_of_a_service_are_served() {
    let mut setting = Setting::new();
    setting.add_range("shop", "web", 0, 10_000..10_064);
    assert_eq!(counts(&setting.assign(), "shop", "web"), (64, 0));
    setting.add_range("shop", "web", 0, 10_000..20_000);
    let assignment = setting.assign();
    assert_eq!(assignment.listeners.len(), 64);
    // The status stays within what the API accepts.
    assert_eq!(counts(&assignment, "shop", "web"), (64, 64));
    assert_eq!(problems(&assignment, "web"), ["TooManyPorts"]);
}

#[test]
fn listeners_of_a_namespace_are_limited() {
    let mut setting = Setting::new();
    for (index, start) in (10_000..).step_by(60).take(4).enumerate() {
        setting.add_range("shop", &format!("web-{index}"), 5, start..start + 60);
    }
    setting.step();
    // The holders keep theirs, although these Services are older.
    setting.add_range("shop", "a-last", 1, 20_000..20_060);
    setting.add_range("other", "web", 9, 21_000..21_060);
    let assignment = setting.step();
    assert_eq!(counts(&assignment, "shop", "web-3"), (60, 0));
    assert_eq!(counts(&assignment, "shop", "a-last"), (16, 44));
    assert_eq!(problems(&assignment, "a-last"), ["TooManyPorts"]);
    assert_eq!(counts(&assignment, "other", "web"), (60, 0));
    // What is not served is free for others.
    setting.add_range("other", "next", 9, 20_000..20_060);
    assert_eq!(counts(&setting.step(), "other", "next"), (44, 0));
    setting.remove("web-0");
    assert_eq!(counts(&setting.step(), "shop", "a-last").0, 16);
    setting.services.remove(&ObjectKey::new("other", "next"));
    assert_eq!(counts(&setting.step(), "shop", "a-last"), (60, 0));
}

#[test]
fn listeners_of_the_process_are_limited() {
    let mut setting = Setting::new();
    for (index, start) in (11_000..).step_by(64).take(65).enumerate() {
        let (namespace, name) = (format!("ns-{}", index / 4), format!("web-{index:02}"));
        setting.add_range(&namespace, &name, 5, start..start + 64);
    }
    let assignment = setting.assign();
    assert_eq!(assignment.listeners.len(), 4096);
    assert_eq!(counts(&assignment, "ns-0", "web-00"), (64, 0));
    let limited = assignment.services.values().filter(|outcome| {
        let mut problems = outcome.problems.iter();
        problems.any(|problem| *problem == Problem::TooManyPorts(PortLimit::Process))
    });
    assert_eq!(limited.count(), 1);
}
