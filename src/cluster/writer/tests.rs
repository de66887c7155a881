//! Order of arrival, lists and links of the index.

use super::*;
use crate::cluster::fixtures::{draining, endpoint, pod, pod_in_phase, service, slice};
use crate::cluster::resources::{PortSpec, SliceEndpoint};
use crate::cluster::{AppProtocol, Phase};
use crate::model::{Endpoint, Protocol};

const HTTP: &[(&str, u16, AppProtocol)] = &[("", 80, AppProtocol::Unspecified)];
const UNNAMED: &[(&str, u16)] = &[("", 8080)];

fn index() -> (Arc<Cluster>, Writer) {
    Cluster::new(AddressPolicy::default(), false, None)
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("ns", name)
}

/// Addresses of the only port of a service, separated by spaces.
fn addresses(cluster: &Cluster, name: &str) -> String {
    let service = cluster.service("ns", name).unwrap();
    let endpoints = service.ports[0].endpoints.iter();
    let addresses: Vec<_> = endpoints.map(|e| e.address.to_string()).collect();
    addresses.join(" ")
}

#[test]
fn joins_objects_in_any_order() {
    let objects = [
        pod("p", &["10.0.0.1"]),
        service("s", HTTP),
        slice("s-1", "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]),
    ];
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let (cluster, mut writer) = index();
        for (step, object) in order.into_iter().enumerate() {
            if step == 2 && cluster.service("ns", "s").is_some() {
                assert_eq!(addresses(&cluster, "s"), "", "{order:?}");
            }
            writer.apply(objects[object].clone());
        }
        assert_eq!(addresses(&cluster, "s"), "10.0.0.1:8080", "{order:?}");
    }
}

#[test]
fn slice_before_its_pods_serves_each_pod_once_it_arrives() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    writer.apply(slice(
        "s-1",
        "s",
        UNNAMED,
        vec![endpoint("10.0.0.1", "p"), endpoint("10.0.0.2", "q")],
    ));
    assert_eq!(addresses(&cluster, "s"), "");
    writer.apply(pod("q", &["10.0.0.2"]));
    assert_eq!(addresses(&cluster, "s"), "10.0.0.2:8080");
    // A pod is created without an address, which a later update adds.
    writer.apply(pod("p", &[]));
    assert_eq!(addresses(&cluster, "s"), "10.0.0.2:8080");
    writer.apply(pod("p", &["10.0.0.1"]));
    assert_eq!(addresses(&cluster, "s"), "10.0.0.1:8080 10.0.0.2:8080");
}

#[test]
fn pod_without_slice_serves_no_service() {
    let (cluster, mut writer) = index();
    writer.apply(pod("p", &["10.0.0.1"]));
    writer.apply(service("s", HTTP));
    assert_eq!(addresses(&cluster, "s"), "");
    assert!(!cluster.service("ns", "s").unwrap().has_endpoints);
    assert!(cluster.pod("ns", "p").is_some());
}

#[test]
fn deleted_pod_leaves_service_and_rejoins_under_same_name() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    writer.apply(slice("s-1", "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]));
    writer.apply(pod("p", &["10.0.0.1"]));
    writer.delete(Kind::Pod, &key("p"));
    assert_eq!(addresses(&cluster, "s"), "");
    writer.apply(pod("p", &["10.0.0.1"]));
    assert_eq!(addresses(&cluster, "s"), "10.0.0.1:8080");
    writer.apply(pod_in_phase("p", &["10.0.0.1"], Phase::Failed));
    assert_eq!(addresses(&cluster, "s"), "");
}

#[test]
fn reset_of_pods_removes_missing_ones_from_services() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    writer.apply(slice(
        "s-1",
        "s",
        UNNAMED,
        vec![endpoint("10.0.0.1", "p"), endpoint("10.0.0.2", "q")],
    ));
    writer.reset(
        Kind::Pod,
        vec![pod("p", &["10.0.0.1"]), pod("q", &["10.0.0.2"])],
    );
    assert_eq!(addresses(&cluster, "s"), "10.0.0.1:8080 10.0.0.2:8080");
    writer.reset(Kind::Pod, vec![pod("q", &["10.0.0.2"])]);
    assert_eq!(addresses(&cluster, "s"), "10.0.0.2:8080");
    assert!(cluster.pod("ns", "p").is_none());
}

#[test]
fn reset_of_one_kind_keeps_the_others() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    writer.apply(service("t", HTTP));
    writer.apply(pod("p", &["10.0.0.1"]));
    writer.apply(slice("s-1", "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]));
    writer.reset(Kind::EndpointSlice, Vec::new());
    assert_eq!(addresses(&cluster, "s"), "");
    assert!(cluster.pod("ns", "p").is_some());
    writer.reset(Kind::Service, vec![service("t", HTTP)]);
    assert!(cluster.service("ns", "s").is_none() && cluster.service("ns", "t").is_some());
}

#[test]
fn recreated_service_finds_its_slices() {
    let (cluster, mut writer) = index();
    writer.apply(pod("p", &["10.0.0.1"]));
    writer.apply(service("s", HTTP));
    writer.apply(slice("s-1", "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]));
    writer.delete(Kind::Service, &key("s"));
    assert!(cluster.service("ns", "s").is_none());
    writer.apply(service("s", HTTP));
    assert_eq!(addresses(&cluster, "s"), "10.0.0.1:8080");
}

#[test]
fn relabeled_slice_moves_to_its_new_service() {
    let (cluster, mut writer) = index();
    for name in ["s", "t"] {
        writer.apply(service(name, HTTP));
    }
    writer.apply(pod("p", &["10.0.0.1"]));
    writer.apply(slice("x", "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]));
    writer.apply(slice("x", "t", UNNAMED, vec![endpoint("10.0.0.1", "p")]));
    assert_eq!(addresses(&cluster, "s"), "");
    assert_eq!(addresses(&cluster, "t"), "10.0.0.1:8080");
}

#[test]
fn pod_keeps_its_link_while_another_slice_refers_to_it() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    writer.apply(pod("p", &["10.0.0.1"]));
    for name in ["s-1", "s-2"] {
        writer.apply(slice(name, "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]));
    }
    writer.delete(Kind::EndpointSlice, &key("s-1"));
    assert_eq!(addresses(&cluster, "s"), "10.0.0.1:8080");
    // The link still works: a change of the pod reaches the service.
    writer.apply(pod("p", &["10.0.0.9"]));
    assert_eq!(addresses(&cluster, "s"), "");
}

#[test]
fn dual_stack_service_falls_back_to_the_other_family() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    writer.apply(pod("p", &["10.0.0.1", "fd00::1"]));
    writer.apply(slice("v4", "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]));
    writer.apply(slice("v6", "s", UNNAMED, vec![endpoint("fd00::1", "p")]));
    assert_eq!(addresses(&cluster, "s"), "10.0.0.1:8080");
    writer.apply(slice("v4", "s", UNNAMED, vec![draining("10.0.0.1", "p")]));
    assert_eq!(addresses(&cluster, "s"), "[fd00::1]:8080");
    writer.delete(Kind::EndpointSlice, &key("v6"));
    assert_eq!(addresses(&cluster, "s"), "10.0.0.1:8080");
}

#[test]
fn irrelevant_pod_update_joins_no_service() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    writer.apply(pod("p", &["10.0.0.1"]));
    writer.apply(slice("s-1", "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]));
    let before = cluster.service("ns", "s").unwrap();
    let Object::Pod(key, mut changed) = pod("p", &["10.0.0.1"]) else {
        unreachable!("pod() returns a pod")
    };
    changed.ports = Box::default();
    writer.apply(Object::Pod(key, changed));
    assert!(Arc::ptr_eq(&before, &cluster.service("ns", "s").unwrap()));
    assert_eq!(cluster.pod("ns", "p").unwrap().first_port(), None);
    writer.apply(pod("p", &["10.0.0.1", "10.0.0.2"]));
    assert!(!Arc::ptr_eq(&before, &cluster.service("ns", "s").unwrap()));
}

#[test]
fn unknown_objects_are_deleted_without_effect() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    for kind in Kind::ALL {
        writer.delete(kind, &key("unknown"));
    }
    assert_eq!(
        cluster.sizes(),
        [(Kind::Node, 0), (Kind::Pod, 0), (Kind::Service, 1)]
    );
}

#[test]
fn deleting_everything_leaves_no_links() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    writer.apply(pod("p", &["10.0.0.1"]));
    let twice = || vec![endpoint("10.0.0.1", "p"), endpoint("10.0.0.2", "p")];
    writer.apply(slice("s-1", "s", UNNAMED, twice()));
    writer.apply(slice("s-2", "s", UNNAMED, twice()));
    for kind in Kind::ALL {
        writer.reset(kind, Vec::new());
    }
    assert!(writer.services.is_empty() && writer.slices.is_empty());
    assert!(writer.slices_of.is_empty() && writer.services_of.is_empty());
    assert_eq!(cluster.sizes().map(|(_, count)| count), [0, 0, 0]);
}

#[test]
fn finds_pods_and_services_by_address() {
    let (cluster, mut writer) = index();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let found = |address: &str| {
        cluster
            .pod_by_ip(ip(address))
            .map(|pod| pod.name.to_string())
    };
    let changed = |name: &str, change: &dyn Fn(&mut Pod)| {
        let Object::Pod(key, mut changed) = pod(name, &["10.0.0.1", "fd00::1"]) else {
            unreachable!("pod() returns a pod")
        };
        change(&mut changed);
        Object::Pod(key, changed)
    };
    writer.apply(changed("p", &|_| {}));
    assert_eq!(
        (found("10.0.0.1"), found("fd00::1")),
        (Some("p".into()), Some("p".into()))
    );
    writer.apply(pod("p", &["10.0.0.2"]));
    assert_eq!(
        (found("10.0.0.1"), found("10.0.0.2")),
        (None, Some("p".into()))
    );
    // The address of an ended pod belongs to the pod that has it now, whichever event is first.
    writer.apply(pod("q", &["10.0.0.2"]));
    writer.apply(pod_in_phase("p", &["10.0.0.2"], Phase::Failed));
    assert_eq!(found("10.0.0.2"), Some("q".into()));
    writer.delete(Kind::Pod, &key("p"));
    assert_eq!(found("10.0.0.2"), Some("q".into()));
    writer.delete(Kind::Pod, &key("q"));
    assert!(writer.namespaces.is_empty());
    writer.apply(pod("q", &["10.0.0.2"]));
    // That of a node belongs to no pod.
    writer.apply(changed("h", &|pod| pod.host_network = true));
    assert_eq!(found("10.0.0.1"), None);
    writer.reset(Kind::Pod, Vec::new());
    assert_eq!(found("10.0.0.2"), None);
    assert!(writer.namespaces.is_empty());

    let with_ips = |name: &str, ips: &[&str]| {
        let Object::Service(key, mut spec) = service(name, HTTP) else {
            unreachable!("service() returns a service")
        };
        spec.cluster_ips = ips.iter().map(|text| ip(text)).collect();
        Object::Service(key, spec)
    };
    let found = |address: &str| {
        cluster
            .service_by_ip(ip(address))
            .map(|key| key.name.to_string())
    };
    writer.apply(with_ips("s", &["10.96.0.1", "10.96.0.2"]));
    writer.apply(with_ips("s", &["10.96.0.2"]));
    assert_eq!(
        (found("10.96.0.1"), found("10.96.0.2")),
        (None, Some("s".into()))
    );
    // Assigned again before the deletion is known.
    writer.apply(with_ips("t", &["10.96.0.2"]));
    writer.delete(Kind::Service, &key("s"));
    assert_eq!(found("10.96.0.2"), Some("t".into()));
    writer.delete(Kind::Service, &key("t"));
    assert_eq!(found("10.96.0.2"), None);
}

#[test]
fn joins_udp_ports_host_names_and_endpoints_of_own_node() {
    let node = Some("mine".into());
    let (cluster, mut writer) = Cluster::new(AddressPolicy::default(), false, node);
    let Object::Service(service_key, mut spec) = service("s", HTTP) else {
        unreachable!("service() returns a service")
    };
    spec.udp_ports = vec![PortSpec {
        name: "dns".into(),
        number: 53,
        ..PortSpec::default()
    }];
    writer.apply(Object::Service(service_key, spec));
    let endpoints = [("10.0.0.1", "a", "mine"), ("10.0.0.2", "b", "other")];
    let listed = endpoints.map(|(ip, name, node)| {
        writer.apply(pod(name, &[ip]));
        SliceEndpoint {
            hostname: Some(name.into()),
            node: Some(node.into()),
            ..endpoint(ip, name)
        }
    });
    let Object::EndpointSlice(slice_key, mut slice) = slice("s-1", "s", UNNAMED, listed.into())
    else {
        unreachable!("slice() returns a slice")
    };
    slice.udp_ports = vec![("dns".into(), 5353)];
    writer.apply(Object::EndpointSlice(slice_key, slice));
    let service = cluster.service("ns", "s").unwrap();
    let text = |endpoints: &[Endpoint]| {
        let all: Vec<_> = endpoints.iter().map(|it| it.address.to_string()).collect();
        all.join(" ")
    };
    let [udp] = service.ports(Protocol::Udp) else {
        panic!("{service:?}")
    };
    assert_eq!(text(&udp.endpoints), "10.0.0.1:5353 10.0.0.2:5353");
    let tcp = &service.ports(Protocol::Tcp)[0];
    assert_eq!(text(&tcp.endpoints), "10.0.0.1:8080 10.0.0.2:8080");
    assert_eq!(text(&tcp.local_endpoints), "10.0.0.1:8080");
    let b = ("b".into(), "10.0.0.2:5353".parse().unwrap());
    assert!(udp.hostnames.contains(&b), "{:?}", udp.hostnames);
}

#[test]
fn declared_port_of_a_pod_on_its_node_opens_the_endpoint_to_tunnels() {
    let (cluster, mut writer) = index();
    writer.apply(service("s", HTTP));
    writer.apply(slice(
        "s-1",
        "s",
        &[("", 10250)],
        vec![endpoint("10.0.0.1", "p")],
    ));
    let mut apply = |host_network: bool, number: u16| {
        let Object::Pod(key, mut pod) = pod("p", &["10.0.0.1"]) else {
            unreachable!("pod() returns a pod")
        };
        pod.host_network = host_network;
        pod.ports[0].number = number;
        writer.apply(Object::Pod(key, pod));
        let service = cluster.service("ns", "s").unwrap();
        service.ports[0].tunnel_endpoints.len()
    };
    for (host_network, number, expected) in [
        (true, 80, 0),
        (true, 10250, 1),
        (true, 80, 0),
        (false, 80, 1),
        (true, 80, 0),
    ] {
        assert_eq!(
            apply(host_network, number),
            expected,
            "{host_network} {number}"
        );
    }
}

#[test]
fn knows_addresses_of_nodes() {
    let (cluster, mut writer) = index();
    let node = |name: &str, addresses: &[&str]| {
        let addresses = addresses
            .iter()
            .map(|it| ("InternalIP".into(), (*it).into()));
        Object::Node(Node {
            name: name.into(),
            addresses: addresses.collect(),
            kubelet_port: 10250,
        })
    };
    let known = |address: &str| cluster.is_node_address(address.parse().unwrap());
    writer.apply(node("a", &["10.0.0.1", "fd00::1", "a.example"]));
    assert!(known("10.0.0.1") && known("fd00::1") && !known("10.0.0.2"));
    writer.apply(node("a", &["10.0.0.2"]));
    assert!(!known("10.0.0.1") && !known("fd00::1") && known("10.0.0.2"));
    // A new node got the address before the deletion of the old one is known.
    writer.apply(node("b", &["10.0.0.2"]));
    writer.delete(Kind::Node, &ObjectKey::new("", "a"));
    assert!(known("10.0.0.2"));
    writer.reset(Kind::Node, Vec::new());
    assert!(!known("10.0.0.2"));
}

#[test]
fn pod_takes_no_address_from_another_pod_or_a_node() {
    let (cluster, mut writer) = index();
    let found = |address: &str| {
        let pod = cluster.pod_by_ip(address.parse().unwrap());
        pod.map(|pod| pod.name.to_string())
    };
    writer.apply(pod("a", &["10.0.0.1"]));
    for name in ["b", "c"] {
        writer.apply(pod(name, &["10.0.0.1", "10.0.0.9"]));
        assert_eq!(found("10.0.0.1"), Some("a".into()));
    }
    assert_eq!(found("10.0.0.9"), Some("b".into()));
    // The others follow when the holder is gone.
    writer.delete(Kind::Pod, &key("a"));
    let next = found("10.0.0.1").unwrap();
    assert!(next == "b" || next == "c", "{next}");
    writer.apply(pod_in_phase(&next, &["10.0.0.1"], Phase::Failed));
    let last = found("10.0.0.1").unwrap();
    assert!(last != next && last != "a", "{last}");
    assert_eq!(writer.contested.len(), 0);
    // One that is not the holder loses its claim with its address.
    writer.apply(pod("e", &["10.0.0.1"]));
    writer.apply(pod("e", &["10.0.0.3"]));
    assert_eq!(writer.contested.len(), 0);
    // A list with the new holder before the old one.
    writer.reset(
        Kind::Pod,
        vec![pod("d", &["10.0.0.1"]), pod(&last, &["10.0.0.2"])],
    );
    assert_eq!(found("10.0.0.1"), Some("d".into()));
    assert_eq!(found("10.0.0.2"), Some(last));

    writer.apply(Object::Node(Node {
        name: "n".into(),
        addresses: [("InternalIP".into(), "10.0.0.1".into())].into(),
        kubelet_port: 10250,
    }));
    assert_eq!(found("10.0.0.1"), None);
    writer.delete(Kind::Node, &ObjectKey::new("", "n"));
    assert_eq!(found("10.0.0.1"), Some("d".into()));
    writer.reset(Kind::Pod, Vec::new());
    assert!(writer.contested.is_empty());
}
