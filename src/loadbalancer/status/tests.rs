use super::super::listener::{ListenerKey, Protocol};
use super::super::request::Problem;
use super::super::service::PortStatus;
use super::*;
use crate::cluster::ObjectKey;

fn service(more: &Value) -> Service {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "1", "resourceVersion": "7"},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "kube-bastion.dev/bastion"},
    });
    for (name, value) in more.as_object().unwrap() {
        let target = object[name].as_object_mut();
        match target {
            Some(target) => target.extend(value.as_object().unwrap().clone()),
            None => object[name] = value.clone(),
        }
    }
    serde_json::from_value(object).unwrap()
}

fn ingress(error: Option<&str>) -> Vec<Ingress> {
    let port = |port, error: Option<&str>| PortStatus {
        port,
        protocol: "TCP".into(),
        error: error.map(Into::into),
    };
    vec![Ingress {
        ip: Some("192.0.2.1".into()),
        ip_mode: Some("Proxy".into()),
        ports: vec![port(80, None), port(81, error)],
        ..Ingress::default()
    }]
}

fn served() -> Outcome {
    Outcome {
        ingress: ingress(None),
        problems: Vec::new(),
        is_public: true,
    }
}

fn conflict() -> Problem {
    Problem::PortConflict {
        key: ListenerKey {
            address: "192.0.2.1".parse().unwrap(),
            port: 81,
            protocol: Protocol::Tcp,
        },
        holder: ObjectKey::new("shop", "other"),
    }
}

fn in_conflict() -> Outcome {
    Outcome {
        ingress: ingress(Some("kube-bastion.dev/PortConflict")),
        problems: vec![conflict()],
        is_public: true,
    }
}

fn settings(finalizer: bool) -> Settings {
    Settings {
        class: "kube-bastion.dev/bastion".into(),
        finalizer,
    }
}

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Applies a status patch as the API server does for fields that the bastion owns.
fn apply(service: &Service, change: &Change) -> Service {
    let Patch::Status(patch) = &change.patch else {
        panic!("{change:?}");
    };
    let mut applied = service.clone();
    applied.status = serde_json::from_value(patch["status"].clone()).unwrap();
    applied
}

fn reasons(change: &Change) -> Vec<&'static str> {
    change.notices.iter().map(|notice| notice.reason).collect()
}

#[test]
fn writes_status_once() {
    let new = service(&json!({}));
    let change = change(&new, Some(&served()), &settings(false), NOW).unwrap();
    assert_eq!(
        change.patch,
        Patch::Status(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop", "uid": "1"},
            "status": {
                "loadBalancer": {"ingress": [{
                    "ip": "192.0.2.1",
                    "ipMode": "Proxy",
                    "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}],
                }]},
                "conditions": [{
                    "type": "kube-bastion.dev/LoadBalancerReady",
                    "status": "True",
                    "reason": "Ready",
                    "message": "all ports are served; open to every client",
                    "lastTransitionTime": "1970-01-01T00:00:00Z",
                }],
            },
        }))
    );
    assert_eq!(
        reasons(&change),
        ["EnsuringLoadBalancer", "EnsuredLoadBalancer"]
    );
    let message = change.notices[1].message.to_string();
    assert_eq!(
        message,
        "Listening at 192.0.2.1 (80/TCP, 81/TCP); open to every client"
    );
    let written = apply(&new, &change);
    assert_eq!(
        super::change(&written, Some(&served()), &settings(false), Timestamp::MAX),
        None
    );
}

#[test]
fn announces_each_change_of_the_result_once() {
    let unserved = |problem: Problem| Outcome {
        problems: vec![problem],
        ..Outcome::default()
    };
    let steps = [
        (
            in_conflict(),
            &["EnsuringLoadBalancer", "SyncLoadBalancerFailed"][..],
        ),
        (served(), &["EnsuredLoadBalancer"]),
        (
            Outcome {
                ingress: Vec::new(),
                ..in_conflict()
            },
            &["SyncLoadBalancerFailed"],
        ),
        (
            unserved(Problem::NoLocalEndpoint),
            &["UnAvailableLoadBalancer"],
        ),
        (served(), &["EnsuredLoadBalancer"]),
        (
            Outcome {
                ingress: ingress(None)[..1].iter().cloned().map(shortened).collect(),
                ..served()
            },
            &["UpdatedLoadBalancer"],
        ),
        (served(), &["UpdatedLoadBalancer"]),
        (
            Outcome {
                is_public: false,
                ..served()
            },
            &["UpdatedLoadBalancer"],
        ),
    ];
    let mut present = service(&json!({}));
    for (outcome, expected) in steps {
        let change = change(&present, Some(&outcome), &settings(false), NOW).unwrap();
        assert_eq!(reasons(&change), expected, "{outcome:?}");
        present = apply(&present, &change);
        assert_eq!(
            super::change(&present, Some(&outcome), &settings(false), NOW),
            None
        );
    }
}

fn shortened(mut ingress: Ingress) -> Ingress {
    ingress.ports.truncate(1);
    ingress
}

#[test]
fn condition_of_ports_exists_while_a_port_is_in_error() {
    let mut present = service(&json!({}));
    for (outcome, types) in [
        (
            in_conflict(),
            &[
                "kube-bastion.dev/LoadBalancerReady",
                "LoadBalancerPortsError",
            ][..],
        ),
        (served(), &["kube-bastion.dev/LoadBalancerReady"]),
    ] {
        let change = change(&present, Some(&outcome), &settings(false), NOW).unwrap();
        present = apply(&present, &change);
        let conditions = present.status.conditions.iter();
        assert_eq!(
            conditions
                .map(|condition| &*condition.r#type)
                .collect::<Vec<_>>(),
            types
        );
    }
}

#[test]
fn time_of_a_condition_changes_with_its_status() {
    let later = Timestamp::from_second(60).unwrap();
    let mut present = service(&json!({}));
    for (outcome, now, since) in [
        (in_conflict(), NOW, NOW),
        (
            Outcome {
                problems: vec![conflict(), Problem::NoLocalEndpoint],
                ..in_conflict()
            },
            later,
            NOW,
        ),
        (served(), later, later),
    ] {
        let change = change(&present, Some(&outcome), &settings(false), now).unwrap();
        present = apply(&present, &change);
        let condition = present.condition(CONDITION).unwrap();
        assert_eq!(condition.last_transition_time, Some(since));
    }
}

#[test]
fn removes_its_status_from_services_that_left() {
    let marked = apply(
        &service(&json!({})),
        &change(&service(&json!({})), Some(&served()), &settings(false), NOW).unwrap(),
    );
    let change = change(&marked, None, &settings(false), NOW).unwrap();
    let Patch::Status(patch) = &change.patch else {
        panic!("{change:?}");
    };
    assert_eq!(patch["status"], json!({}));
    assert_eq!(
        reasons(&change),
        ["DeletingLoadBalancer", "DeletedLoadBalancer"]
    );
}

#[test]
fn leaves_foreign_services_alone() {
    let other = json!({"loadBalancerClass": "other.example/lb"});
    // One that has left the class of another controller, which has not removed its finalizer yet.
    let former = json!({"type": "ClusterIP", "loadBalancerClass": null});
    for (spec, metadata) in [
        (&other, json!({})),
        (&other, json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        (&former, json!({})),
        (
            &former,
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        ),
    ] {
        let mut metadata = metadata;
        metadata["finalizers"] = json!([FINALIZER]);
        let foreign = service(&json!({
            "spec": spec,
            "metadata": metadata,
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}},
        }));
        for finalizer in [false, true] {
            let change = change(&foreign, None, &settings(finalizer), NOW);
            assert_eq!(change, None, "{spec} {metadata}");
        }
    }
}

#[test]
fn removes_nothing_but_its_status_from_services_of_another_class() {
    let condition = json!({"type": CONDITION, "status": "True"});
    for (spec, removes_finalizer) in [
        (json!({"loadBalancerClass": "other.example/lb"}), false),
        (
            json!({"type": "ClusterIP", "loadBalancerClass": null}),
            true,
        ),
    ] {
        let service = service(&json!({
            "spec": spec,
            "metadata": {"finalizers": [FINALIZER]},
            "status": {"conditions": [condition]},
        }));
        let change = change(&service, None, &settings(true), NOW).unwrap();
        let is_of_finalizers = matches!(change.patch, Patch::Finalizers(_));
        assert_eq!(is_of_finalizers, removes_finalizer, "{spec}");
    }
}

#[test]
fn adds_and_removes_its_finalizer_only() {
    let with = |finalizers: Value, deleting: Value| {
        let mut metadata = json!({"finalizers": finalizers});
        if !deleting.is_null() {
            metadata["deletionTimestamp"] = deleting;
        }
        let marker = json!([{"type": CONDITION, "status": "False"}]);
        service(&json!({"metadata": metadata, "status": {"conditions": marker}}))
    };
    let deleting = || json!("2026-01-01T00:00:00Z");
    let outcome = served();
    for (service, outcome, finalizer, expected) in [
        (
            with(json!(["a/b"]), Value::Null),
            Some(&outcome),
            true,
            Some(json!(["a/b", FINALIZER])),
        ),
        (
            with(json!([FINALIZER, "a/b"]), Value::Null),
            Some(&outcome),
            false,
            Some(json!(["a/b"])),
        ),
        // Neither a status nor a finalizer is written once the deletion has begun.
        (with(json!(["a/b"]), deleting()), None, true, None),
        (
            with(json!(["a/b", FINALIZER]), deleting()),
            None,
            true,
            Some(json!(["a/b"])),
        ),
        (
            with(json!([FINALIZER]), deleting()),
            None,
            false,
            Some(json!([])),
        ),
    ] {
        let change = change(&service, outcome, &settings(finalizer), NOW);
        let finalizers = change.map(|change| match change.patch {
            Patch::Finalizers(patch) => {
                assert_eq!(patch["metadata"]["resourceVersion"], "7");
                patch["metadata"]["finalizers"].clone()
            }
            Patch::Status(patch) => panic!("{patch}"),
        });
        assert_eq!(finalizers, expected, "{service:?}");
    }
}

/// A Service that leaves the class is recognized by its condition, so that the finalizer is removed.
#[test]
fn finalizer_is_added_after_the_condition() {
    let change = change(&service(&json!({})), Some(&served()), &settings(true), NOW).unwrap();
    assert!(matches!(change.patch, Patch::Status(_)), "{change:?}");
}

#[test]
fn messages_are_cut() {
    let problems = (0..100).map(|number| Problem::BindFailed {
        key: ListenerKey {
            address: "192.0.2.1".parse().unwrap(),
            port: number,
            protocol: Protocol::Udp,
        },
        reason: "ä".repeat(50),
    });
    let outcome = Outcome {
        problems: problems.collect(),
        ..in_conflict()
    };
    let change = change(&service(&json!({})), Some(&outcome), &settings(false), NOW).unwrap();
    let notice = change.notices.last().unwrap();
    assert!((1000..=1024).contains(&notice.message.len()));
    let Patch::Status(patch) = &change.patch else {
        panic!("{change:?}");
    };
    assert_eq!(patch["status"]["conditions"][0]["message"], *notice.message);
}
