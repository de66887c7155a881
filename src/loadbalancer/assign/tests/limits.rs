//! Numbers of listeners.

use super::*;

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
