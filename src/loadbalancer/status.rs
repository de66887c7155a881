//! Status of Services: the difference between the present and the desired one, as a patch for the
//! API, with the events that announce it.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::assign::Outcome;
use super::events::{self, EventType, Notice};
use super::service::{CONDITION, Condition, FINALIZER, Ingress, Service};

/// Condition of KEP-1435: at least one port is in error.
const PORTS_CONDITION: &str = "LoadBalancerPortsError";
/// Reason of the condition of a Service whose ports are all served.
const READY: &str = "Ready";

/// Change of a Service in the API.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub patch: Patch,
    /// Events that announce it, in their order.
    pub notices: Vec<Notice>,
}

/// Patch of the subresource `status`, through which metadata can be changed as well.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// The whole desired status, applied by server-side apply. What it lacks is removed, unless
    /// another writer has set it.
    Status(Value),
    /// JSON merge patch of the finalizers, for one version of the Service.
    Finalizers(Value),
}

/// Settings of the status.
#[derive(Clone, Debug)]
pub struct Settings {
    pub class: String,
    /// Adds the finalizer of KEP-1959 to the Services of the class.
    pub finalizer: bool,
}

/// Returns the next change that a Service needs, if it needs one. `outcome` is `None` for a Service
/// that is not of the class, or is being deleted.
pub fn change(
    service: &Service,
    outcome: Option<&Outcome>,
    settings: &Settings,
    now: Timestamp,
) -> Option<Change> {
    let is_of_class = service.is_of_class(&settings.class);
    if !is_of_class && !service.is_marked() {
        return None;
    }
    // Another controller has the same finalizer on Services of its class.
    let is_foreign = !is_of_class && service.spec.r#type == "LoadBalancer";
    let has_finalizer = service.has_finalizer() && !is_foreign;
    match outcome {
        // After the condition, by which a Service that leaves the class is recognized.
        Some(_) if settings.finalizer && !has_finalizer && service.is_marked() => {
            let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
            finalizers.push(FINALIZER.to_owned());
            Some(silent(finalizers_patch(service, &finalizers)))
        }
        // That of another configuration, which would block the deletion after an uninstall.
        Some(_) if !settings.finalizer && has_finalizer => Some(silent(without_finalizer(service))),
        Some(outcome) => status_change(service, outcome, now),
        // Listeners are closed already. Nothing else may be written to an object that is being
        // deleted.
        None if service.is_deleting() => has_finalizer.then(|| Change {
            patch: without_finalizer(service),
            notices: vec![DELETING, DELETED],
        }),
        None if has_finalizer => Some(silent(without_finalizer(service))),
        None => service.is_marked().then(|| Change {
            patch: status_patch(service, &[], &[]),
            notices: vec![DELETING, DELETED],
        }),
    }
}

const ENSURING: Notice = Notice::fixed("EnsuringLoadBalancer", "Opening the listeners");
const DELETING: Notice = Notice::fixed("DeletingLoadBalancer", "Closing the listeners");
const DELETED: Notice = Notice::fixed("DeletedLoadBalancer", "Closed the listeners");

fn silent(patch: Patch) -> Change {
    Change {
        patch,
        notices: Vec::new(),
    }
}

fn status_change(service: &Service, outcome: &Outcome, now: Timestamp) -> Option<Change> {
    let desired = conditions(service, outcome, now);
    let is_equal = [CONDITION, PORTS_CONDITION].iter().all(|r#type| {
        let mut desired = desired.iter();
        service.condition(r#type) == desired.find(|condition| condition.r#type == **r#type)
    });
    if is_equal && service.status.load_balancer.ingress == outcome.ingress {
        return None;
    }
    let ensuring = (!service.is_marked()).then_some(ENSURING);
    let notices = ensuring
        .into_iter()
        .chain(notice(service, outcome, &desired));
    Some(Change {
        patch: status_patch(service, &outcome.ingress, &desired),
        notices: notices.collect(),
    })
}

/// Returns the conditions for a result. The time of a condition changes with its status alone.
fn conditions(service: &Service, outcome: &Outcome, now: Timestamp) -> Vec<Condition> {
    let problems = &outcome.problems;
    let message = message(outcome);
    let condition = |r#type: &str, status: &str, reason: &str| {
        let present = service.condition(r#type);
        let since = present.filter(|present| present.status == status);
        let since = since.and_then(|present| present.last_transition_time);
        Condition {
            r#type: r#type.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.clone(),
            last_transition_time: since.or(Some(now)),
        }
    };
    let (status, reason) = match problems.first() {
        None => ("True", READY),
        Some(problem) => ("False", problem.reason()),
    };
    let mut conditions = vec![condition(CONDITION, status, reason)];
    let mut ports = outcome.ingress.iter().flat_map(|ingress| &ingress.ports);
    if ports.any(|port| port.error.is_some()) {
        conditions.push(condition(PORTS_CONDITION, "True", reason));
    }
    conditions
}

/// Returns the message of the conditions: who can use the ports, and all problems. It is cut.
fn message(outcome: &Outcome) -> String {
    let clients = clients(outcome);
    let mut parts = Vec::new();
    if outcome.problems.is_empty() {
        parts.push(format!("all ports are served; {clients}"));
    } else if !outcome.ingress.is_empty() {
        parts.push(format!(
            "not all ports are served; the others are {clients}"
        ));
    }
    parts.extend(outcome.problems.iter().map(ToString::to_string));
    let mut message = parts.join("; ");
    events::cut(&mut message);
    message
}

/// Returns who can use the listeners. They are public by definition.
fn clients(outcome: &Outcome) -> &'static str {
    if outcome.is_public {
        "open to every client"
    } else {
        "open to the clients in the source ranges"
    }
}

/// Returns the event that announces a result. `None` if only its form has changed.
fn notice(service: &Service, outcome: &Outcome, desired: &[Condition]) -> Option<Notice> {
    let present = service.condition(CONDITION);
    let ingress = &outcome.ingress;
    let has_moved = service.status.load_balancer.ingress != *ingress;
    if !outcome.problems.is_empty() {
        let wanted = desired.first()?;
        if present.is_some_and(|present| present.message == wanted.message) && !has_moved {
            return None;
        }
        let mut problems = outcome.problems.iter();
        let reason = if ingress.is_empty() && problems.all(super::request::Problem::is_unavailable)
        {
            "UnAvailableLoadBalancer"
        } else {
            "SyncLoadBalancerFailed"
        };
        return Some(Notice {
            r#type: EventType::Warning,
            reason,
            message: wanted.message.clone().into(),
        });
    }
    let was_ready = present.is_some_and(|present| present.status == "True");
    let was_same = present.map(|it| &it.message) == desired.first().map(|it| &it.message);
    if was_ready && was_same && !has_moved {
        return None;
    }
    let reason = if was_ready {
        "UpdatedLoadBalancer"
    } else {
        "EnsuredLoadBalancer"
    };
    let mut message = format!("Listening at {}; {}", listed(ingress), clients(outcome));
    events::cut(&mut message);
    Some(Notice {
        r#type: EventType::Normal,
        reason,
        message: message.into(),
    })
}

/// Lists addresses and ports, as `192.0.2.1 (80/TCP, 53/UDP)`.
fn listed(ingress: &[Ingress]) -> String {
    let texts = ingress.iter().map(|ingress| {
        let address = ingress.ip.as_deref().or(ingress.hostname.as_deref());
        let ports = ingress.ports.iter().filter(|port| port.error.is_none());
        let ports: Vec<_> = ports
            .map(|port| format!("{}/{}", port.port, port.protocol))
            .collect();
        format!("{} ({})", address.unwrap_or_default(), ports.join(", "))
    });
    texts.collect::<Vec<_>>().join(", ")
}

fn status_patch(service: &Service, ingress: &[Ingress], conditions: &[Condition]) -> Patch {
    let meta = &service.metadata;
    let mut status = json!({});
    // An empty list would be owned by the bastion, as if it were a value.
    if !ingress.is_empty() {
        status["loadBalancer"] = json!({"ingress": ingress});
    }
    if !conditions.is_empty() {
        status["conditions"] = json!(conditions);
    }
    Patch::Status(json!({
        "apiVersion": "v1",
        "kind": "Service",
        // The UID rejects the patch for another Service of this name.
        "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
        "status": status,
    }))
}

fn without_finalizer(service: &Service) -> Patch {
    let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    finalizers_patch(service, &finalizers)
}

fn finalizers_patch(service: &Service, finalizers: &[String]) -> Patch {
    let meta = &service.metadata;
    Patch::Finalizers(json!({"metadata": {
        // The list is replaced as a whole, so it must be that of this version.
        "resourceVersion": meta.resource_version,
        "uid": meta.uid,
        "finalizers": finalizers,
    }}))
}

#[cfg(test)]
mod tests;
