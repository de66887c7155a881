//! Resolution of targets against an index of scripted objects.

use super::*;
use crate::authorize::{Authorizer, PolicySource};
use crate::cluster::fixtures::{draining, endpoint, pod, pod_in_phase, service, slice};
use crate::cluster::resources::ServiceSpec;
use crate::cluster::{ExclusionReason, Kind, Object, ObjectKey, Writer};
use crate::model::{Identity, Verb};
use crate::trust::RbacRules;

fn resolver_with(pod_less: bool, objects: Vec<Object>) -> (Resolver, Writer) {
    let (cluster, mut writer) = Cluster::new(AddressPolicy::default(), pod_less, None);
    objects.into_iter().for_each(|object| writer.apply(object));
    let preferred = vec![AddressType::InternalIp, AddressType::Hostname];
    let lookups = Lookups::new(std::time::Duration::from_secs(5));
    (
        Resolver {
            cluster,
            addresses: AddressPolicy::default(),
            preferred,
            lookups,
        },
        writer,
    )
}

/// Resolves a path as a cluster administrator. Returns transport and addresses, or the error.
async fn resolve_path(resolver: &Resolver, path: &str) -> Result<String, String> {
    let path = format!("/api/v1/{path}/proxy/");
    resolve_target(resolver, &Target::parse(&path).unwrap()).await
}

async fn resolve_target(resolver: &Resolver, target: &Target<'_>) -> Result<String, String> {
    let admin = Arc::new(Identity::new(
        "m",
        "",
        vec!["system:masters".into()],
        Default::default(),
    ));
    let authorizer = PolicySource::Rbac(Arc::new(arc_swap::ArcSwap::from_pointee(
        RbacRules::default(),
    )));
    let authorize = Authorizer {
        policy: authorizer,
        accept_bare_names: false,
    };
    let client = IpAddr::from([192, 0, 2, 1]).into();
    let permit = authorize
        .authorize(&admin, Verb::Get, target, client)
        .await
        .unwrap();
    let route = resolver
        .resolve(&permit)
        .await
        .map_err(|error| error.to_string())?;
    let addresses: Vec<_> = route
        .candidates
        .endpoints()
        .iter()
        .map(|e| e.address.to_string())
        .collect();
    Ok(format!("{:?} {}", route.transport, addresses.join(",")))
}

async fn check(resolver: &Resolver, cases: &[(&str, Result<&str, &str>)]) {
    for (path, expected) in cases {
        let found = resolve_path(resolver, path).await;
        assert_eq!(
            found.as_deref().map_err(|error| &**error),
            *expected,
            "{path}"
        );
    }
}

/// Services of the Kubernetes unit test for service locations (CONFORMANCE C44), then our own.
fn services() -> Vec<Object> {
    use AppProtocol::{Https, Unspecified};
    let ready = || vec![endpoint("10.0.0.1", "p")];
    vec![
        pod("p", &["10.0.0.1"]),
        service("unnamed", &[("", 93, Unspecified)]),
        slice("unnamed", "unnamed", &[("", 80)], ready()),
        service("named", &[("p", 93, Unspecified), ("q", 76, Https)]),
        slice("named", "named", &[("p", 80), ("q", 81)], ready()),
        service("no-endpoints", &[("", 80, Unspecified)]),
        service("single", &[("web", 80, Https)]),
        slice("single", "single", &[("web", 8443)], ready()),
        service("bad", &[("", 80, Unspecified)]),
        slice(
            "bad",
            "bad",
            &[("", 80)],
            vec![endpoint("10.0.0.9", "p"), endpoint("10.0.0.1", "gone")],
        ),
        service("external", &[]),
    ]
}

#[tokio::test]
async fn finds_service_port_by_number_name_or_if_it_is_the_only_one() {
    let (resolver, _writer) = resolver_with(false, services());
    for (id, route) in [
        ("unnamed", "Http 10.0.0.1:80"),
        ("unnamed:", "Http 10.0.0.1:80"),
        ("unnamed:93", "Http 10.0.0.1:80"),
        ("http:unnamed:", "Http 10.0.0.1:80"),
        ("https:unnamed:93", "Https 10.0.0.1:80"),
        ("named:p", "Http 10.0.0.1:80"),
        ("named:93", "Http 10.0.0.1:80"),
        ("named:q", "Https 10.0.0.1:81"),
        ("http:named:76", "Http 10.0.0.1:81"),
        ("single", "Https 10.0.0.1:8443"),
    ] {
        let path = format!("namespaces/ns/services/{id}");
        check(&resolver, &[(&path, Ok(route))]).await;
    }
}

#[tokio::test]
async fn host_of_a_service_without_a_port_has_port_80_or_the_only_one() {
    use AppProtocol::Unspecified;
    let ports = &[("metrics", 9090, Unspecified), ("web", 80, Unspecified)];
    let objects = vec![
        service("two", ports),
        slice(
            "two",
            "two",
            &[("metrics", 9090), ("web", 8080)],
            vec![endpoint("10.0.0.1", "p")],
        ),
    ];
    let (resolver, _writer) = resolver_with(false, [services(), objects].concat());
    for (host, expected) in [
        ("two.ns.svc", Ok("Http 10.0.0.1:8080")),
        ("two.ns.svc:80", Ok("Http 10.0.0.1:8080")),
        ("two.ns.svc:9090", Ok("Http 10.0.0.1:9090")),
        ("unnamed.ns.svc", Ok("Http 10.0.0.1:80")),
        ("single.ns.svc.cluster.local", Ok("Https 10.0.0.1:8443")),
        (
            "unnamed.ns.svc:80",
            Err(r#"no service port 80 found for service "unnamed""#),
        ),
        // Neither of its ports is 80.
        (
            "named.ns.svc",
            Err(r#"no endpoints available for service "named""#),
        ),
        ("p.ns.pod:81", Ok("Http 10.0.0.1:81")),
    ] {
        let target = Target::from_authority(host, "/", "cluster.local");
        let found = resolve_target(&resolver, &target.unwrap().unwrap()).await;
        let found = found.as_deref().map_err(|error| &**error);
        assert_eq!(found, expected, "{host}");
    }
}

#[tokio::test]
async fn rejects_missing_service_port_and_service_without_endpoints() {
    let (resolver, _writer) = resolver_with(false, services());
    for (id, error) in [
        (
            "unnamed:80",
            r#"no service port 80 found for service "unnamed""#,
        ),
        (
            "unnamed:70000",
            r#"no service port 70000 found for service "unnamed""#,
        ),
        (
            "named:bad",
            r#"no endpoints available for service "named:bad""#,
        ),
        (
            "single:nope",
            r#"no endpoints available for service "single:nope""#,
        ),
        (
            "no-endpoints:80",
            r#"no endpoints available for service "no-endpoints""#,
        ),
        ("bad:80", r#"no endpoints available for service "bad:80""#),
        (
            "external:",
            r#"no endpoints available for service "external:""#,
        ),
        (
            "external:80",
            r#"no endpoints available for service "external:80""#,
        ),
        ("non-existent:80", r#"services "non-existent" not found"#),
    ] {
        let path = format!("namespaces/ns/services/{id}");
        check(&resolver, &[(&path, Err(error))]).await;
    }
}

#[tokio::test]
async fn ignores_endpoints_without_pod_in_the_namespace() {
    let objects = || {
        vec![
            pod("p", &["10.0.0.1", "fd00::1"]),
            service("s", &[("", 80, AppProtocol::Unspecified)]),
            slice(
                "s",
                "s",
                &[("", 80)],
                vec![
                    endpoint("10.0.0.1", "p"),
                    endpoint("10.0.0.2", "p"),
                    endpoint("10.0.0.3", ""),
                    endpoint("10.0.0.4", "other/p"),
                    endpoint("169.254.169.254", "p"),
                    endpoint("127.0.0.1", ""),
                ],
            ),
        ]
    };
    let (resolver, _writer) = resolver_with(false, objects());
    assert_eq!(
        resolve_path(&resolver, "namespaces/ns/services/s")
            .await
            .unwrap(),
        "Http 10.0.0.1:80"
    );
    // With the option, endpoints without a pod are used, but never those with an unsafe address.
    let (resolver, _writer) = resolver_with(true, objects());
    assert_eq!(
        resolve_path(&resolver, "namespaces/ns/services/s")
            .await
            .unwrap(),
        "Http 10.0.0.1:80,10.0.0.3:80"
    );
}

#[tokio::test]
async fn follows_changes_and_keeps_round_robin_counter() {
    let (resolver, mut writer) = resolver_with(
        false,
        vec![
            pod("p", &["10.0.0.1"]),
            service("s", &[("", 80, AppProtocol::Unspecified)]),
            slice(
                "s",
                "s",
                &[("", 80)],
                vec![endpoint("10.0.0.1", "p"), endpoint("10.0.0.2", "q")],
            ),
        ],
    );
    let path = "namespaces/ns/services/s";
    let rotation = || Arc::clone(&resolver.cluster.service("ns", "s").unwrap().ports[0].rotation);
    let counter = rotation();
    check(&resolver, &[(path, Ok("Http 10.0.0.1:80"))]).await;
    writer.apply(pod("q", &["10.0.0.2"]));
    check(&resolver, &[(path, Ok("Http 10.0.0.1:80,10.0.0.2:80"))]).await;
    writer.reset(Kind::Pod, vec![pod("q", &["10.0.0.2"])]);
    check(&resolver, &[(path, Ok("Http 10.0.0.2:80"))]).await;
    assert!(Arc::ptr_eq(&counter, &rotation()));
    writer.reset(Kind::Service, vec![]);
    check(&resolver, &[(path, Err(r#"services "s" not found"#))]).await;
}

#[tokio::test]
async fn rejects_pod_that_has_ended() {
    let (resolver, mut writer) = resolver_with(
        false,
        vec![
            pod("p", &["10.0.0.1"]),
            service("s", &[("", 80, AppProtocol::Unspecified)]),
            slice("s", "s", &[("", 80)], vec![endpoint("10.0.0.1", "p")]),
        ],
    );
    let (pod_path, service_path) = ("namespaces/ns/pods/p:80", "namespaces/ns/services/s");
    // CONFORMANCE C40.
    for phase in [Phase::Succeeded, Phase::Failed] {
        check(
            &resolver,
            &[
                (pod_path, Ok("Http 10.0.0.1:80")),
                (service_path, Ok("Http 10.0.0.1:80")),
            ],
        )
        .await;
        // Only the phase changes.
        writer.apply(pod_in_phase("p", &["10.0.0.1"], phase));
        let error = format!(r#"pod "p" has ended (phase {phase:?})"#);
        check(
            &resolver,
            &[
                (pod_path, Err(&error)),
                (
                    service_path,
                    Err(r#"no endpoints available for service "s""#),
                ),
            ],
        )
        .await;
        let service = resolver.cluster.service("ns", "s").unwrap();
        assert_eq!(
            service.ports[0].excluded[0].reason,
            ExclusionReason::PodEnded
        );
        writer.apply(pod("p", &["10.0.0.1"]));
    }
}

#[tokio::test]
async fn prefers_ready_endpoints_and_then_the_primary_family() {
    let (resolver, mut writer) = resolver_with(
        false,
        vec![
            pod("p", &["10.0.0.1", "fd00::1"]),
            pod("q", &["10.0.0.2"]),
            service("s", &[("", 80, AppProtocol::Unspecified)]),
            slice(
                "v4",
                "s",
                &[("", 80)],
                vec![draining("10.0.0.1", "p"), endpoint("10.0.0.2", "q")],
            ),
            slice("v6", "s", &[("", 80)], vec![endpoint("fd00::1", "p")]),
        ],
    );
    let path = "namespaces/ns/services/s";
    assert_eq!(
        resolve_path(&resolver, path).await.unwrap(),
        "Http 10.0.0.2:80"
    );
    writer.apply(slice(
        "v4",
        "s",
        &[("", 80)],
        vec![draining("10.0.0.1", "p")],
    ));
    assert_eq!(
        resolve_path(&resolver, path).await.unwrap(),
        "Http [fd00::1]:80"
    );
    writer.delete(Kind::EndpointSlice, &ObjectKey::new("ns", "v6"));
    assert_eq!(
        resolve_path(&resolver, path).await.unwrap(),
        "Http 10.0.0.1:80"
    );
}

#[tokio::test]
async fn finds_pod_by_address_and_port() {
    let (resolver, _writer) = resolver_with(
        false,
        vec![
            pod("p", &["10.0.0.1", "10.0.0.2"]),
            pod("six", &["fd00::1"]),
            pod("new", &[]),
            pod("loop", &["127.0.0.1"]),
        ],
    );
    check(
        &resolver,
        &[
            ("namespaces/ns/pods/p", Ok("Http 10.0.0.1:8080")),
            ("namespaces/ns/pods/https:p:", Ok("Https 10.0.0.1:8080")),
            ("namespaces/ns/pods/p:9", Ok("Http 10.0.0.1:9")),
            ("namespaces/ns/pods/p:web", Ok("Http 10.0.0.1:8081")),
            ("namespaces/ns/pods/six", Ok("Http [fd00::1]:8080")),
            (
                "namespaces/ns/pods/p:+80",
                Err(r#"invalid pod request "p:+80""#),
            ),
            (
                "namespaces/ns/pods/p:-1",
                Err(r#"invalid pod request "p:-1""#),
            ),
            ("namespaces/ns/pods/new", Err("address not allowed")),
            ("namespaces/ns/pods/loop", Err("address not allowed")),
            ("namespaces/ns/pods/gone", Err(r#"pods "gone" not found"#)),
            ("namespaces//pods/p", Err("Namespace parameter required.")),
            ("namespaces/ns/pods/", Err("name must be provided")),
        ],
    )
    .await;
}

/// CONFORMANCE C9: the id before the namespace, and both before the name.
#[tokio::test]
async fn judges_id_before_namespace_and_namespace_before_name() {
    let (resolver, _writer) = resolver_with(false, services());
    for resource in ["pods", "services"] {
        let singular = &resource[..resource.len() - 1];
        for (id, error) in [
            ("", "name must be provided".to_owned()),
            (":", format!(r#"invalid {singular} request ":""#)),
            ("a:b:c", format!(r#"invalid {singular} request "a:b:c""#)),
            ("..", "Namespace parameter required.".to_owned()),
            ("missing:80", "Namespace parameter required.".to_owned()),
            ("missing:+", "Namespace parameter required.".to_owned()),
        ] {
            let path = format!("namespaces//{resource}/{id}");
            check(&resolver, &[(&path, Err(&error))]).await;
        }
    }
    check(&resolver, &[("nodes/", Err("name must be provided"))]).await;
}

/// CONFORMANCE C35, C39 and C40.
#[tokio::test]
async fn judges_address_before_text_of_port() {
    let node = |name: &str, host: &str| {
        Object::Node(Node {
            name: name.into(),
            addresses: [("InternalIP".into(), host.into())].into(),
            kubelet_port: 10250,
        })
    };
    let (resolver, _writer) = resolver_with(
        false,
        vec![
            pod("looped", &["127.0.0.1"]),
            pod("new", &[]),
            pod("good", &["10.0.0.1"]),
            pod_in_phase("ended", &[], Phase::Failed),
            pod_in_phase("looped-and-ended", &["127.0.0.1"], Phase::Succeeded),
            node("looped", "127.0.0.1"),
            node("good", "10.1.0.1"),
            Object::Node(Node {
                name: "nowhere".into(),
                addresses: Box::default(),
                kubelet_port: 10250,
            }),
        ],
    );
    let ended = r#"pod "ended" has ended (phase Failed)"#;
    check(
        &resolver,
        &[
            ("namespaces/ns/pods/looped:nope", Err("address not allowed")),
            ("namespaces/ns/pods/looped:0", Err("address not allowed")),
            ("namespaces/ns/pods/new:nope", Err("address not allowed")),
            (
                "namespaces/ns/pods/good:nope",
                Err(r#"invalid pod request "good:nope""#),
            ),
            ("namespaces/ns/pods/ended", Err(ended)),
            ("namespaces/ns/pods/ended:nope", Err(ended)),
            (
                "namespaces/ns/pods/looped-and-ended",
                Err(r#"pod "looped-and-ended" has ended (phase Succeeded)"#),
            ),
            ("nodes/looped:nope", Err("address not allowed")),
            (
                "nodes/nowhere:nope",
                Err("no preferred addresses found; known addresses: []"),
            ),
            (
                "nodes/good:nope",
                Err(r#"invalid node request "good:nope""#),
            ),
        ],
    )
    .await;
}

/// CONFORMANCE C42.
#[tokio::test]
async fn rejects_service_with_other_protocols_only() {
    let udp = ServiceSpec {
        has_other_protocols: true,
        ..ServiceSpec::default()
    };
    let dns = Object::Service(ObjectKey::new("ns", "dns"), udp);
    let (resolver, _writer) = resolver_with(false, vec![dns]);
    for id in ["dns", "dns:", "dns:53", "dns:udp", "http:dns:53"] {
        let path = format!("namespaces/ns/services/{id}");
        let error = r#"service "dns" has no TCP port"#;
        check(&resolver, &[(&path, Err(error))]).await;
    }
}

#[tokio::test]
async fn finds_node_by_preferred_address_and_port() {
    let node = |name: &str, addresses: &[(&str, &str)]| {
        let addresses = addresses
            .iter()
            .map(|(kind, host)| ((*kind).into(), (*host).into()))
            .collect();
        Object::Node(Node {
            name: name.into(),
            addresses,
            kubelet_port: 10250,
        })
    };
    let (resolver, _writer) = resolver_with(
        false,
        vec![
            node("n", &[("Hostname", "n"), ("InternalIP", "10.1.0.1")]),
            node("far", &[("ExternalIP", "10.1.0.2")]),
            node("named", &[("Hostname", "localhost")]),
            node("meta", &[("InternalIP", "169.254.169.254")]),
        ],
    );
    check(
        &resolver,
        &[
            ("nodes/n", Ok("Kubelet 10.1.0.1:10250")),
            ("nodes/http:n:10250", Ok("Kubelet 10.1.0.1:10250")),
            ("nodes/n:9100", Ok("Http 10.1.0.1:9100")),
            ("nodes/https:n:9100", Ok("Https 10.1.0.1:9100")),
            ("nodes/n:web", Err(r#"invalid node request "n:web""#)),
            (
                "nodes/far",
                Err("no preferred addresses found; known addresses: [{ExternalIP 10.1.0.2}]"),
            ),
            ("nodes/named", Err("address not allowed")),
            ("nodes/meta:80", Err("address not allowed")),
            ("nodes/gone", Err(r#"nodes "gone" not found"#)),
        ],
    )
    .await;
}

#[tokio::test]
async fn reports_host_name_of_failed_lookup() {
    let node = Object::Node(Node {
        name: "n".into(),
        addresses: [("Hostname".into(), "host.invalid".into())].into(),
        kubelet_port: 10250,
    });
    let (resolver, _writer) = resolver_with(false, vec![node]);
    let lookups = Lookups::with_resolver(std::time::Duration::from_secs(5), |_| {
        Err(std::io::Error::other("no such host"))
    });
    let resolver = Resolver {
        lookups,
        ..resolver
    };
    check(
        &resolver,
        &[("nodes/n", Err("lookup host.invalid: no such host"))],
    )
    .await;
}
