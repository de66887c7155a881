//! Services that want the same port of an address.

use super::*;

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

/// Two Services that claim the ports 80 and 81 with the policy `Local`, the younger one first.
fn with_local_endpoints() -> Setting {
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let mut setting = Setting::new().with("young", 9, &["80/TCP", "81/TCP"], &local);
    for service in ["young", "old"] {
        let key = ObjectKey::new("shop", service);
        setting.slices.insert(key, slice(service, "node-1"));
    }
    setting.step();
    setting.add("old", 1, &["80/TCP", "81/TCP"], &local);
    setting.step();
    setting
}

#[test]
fn holder_that_is_not_served_keeps_its_ports_after_a_restart() {
    let held = ["192.0.2.1:80/TCP → young:80", "192.0.2.1:81/TCP → young:81"];
    let failures: [(fn(&mut Setting), _); 3] = [
        // Of the waiting Service as well.
        (|setting| setting.slices.clear(), "NoLocalEndpoint"),
        (
            |setting| {
                let excluded = node("192.0.2.1", true);
                setting.nodes.insert("node-1".into(), excluded);
            },
            "NodesExcluded",
        ),
        (
            |setting| {
                let listeners = setting.holders.keys();
                setting.failures = listeners.map(|key| (*key, "in use".into())).collect();
            },
            "BindFailed",
        ),
    ];
    for (fail, reason) in failures {
        let mut setting = with_local_endpoints();
        let served = (setting.slices.clone(), setting.nodes.clone());
        fail(&mut setting);
        let unserved = setting.step();
        assert_eq!(problems(&unserved, "young").first(), Some(&reason));
        assert_eq!(ingress(&unserved, "young"), [""; 0], "{reason}");
        setting.holders.clear();
        setting.step();
        (setting.slices, setting.nodes) = served;
        setting.failures.clear();
        assert_eq!(listeners(&setting.step()), held, "{reason}");
    }
}

#[test]
fn new_service_takes_no_port_of_one_without_address_after_a_restart() {
    let mut setting = Setting::new().with("young", 9, &["80/TCP"], &json!({}));
    setting.step();
    let published = std::mem::take(&mut setting.published);
    setting.step();
    setting.holders.clear();
    setting.step();
    setting.published = published;
    setting.add("old", 1, &["80/TCP"], &json!({}));
    assert_eq!(listeners(&setting.step()), ["192.0.2.1:80/TCP → young:80"]);
}

#[test]
fn service_that_is_not_served_takes_no_port_of_another_after_a_restart() {
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let mut setting = Setting::new()
        .with("young", 9, &["80/TCP"], &json!({}))
        .with("old", 1, &["81/TCP"], &local);
    let unserved = setting.step();
    assert_eq!(problems(&unserved, "old"), ["NoLocalEndpoint"]);
    // Its status is that of its previous ports.
    let key = ObjectKey::new("shop", "old");
    let status = setting.services[&key].status.clone();
    setting.add("old", 1, &["80/TCP", "81/TCP"], &local);
    let service = setting.services.get_mut(&key).unwrap();
    Arc::get_mut(service).unwrap().status = status;
    setting.holders.clear();
    assert_eq!(
        listeners(&setting.step()),
        ["192.0.2.1:80/TCP → young:80", "192.0.2.1:81/TCP → old:81"]
    );
}

#[test]
fn port_that_could_not_be_bound_stays_with_its_holder_after_a_restart() {
    let mut setting = Setting::new()
        .with("other", 5, &["82/TCP"], &json!({}))
        .with("young", 9, &["80/TCP", "81/TCP", "82/TCP"], &json!({}));
    setting.step();
    let key = ListenerKey {
        address: "192.0.2.1".parse().unwrap(),
        port: 81,
        protocol: Protocol::Tcp,
    };
    setting.failures.insert(key, "in use".into());
    setting.add("old", 1, &["81/TCP", "82/TCP"], &json!({}));
    let assignment = setting.step();
    assert_eq!(
        ingress(&assignment, "young"),
        ["192.0.2.1 80/TCP 81/TCP=BindFailed 82/TCP=PortConflict"]
    );
    setting.holders.clear();
    assert_eq!(
        listeners(&setting.step()),
        [
            "192.0.2.1:80/TCP → young:80",
            "192.0.2.1:81/TCP → young:81",
            "192.0.2.1:82/TCP → other:82"
        ]
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

#[test]
fn holder_keeps_its_port_while_the_bastion_has_no_address() {
    for request in [json!({}), at("192.0.2.1")] {
        let mut setting = Setting::new().with("young", 9, &["80/TCP", "81/TCP"], &request);
        setting.step();
        setting.add("old", 1, &["80/TCP", "81/TCP"], &json!({}));
        let published = std::mem::take(&mut setting.published);
        let without = setting.step();
        assert_eq!(problems(&without, "young"), ["NoAddress"]);
        assert!(without.listeners.is_empty());
        // It keeps the ports that it still has.
        setting.add("young", 9, &["80/TCP"], &request);
        setting.step();
        setting.published = published;
        assert_eq!(
            listeners(&setting.step()),
            ["192.0.2.1:80/TCP → young:80", "192.0.2.1:81/TCP → old:81"],
            "{request}"
        );
    }
}
