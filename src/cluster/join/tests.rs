//! Selection and exclusion of endpoints.

use super::*;
use crate::cluster::fixtures::{draining, endpoint, pod, pod_in_phase, slice};
use crate::cluster::{AppProtocol, Object, Phase};

/// A namespace with one service, whose only port is unnamed.
#[derive(Default)]
struct Namespace {
    slices: Vec<Slice>,
    pods: Vec<Pod>,
    primary: Option<Family>,
    pod_less: bool,
}

impl Namespace {
    fn new(objects: Vec<Object>) -> Self {
        let mut namespace = Self::default();
        for object in objects {
            match object {
                Object::EndpointSlice(_, slice) => namespace.slices.push(slice),
                Object::Pod(_, pod) => namespace.pods.push(pod),
                Object::Node(_) | Object::Service(..) => unreachable!("not part of a join"),
            }
        }
        namespace
    }

    fn join(&self, previous: Option<&Service>) -> Service {
        let join = Join {
            namespace: "ns",
            slices: &self.slices.iter().collect::<Vec<_>>(),
            pod: |namespace: &str, name: &str| {
                let pod = self.pods.iter().find(|pod| *pod.name == *name)?;
                (namespace == "ns").then(|| Arc::new(pod.clone()))
            },
            addresses: AddressPolicy::default(),
            pod_less: self.pod_less,
            previous,
        };
        join.service(&ServiceSpec {
            ports: vec![PortSpec {
                number: 80,
                ..PortSpec::default()
            }],
            primary_family: self.primary,
            ..ServiceSpec::default()
        })
    }

    fn addresses(&self) -> Vec<String> {
        let service = self.join(None);
        let endpoints = service.ports[0].endpoints.iter();
        endpoints.map(|e| e.address.to_string()).collect()
    }

    fn reasons(&self) -> Vec<ExclusionReason> {
        let service = self.join(None);
        let excluded = service.ports[0].excluded.iter();
        excluded.map(|excluded| excluded.reason).collect()
    }
}

const UNNAMED: &[(&str, u16)] = &[("", 8080)];

/// CONFORMANCE C45, KEP-1669.
#[test]
fn prefers_ready_to_draining_and_primary_family_to_secondary() {
    let ranked = [
        ("4", endpoint("10.0.0.1", "p"), "10.0.0.1:8080"),
        ("6", endpoint("fd00::1", "p"), "[fd00::1]:8080"),
        ("4-draining", draining("10.0.0.2", "p"), "10.0.0.2:8080"),
        ("6-draining", draining("fd00::2", "p"), "[fd00::2]:8080"),
    ];
    let pod = pod("p", &["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]);
    for first in 0..ranked.len() {
        let slices = ranked[first..]
            .iter()
            .rev()
            .map(|(name, endpoint, _)| slice(name, "s", UNNAMED, vec![endpoint.clone()]));
        let namespace = Namespace::new(slices.chain([pod.clone()]).collect());
        assert_eq!(namespace.addresses(), [ranked[first].2]);
    }
}

#[test]
fn selects_primary_family_of_dual_stack_service() {
    let mut namespace = Namespace::new(vec![
        pod("p", &["10.0.0.1", "fd00::1"]),
        slice("v4", "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]),
        slice("v6", "s", UNNAMED, vec![endpoint("fd00::1", "p")]),
    ]);
    for (primary, expected) in [
        (None, "10.0.0.1:8080"),
        (Some(Family::V4), "10.0.0.1:8080"),
        (Some(Family::V6), "[fd00::1]:8080"),
    ] {
        namespace.primary = primary;
        assert_eq!(namespace.addresses(), [expected], "{primary:?}");
    }
}

#[test]
fn uses_terminating_endpoints_only_while_they_serve() {
    let stopped = SliceEndpoint {
        serving: false,
        ..draining("10.0.0.2", "q")
    };
    let mut namespace = Namespace::new(vec![
        pod("p", &["10.0.0.1"]),
        pod("q", &["10.0.0.2"]),
        slice(
            "s-1",
            "s",
            UNNAMED,
            vec![draining("10.0.0.1", "p"), stopped.clone()],
        ),
    ]);
    assert_eq!(namespace.addresses(), ["10.0.0.1:8080"]);
    namespace.slices[0].endpoints = vec![stopped];
    assert_eq!(namespace.reasons(), [ExclusionReason::NotReady]);
    assert!(
        namespace.join(None).has_endpoints,
        "unusable endpoints count as endpoints"
    );
}

/// CONFORMANCE C46, C110.
#[test]
fn reports_reason_of_each_excluded_endpoint() {
    let unready = SliceEndpoint {
        ready: false,
        ..endpoint("10.0.0.1", "p")
    };
    for (excluded, reason) in [
        (unready, ExclusionReason::NotReady),
        (endpoint("10.0.0.2", "p"), ExclusionReason::AddressMismatch),
        (endpoint("10.0.0.1", ""), ExclusionReason::NoPod),
        (endpoint("10.0.0.1", "gone"), ExclusionReason::PodNotFound),
        (
            endpoint("10.0.0.1", "other/p"),
            ExclusionReason::OtherNamespace,
        ),
        (endpoint("10.0.0.3", "ended"), ExclusionReason::PodEnded),
        (
            endpoint("169.254.169.254", "p"),
            ExclusionReason::AddressNotAllowed,
        ),
        (
            endpoint("127.0.0.1", ""),
            ExclusionReason::AddressNotAllowed,
        ),
    ] {
        let namespace = Namespace::new(vec![
            pod("p", &["10.0.0.1", "169.254.169.254"]),
            pod_in_phase("ended", &["10.0.0.3"], Phase::Succeeded),
            slice("s-1", "s", UNNAMED, vec![excluded.clone()]),
        ]);
        assert!(namespace.addresses().is_empty(), "{excluded:?}");
        assert_eq!(namespace.reasons(), [reason], "{excluded:?}");
    }
}

#[test]
fn tunnels_reach_declared_ports_only_on_the_network_of_a_node() {
    let pod = |name: &str, ip: &str, host_network: bool| {
        let Object::Pod(key, pod) = pod(name, &[ip]) else {
            unreachable!("pod() returns a pod")
        };
        Object::Pod(
            key,
            Pod {
                host_network,
                ..pod
            },
        )
    };
    let node = || endpoint("10.0.0.1", "host");
    let own = || endpoint("10.0.0.2", "own");
    for (port, endpoints, all, tunnels) in [
        (8080, vec![node()], "10.0.0.1:8080", "10.0.0.1:8080"),
        (10250, vec![node()], "10.0.0.1:10250", ""),
        (10250, vec![own()], "10.0.0.2:10250", "10.0.0.2:10250"),
        (
            10250,
            vec![node(), own()],
            "10.0.0.1:10250 10.0.0.2:10250",
            "10.0.0.2:10250",
        ),
    ] {
        let listed = endpoints.into_iter().map(|endpoint| SliceEndpoint {
            hostname: Some("h".into()),
            node: Some("mine".into()),
            ..endpoint
        });
        let namespace = Namespace::new(vec![
            pod("host", "10.0.0.1", true),
            pod("own", "10.0.0.2", false),
            slice("s-1", "s", &[("", port)], listed.collect()),
        ]);
        let service = namespace.join(None);
        let joined = &service.ports[0];
        let text = |endpoints: &[Endpoint]| {
            let addresses = endpoints.iter().map(|it| it.address.to_string());
            addresses.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text(&joined.endpoints), all);
        assert_eq!(text(&joined.tunnel_endpoints), tunnels, "{all}");
        assert_eq!(text(&joined.local_endpoints), tunnels, "{all}");
        let named = joined.hostnames.iter().map(|(_, it)| it.to_string());
        assert_eq!(named.collect::<Vec<_>>().join(" "), tunnels, "{all}");
        let shared = Arc::ptr_eq(&joined.endpoints, &joined.tunnel_endpoints);
        assert_eq!(shared, all == tunnels, "{all}");
        let reasons: &[_] = match tunnels {
            "" => &[ExclusionReason::NodePort],
            _ => &[],
        };
        assert_eq!(namespace.reasons(), reasons, "{all}");
    }
}

#[test]
fn local_endpoints_may_drain_while_other_nodes_have_ready_ones() {
    let local = |endpoint: SliceEndpoint| SliceEndpoint {
        node: Some("mine".into()),
        ..endpoint
    };
    let elsewhere = || endpoint("10.0.0.1", "p");
    for (own, expected) in [
        (vec![local(endpoint("10.0.0.2", "q"))], "10.0.0.2:8080"),
        (vec![local(draining("10.0.0.2", "q"))], "10.0.0.2:8080"),
        (
            vec![
                local(draining("10.0.0.2", "q")),
                local(endpoint("10.0.0.3", "r")),
            ],
            "10.0.0.3:8080",
        ),
        (vec![draining("10.0.0.2", "q")], ""),
    ] {
        let mut endpoints = own;
        endpoints.push(elsewhere());
        let namespace = Namespace::new(vec![
            pod("p", &["10.0.0.1"]),
            pod("q", &["10.0.0.2"]),
            pod("r", &["10.0.0.3"]),
            slice("s-1", "s", UNNAMED, endpoints),
        ]);
        let service = namespace.join(None);
        let local = service.ports[0].local_endpoints.iter();
        let local: Vec<_> = local.map(|it| it.address.to_string()).collect();
        assert_eq!(local.join(" "), expected);
    }
}

#[test]
fn declared_tcp_port_of_a_node_permits_no_udp_tunnel() {
    let Object::Pod(_, mut host) = pod("host", &["10.0.0.1"]) else {
        unreachable!("pod() returns a pod")
    };
    host.host_network = true;
    assert!(host.declares(8080, Protocol::Tcp) && !host.declares(8080, Protocol::Udp));
}

#[test]
fn reports_bounded_number_of_excluded_endpoints() {
    let endpoints = (0..100).map(|n| endpoint(&format!("10.0.0.{n}"), "gone"));
    let namespace = Namespace::new(vec![slice(
        "s-1",
        "s",
        UNNAMED,
        endpoints.collect::<Vec<_>>(),
    )]);
    assert_eq!(namespace.reasons().len(), MAX_REPORTED);
}

#[test]
fn reports_no_exclusions_for_port_with_usable_endpoint() {
    let namespace = Namespace::new(vec![
        pod("p", &["10.0.0.1"]),
        slice(
            "s-1",
            "s",
            UNNAMED,
            vec![endpoint("10.0.0.1", "p"), endpoint("10.0.0.2", "gone")],
        ),
    ]);
    assert_eq!(namespace.addresses(), ["10.0.0.1:8080"]);
    assert!(namespace.reasons().is_empty());
}

#[test]
fn pod_less_option_permits_no_unsafe_address_and_no_other_namespace() {
    let mut namespace = Namespace::new(vec![
        pod("p", &["10.0.0.1"]),
        slice(
            "s-1",
            "s",
            UNNAMED,
            vec![
                endpoint("10.0.0.9", ""),
                endpoint("127.0.0.1", ""),
                endpoint("10.0.0.1", "other/p"),
                endpoint("10.0.0.2", "gone"),
            ],
        ),
    ]);
    assert!(namespace.addresses().is_empty());
    namespace.pod_less = true;
    assert_eq!(namespace.addresses(), ["10.0.0.9:8080"]);
    // Tunnels and listeners carry any protocol, and lead to pods only.
    let service = namespace.join(None);
    assert!(service.ports[0].tunnel_endpoints.is_empty());
    assert!(namespace.reasons().contains(&ExclusionReason::PodLess));
}

/// Tunnels have a selection of their own, so endpoints that are for requests only hide no other.
#[test]
fn endpoints_for_requests_only_hide_none_from_tunnels() {
    let mut namespace = Namespace::new(vec![
        pod("p", &["10.0.0.1"]),
        pod("q", &["fd00::1"]),
        slice("s-1", "s", UNNAMED, vec![endpoint("10.0.0.1", "")]),
        slice("s-2", "s", UNNAMED, vec![draining("10.0.0.1", "p")]),
        slice("s-3", "s", UNNAMED, vec![endpoint("fd00::1", "q")]),
    ]);
    namespace.pod_less = true;
    let tunnels = |namespace: &Namespace| {
        let service = namespace.join(None);
        let endpoints = service.ports[0].tunnel_endpoints.iter();
        endpoints
            .map(|endpoint| format!("{} {}", endpoint.name, endpoint.address))
            .collect::<Vec<_>>()
    };
    assert_eq!(tunnels(&namespace), ["q [fd00::1]:8080"]);
    namespace.slices.pop();
    assert_eq!(tunnels(&namespace), ["p 10.0.0.1:8080"]);
    // The same address with and without a pod.
    namespace.slices[1].endpoints = vec![endpoint("10.0.0.1", "p")];
    for _ in 0..2 {
        assert_eq!(tunnels(&namespace), ["p 10.0.0.1:8080"]);
        namespace.slices.reverse();
    }
    assert_eq!(namespace.addresses(), ["10.0.0.1:8080"]);
}

#[test]
fn merges_slices_sorted_by_address_without_duplicates() {
    let namespace = Namespace::new(vec![
        pod("p", &["10.0.0.1"]),
        pod("q", &["10.0.0.2"]),
        slice(
            "s-2",
            "s",
            UNNAMED,
            vec![endpoint("10.0.0.2", "q"), endpoint("10.0.0.1", "p")],
        ),
        slice("s-1", "s", UNNAMED, vec![endpoint("10.0.0.2", "q")]),
        slice("s-3", "s", &[("", 9090)], vec![endpoint("10.0.0.1", "p")]),
        slice(
            "other-port",
            "s",
            &[("web", 1)],
            vec![endpoint("10.0.0.1", "p")],
        ),
    ]);
    assert_eq!(
        namespace.addresses(),
        ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:8080"]
    );
}

#[test]
fn slice_without_ports_or_endpoints_selects_nothing() {
    let namespace = Namespace::new(vec![
        pod("p", &["10.0.0.1"]),
        slice("no-ports", "s", &[], vec![endpoint("10.0.0.1", "p")]),
    ]);
    assert!(namespace.addresses().is_empty() && namespace.reasons().is_empty());
    assert!(namespace.join(None).has_endpoints);
    let namespace = Namespace::new(vec![slice("no-endpoints", "s", UNNAMED, Vec::new())]);
    assert!(namespace.addresses().is_empty() && !namespace.join(None).has_endpoints);
}

#[test]
fn keeps_round_robin_counter_of_port_with_same_name() {
    let namespace = Namespace::new(vec![
        pod("p", &["10.0.0.1"]),
        slice("s-1", "s", UNNAMED, vec![endpoint("10.0.0.1", "p")]),
    ]);
    let mut previous = namespace.join(None);
    let next = namespace.join(Some(&previous));
    assert!(Arc::ptr_eq(
        &previous.ports[0].rotation,
        &next.ports[0].rotation
    ));
    previous.ports[0].name = "renamed".into();
    let next = namespace.join(Some(&previous));
    assert!(!Arc::ptr_eq(
        &previous.ports[0].rotation,
        &next.ports[0].rotation
    ));
    assert_eq!(next.ports[0].app_protocol, AppProtocol::Unspecified);
}
