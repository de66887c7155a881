//! Services and nodes that are served.

use super::*;

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
    setting
        .nodes
        .insert("node-2".into(), node("192.0.2.2", false));
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

#[test]
fn address_of_no_node_needs_a_replica_that_listens() {
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    for (service, excluded, published, problem) in [
        (json!({}), [true, false], true, None),
        (json!({}), [true, true], false, Some("NodesExcluded")),
        // The only endpoint is on the first node.
        (local.clone(), [false, true], true, None),
        (local, [true, false], false, Some("NoLocalEndpoint")),
    ] {
        let mut setting = Setting::new().with("web", 0, &["80/TCP"], &service);
        setting.published = addresses(&["203.0.113.1"]);
        let nodes = [("node-1", "192.0.2.1"), ("node-2", "192.0.2.2")];
        for ((name, address), is_excluded) in nodes.into_iter().zip(excluded) {
            setting
                .nodes
                .insert(name.into(), node(address, is_excluded));
        }
        let key = ObjectKey::new("shop", "web-a");
        setting.slices.insert(key, slice("web", "node-1"));
        let assignment = setting.assign();
        let is_published = !ingress(&assignment, "web").is_empty();
        assert_eq!(is_published, published, "{service} {excluded:?}");
        let problem = problem.into_iter().collect::<Vec<_>>();
        assert_eq!(
            problems(&assignment, "web"),
            problem,
            "{service} {excluded:?}"
        );
    }
}
