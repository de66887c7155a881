//! Decoding of valid and malformed objects.

use super::slim::KUBELET_PORT;
use super::*;
use crate::cluster::resources::PortSpec;
use crate::model::Protocol;
use serde_json::json;

fn object<K: Indexed>(json: &Value) -> Result<Option<Object>, ObjectError> {
    // From text, as the API sends it.
    serde_json::from_str::<Item<K>>(&json.to_string())
        .unwrap()
        .kept()
}

#[test]
fn reads_addresses_and_ports_of_pod() {
    let pod = object::<SlimPod>(&json!({
        "metadata": {"name": "p", "namespace": "ns", "managedFields": [{"x": 1}]},
        "spec": {"containers": [
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
        (pod.first_port(), pod.named_port("web", Protocol::Tcp)),
        (Some(8080), Some(8080))
    );
    assert_eq!(pod.ips[0].to_string(), "10.0.0.7");
}

#[test]
fn reads_single_address_of_pod_without_list() {
    let cases = [
        (json!({"podIP": "10.0.0.1"}), vec!["10.0.0.1"]),
        (json!({"podIP": "10.0.0.1", "podIPs": []}), vec!["10.0.0.1"]),
        (
            json!({"podIP": "10.0.0.1", "podIPs": null}),
            vec!["10.0.0.1"],
        ),
        (
            json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}),
            vec!["10.0.0.2", "fd00::2"],
        ),
        (
            json!({"podIP": "", "podIPs": [{}, {"ip": ""}, {"ip": null}]}),
            vec![],
        ),
        (json!({}), vec![]),
    ];
    for (status, expected) in cases {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "status": status});
        let Ok(Some(Object::Pod(_, pod))) = object::<SlimPod>(&pod) else {
            panic!("{status}")
        };
        let found: Vec<_> = pod.ips.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{status}");
    }
}

#[test]
fn list_may_be_null() {
    let list = r#"{"metadata": {"resourceVersion": "7"}, "items": null}"#;
    let list: kube::core::ObjectList<Item<SlimPod>> = serde_json::from_str(list).unwrap();
    assert!(list.items.is_empty());
}

/// First port and named ports of a pod with this spec.
fn ports_of_pod(spec: &Value) -> (Option<u16>, Vec<(String, u16)>) {
    let meta = json!({"name": "p", "namespace": "ns"});
    let pod = object::<SlimPod>(&json!({"metadata": meta, "spec": spec}));
    let Ok(Some(Object::Pod(_, pod))) = pod else {
        panic!("{pod:?}")
    };
    let named = pod
        .ports
        .iter()
        .filter(|port| port.protocol == Protocol::Tcp && !port.name.is_empty());
    let named = named.map(|port| (port.name.to_string(), port.number));
    (pod.first_port(), named.collect())
}

/// CONFORMANCE C37 and C38.
#[test]
fn reads_tcp_ports_of_containers_and_then_of_sidecars() {
    let port = |name: &str, number: u16| json!({"name": name, "containerPort": number});
    let with_protocol =
        |protocol: Value| json!({"name": "a", "containerPort": 1, "protocol": protocol});
    let sidecar = |port: Value| json!({"restartPolicy": "Always", "ports": [port]});
    let cases = [
        // Sidecars come after containers, and other init containers do not count.
        (
            json!({
                "initContainers": [
                    {"ports": [port("init", 1)]},
                    {"restartPolicy": "OnFailure", "ports": [port("retried", 2)]},
                    sidecar(port("metrics", 9100)),
                    sidecar(port("proxy", 15001)),
                ],
                "containers": [{"ports": [port("http", 8080)]}],
            }),
            vec![("http", 8080), ("metrics", 9100), ("proxy", 15001)],
        ),
        (
            json!({"initContainers": [sidecar(port("metrics", 9100))], "containers": [{}]}),
            vec![("metrics", 9100)],
        ),
        (
            json!({"initContainers": [{"restartPolicy": null, "ports": [port("init", 1)]}], "containers": null}),
            vec![],
        ),
        (
            json!({"initContainers": null, "containers": [{"restartPolicy": "Never", "ports": [port("http", 8080)]}]}),
            vec![("http", 8080)],
        ),
        // UDP of a sidecar does not count either.
        (
            json!({"initContainers": [sidecar(with_protocol(json!("UDP")))], "containers": []}),
            vec![],
        ),
        // CoreDNS lists its UDP port first.
        (
            json!({"containers": [{"ports": [
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
                {"name": "sctp", "containerPort": 54, "protocol": "SCTP"},
            ]}]}),
            vec![("dns-tcp", 53)],
        ),
    ];
    for (spec, expected) in cases {
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(name, port)| (name.to_owned(), port))
            .collect();
        let first = expected.first().map(|(_, port)| *port);
        assert_eq!(ports_of_pod(&spec), (first, expected), "{spec}");
    }
    for (protocol, first) in [
        (json!("TCP"), Some(1)),
        (json!(""), Some(1)),
        (json!(null), Some(1)),
        (json!("UDP"), None),
        (json!("SCTP"), None),
        (json!("tcp"), None),
        (json!("QUIC"), None),
    ] {
        let spec = json!({"containers": [{"ports": [with_protocol(protocol.clone())]}]});
        assert_eq!(ports_of_pod(&spec).0, first, "{protocol}");
    }
}

/// CONFORMANCE C42.
#[test]
fn reads_tcp_ports_of_services_and_slices() {
    let ports = json!([
        {"name": "h3", "port": 443, "protocol": "UDP"},
        {"name": "https", "port": 443, "protocol": "TCP"},
        {"name": "default", "port": 80},
        {"name": "null", "port": 81, "protocol": null},
        {"name": "sctp", "port": 80, "protocol": "SCTP"},
    ]);
    let expected = [("https", 443), ("default", 80), ("null", 81)];
    let service = |ports: &Value| {
        let meta = json!({"name": "s", "namespace": "ns"});
        match object::<SlimService>(&json!({"metadata": meta, "spec": {"ports": ports}})) {
            Ok(Some(Object::Service(_, spec))) => spec,
            other => panic!("{other:?}"),
        }
    };
    let mixed = service(&ports);
    let found: Vec<_> = mixed.ports.iter().map(|p| (&*p.name, p.number)).collect();
    assert_eq!(found, expected);
    assert!(mixed.has_other_protocols);
    let udp = service(&json!([{"port": 53, "protocol": "UDP"}]));
    assert!(udp.ports.is_empty() && udp.has_other_protocols);
    let numbers =
        |ports: &[PortSpec]| -> Vec<u16> { ports.iter().map(|port| port.number).collect() };
    assert_eq!(
        (numbers(&mixed.udp_ports), numbers(&udp.udp_ports)),
        (vec![443], vec![53])
    );
    assert!(!service(&json!([{"port": 80}])).has_other_protocols);

    let slice = object::<SlimSlice>(&json!({
        "metadata": {"name": "s", "namespace": "ns", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "endpoints": [], "ports": ports,
    }));
    let Ok(Some(Object::EndpointSlice(_, slice))) = slice else {
        panic!("{slice:?}")
    };
    let found: Vec<_> = slice
        .ports
        .iter()
        .map(|(name, port)| (&**name, *port))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(slice.udp_ports, [("h3".into(), 443)]);
}

#[test]
fn reads_cluster_ips_host_names_nodes_and_host_network() {
    let meta =
        json!({"name": "s", "namespace": "ns", "labels": {"kubernetes.io/service-name": "s"}});
    for (ips, expected) in [
        (
            json!(["10.96.0.7", "fd00::7"]),
            vec!["10.96.0.7", "fd00::7"],
        ),
        (json!(["None"]), vec![]),
        (json!(null), vec![]),
    ] {
        let service =
            json!({"metadata": meta, "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ips}});
        let Ok(Some(Object::Service(_, spec))) = object::<SlimService>(&service) else {
            panic!("{service}")
        };
        let found: Vec<_> = spec.cluster_ips.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }
    let slice = object::<SlimSlice>(
        &json!({"metadata": meta, "addressType": "IPv4", "endpoints": [
            {"addresses": ["10.0.0.1"], "hostname": "db-0", "nodeName": "a"}, {"addresses": ["10.0.0.2"]},
        ]}),
    );
    let Ok(Some(Object::EndpointSlice(_, slice))) = slice else {
        panic!("{slice:?}")
    };
    let named = slice.endpoints.iter();
    let named: Vec<_> = named
        .map(|it| (it.hostname.as_deref(), it.node.as_deref()))
        .collect();
    assert_eq!(named, [(Some("db-0"), Some("a")), (None, None)]);
    for (spec, expected) in [(json!({"hostNetwork": true}), true), (json!({}), false)] {
        let pod = object::<SlimPod>(&json!({"metadata": meta, "spec": spec}));
        let Ok(Some(Object::Pod(_, pod))) = pod else {
            panic!("{pod:?}")
        };
        assert_eq!((pod.host_network, &*pod.namespace), (expected, "ns"));
    }
}

#[test]
fn reads_addresses_and_kubelet_port_of_node() {
    let node =
        |status: Value| object::<SlimNode>(&json!({"metadata": {"name": "n"}, "status": status}));
    let complete = node(json!({
        "addresses": [{"type": "Unknown", "address": "x"}, {"type": "InternalIP", "address": "10.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10255}},
    }));
    let Ok(Some(Object::Node(complete))) = complete else {
        panic!("{complete:?}")
    };
    assert_eq!(
        (complete.kubelet_port, &*complete.addresses),
        (
            10255,
            &[
                ("Unknown".into(), "x".into()),
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
fn treats_missing_conditions_as_ready_and_omits_ports_without_number() {
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
    let endpoints: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| (e.address.to_string(), e.ready, e.serving))
        .collect();
    assert_eq!(
        endpoints,
        [
            ("10.0.0.1".to_owned(), true, true),
            ("10.0.0.3".to_owned(), false, true)
        ]
    );
    assert_eq!(slice.ports, [("".into(), 80)]);
    assert_eq!(slice.endpoints[0].pod, Some(ObjectKey::new("ns", "p")));
}

#[test]
fn external_name_service_has_no_ports() {
    let service = object::<SlimService>(&json!({
        "metadata": {"name": "s", "namespace": "ns"},
        "spec": {"type": "ExternalName", "externalName": "metadata.internal",
            "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]},
    }));
    let Ok(Some(Object::Service(_, spec))) = service else {
        panic!("{service:?}")
    };
    assert!(spec.ports.is_empty() && !spec.has_other_protocols);
}

#[test]
fn malformed_object_does_not_fail_its_list() {
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
    for (bad, reason) in malformed {
        let items = json!({"metadata": {"resourceVersion": "7"}, "items": [bad, good]}).to_string();
        let list: kube::core::ObjectList<Item<SlimPod>> = serde_json::from_str(&items).unwrap();
        let [bad_item, good_item] = <[_; 2]>::try_from(list.items).unwrap();
        let error = bad_item.kept().unwrap_err().to_string();
        assert!(error.contains(reason), "{bad}: {error}");
        assert!(
            matches!(good_item.kept(), Ok(Some(Object::Pod(..)))),
            "{bad}"
        );
    }
}

#[test]
fn malformed_object_keeps_name_and_version_for_the_watch() {
    let text =
        r#"{"metadata": {"name": "p", "namespace": "ns", "resourceVersion": "9", "labels": 5}}"#;
    let item = serde_json::from_str::<Item<SlimPod>>(text).unwrap();
    assert_eq!(
        (item.meta().resource_version.as_deref(), key(item.meta())),
        (Some("9"), ObjectKey::new("ns", "p"))
    );
    assert!(item.kept().is_err());
}

#[test]
fn treats_null_as_absent() {
    let meta =
        json!({"name": "x", "namespace": "ns", "labels": null, "annotations": null, "uid": null});
    let pod = object::<SlimPod>(&json!({
        "metadata": meta,
        "spec": {"containers": [null, {"ports": null}, {"ports": [null, {"name": null, "containerPort": 80}]}]},
        "status": {"phase": null, "podIPs": null},
    }));
    let Ok(Some(Object::Pod(_, pod))) = pod else {
        panic!("{pod:?}")
    };
    assert_eq!((pod.first_port(), pod.ips.len()), (Some(80), 0));
    assert!(
        object::<SlimPod>(&json!({"metadata": meta, "spec": {"containers": null}, "status": null}))
            .is_ok()
    );
    let service =
        json!({"metadata": meta, "spec": {"type": null, "ports": null, "sessionAffinity": null}});
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

#[test]
fn service_keeps_the_path_with_the_annotation() {
    for (annotations, keeps) in [
        (json!({"kube-bastion.dev/path": "keep"}), true),
        (json!({"kube-bastion.dev/path": "keep", "x": "y"}), true),
        (json!({"kube-bastion.dev/path": "strip"}), false),
        (json!({"kube-bastion.dev/path": ""}), false),
        (json!({"kube-bastion.dev/path": null}), false),
        (json!({"x": "keep"}), false),
        (json!(null), false),
    ] {
        let service = json!({
            "metadata": {"name": "s", "namespace": "ns", "annotations": annotations},
        });
        let Ok(Some(Object::Service(_, spec))) = object::<SlimService>(&service) else {
            panic!("{annotations}")
        };
        assert_eq!(spec.keeps_path, keeps, "{annotations}");
    }
}
