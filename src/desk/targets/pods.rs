//! Pods of a target: which of them are ready, and why the others are not.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::lookup::{Pods, list_path, object_path};
use super::ports::{self, Protocol};
use super::reference::Kind;
use crate::desk::api::{Api, ApiError};

/// Maximum number of pods whose state a message lists.
const MAX_LISTED: usize = 5;

/// No pod of a target is ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPod {
    #[error("no pod matches {selector}")]
    None { selector: String },
    #[error("no pod is ready: {}", .0.join(", "))]
    NotReady(Vec<String>),
    #[error("no container of the pod {pod} has a port named {port}")]
    NoPort { pod: String, port: String },
}

impl NoPod {
    pub fn no_port(pod: &str, port: &IntOrString) -> Self {
        Self::NoPort {
            pod: pod.to_owned(),
            port: match port {
                IntOrString::Int(number) => number.to_string(),
                IntOrString::String(name) => name.clone(),
            },
        }
    }
}

/// Lists the pods of a target, ready or not.
///
/// # Errors
/// [`ApiError`]
pub async fn list(api: &Api, namespace: &str, pods: &Pods) -> Result<Vec<Pod>, ApiError> {
    match pods {
        Pods::None => Ok(Vec::new()),
        Pods::Named(name) => match api.get(&object_path(Kind::Pod, namespace, name)).await {
            Ok(pod) => Ok(vec![pod]),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        },
        Pods::Selected(selector) => api.select(&list_path(Kind::Pod, namespace), selector).await,
    }
}

/// Returns true if a pod serves requests.
pub fn is_ready(pod: &Pod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    pod.metadata.deletion_timestamp.is_none()
        && status.phase.as_deref() == Some("Running")
        && has_condition(status, "Ready")
}

fn has_condition(status: &PodStatus, name: &str) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == name && condition.status == "True")
}

/// Returns the error for pods of which none is ready.
pub fn explain(pods: &[Pod], selector: &str) -> NoPod {
    if pods.is_empty() {
        return NoPod::None {
            selector: selector.to_owned(),
        };
    }
    let mut states: Vec<_> = pods.iter().take(MAX_LISTED).map(describe).collect();
    if pods.len() > MAX_LISTED {
        states.push(format!("and {} more", pods.len() - MAX_LISTED));
    }
    NoPod::NotReady(states)
}

/// Returns the name of a pod and the reason why it is not ready.
fn describe(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    format!("{name} ({})", reason(pod))
}

fn reason(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "is being deleted".to_owned();
    }
    let Some(status) = &pod.status else {
        return "has no status".to_owned();
    };
    let init = status.init_container_statuses.iter().flatten();
    let containers = status.container_statuses.iter().flatten();
    let waiting = init.chain(containers).find_map(|container| {
        let reason = container.state.as_ref()?.waiting.as_ref()?.reason.clone()?;
        Some(format!("container {}: {reason}", container.name))
    });
    if let Some(waiting) = waiting {
        return waiting;
    }
    let mut conditions = status.conditions.iter().flatten();
    let unscheduled = conditions.find(|it| it.type_ == "PodScheduled" && it.status == "False");
    if let Some(message) = unscheduled.and_then(|it| it.message.as_deref()) {
        return format!("not scheduled: {message}");
    }
    match status.phase.as_deref() {
        Some("Running") => "not ready".to_owned(),
        Some(phase) => format!("phase {phase}"),
        None => "has no phase".to_owned(),
    }
}

/// Returns the number of the port of a pod that a service names as its target.
///
/// # Errors
/// [`NoPod::NoPort`] for the name of a port that no container has.
pub fn container_port(pod: &Pod, target: &IntOrString) -> Result<u16, NoPod> {
    let found = match target {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let spec = pod.spec.as_ref();
            let ports = spec.map(|spec| ports::of_pod(spec, Protocol::Tcp));
            let ports = ports.unwrap_or_default();
            let named = ports.iter().find(|port| port.name == *name);
            named.map(|port| port.number)
        }
    };
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    found.ok_or_else(|| NoPod::no_port(pod, target))
}

/// Converts a selector to the form of the query parameter `labelSelector`.
pub fn label_selector(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten();
    let mut parts: Vec<_> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    for requirement in selector.match_expressions.iter().flatten() {
        let key = &requirement.key;
        let values = requirement.values.as_deref().unwrap_or_default().join(",");
        parts.push(match &*requirement.operator {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, status: &serde_json::Value) -> Pod {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": status,
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn only_running_pods_with_the_condition_are_ready() {
        let condition = |status: &str| json!([{"type": "Ready", "status": status}]);
        for (status, ready) in [
            (
                json!({"phase": "Running", "conditions": condition("True")}),
                true,
            ),
            (
                json!({"phase": "Running", "conditions": condition("False")}),
                false,
            ),
            (
                json!({"phase": "Succeeded", "conditions": condition("True")}),
                false,
            ),
            (json!({"phase": "Running"}), false),
            (json!({}), false),
        ] {
            assert_eq!(is_ready(&pod("p", &status)), ready, "{status}");
        }
        let mut deleted = pod(
            "p",
            &json!({"phase": "Running", "conditions": condition("True")}),
        );
        deleted.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(!is_ready(&deleted));
    }

    #[test]
    fn says_why_no_pod_is_ready() {
        let waiting = json!({"phase": "Pending", "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff"}},
        }]});
        let unscheduled = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"},
        ]});
        let pods = [
            pod("a", &waiting),
            pod("b", &unscheduled),
            pod("c", &json!({"phase": "Running"})),
            pod("d", &json!({"phase": "Failed"})),
        ];
        assert_eq!(
            explain(&pods, "app=web").to_string(),
            "no pod is ready: a (container c: ImagePullBackOff), \
             b (not scheduled: 0/3 nodes are available), c (not ready), d (phase Failed)"
        );
        assert_eq!(
            explain(&[], "app=web").to_string(),
            "no pod matches app=web"
        );
        let many: Vec<_> = (0..8)
            .map(|n| pod(&n.to_string(), &json!({"phase": "Failed"})))
            .collect();
        assert!(explain(&many, "").to_string().ends_with("and 3 more"));
    }

    #[test]
    fn finds_the_port_of_a_container() {
        let pod = pod("p", &json!({}));
        assert_eq!(container_port(&pod, &IntOrString::Int(81)), Ok(81));
        assert_eq!(
            container_port(&pod, &IntOrString::String("web".into())),
            Ok(8080)
        );
        let error = container_port(&pod, &IntOrString::String("x".into())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no container of the pod p has a port named x"
        );
    }

    #[test]
    fn converts_selectors_to_the_form_of_queries() {
        let selector = json!({"matchLabels": {"app": "web", "tier": "a"}, "matchExpressions": [
            {"key": "k", "operator": "In", "values": ["x", "y"]},
            {"key": "l", "operator": "NotIn", "values": ["z"]},
            {"key": "m", "operator": "Exists"},
            {"key": "n", "operator": "DoesNotExist"},
        ]});
        assert_eq!(
            label_selector(&serde_json::from_value(selector).unwrap()),
            "app=web,tier=a,k in (x,y),l notin (z),m,!n"
        );
    }
}
