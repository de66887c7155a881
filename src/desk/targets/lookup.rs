//! Look-up of the objects that the arguments name.

use http::StatusCode;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    Node, Pod, PodSpec, PodTemplateSpec, ReplicationController, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use super::pods;
use super::ports::{self, Port, PortError, Protocol};
use super::reference::{Kind, Reference};
use crate::desk::api::{Api, ApiError, MAX_OBJECTS, escape};
use crate::model::similar::similar;

/// Object of the cluster with its ports and pods.
#[derive(Clone, Debug)]
pub struct Object {
    /// TCP ports.
    pub ports: Vec<Port>,
    pub udp_ports: Vec<Port>,
    /// Ports that are not declared can be used, too, as those of pods.
    pub has_other_ports: bool,
    /// Service without a cluster IP.
    pub is_headless: bool,
    pub pods: Pods,
}

/// Object that was found, and its port.
#[derive(Clone, Debug)]
pub struct Found {
    pub kind: Kind,
    pub name: String,
    /// Empty for nodes.
    pub namespace: String,
    /// `None` for the kubelet's own port of a node.
    pub port: Option<Port>,
    pub pods: Pods,
}

/// Pods that serve a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pods {
    Named(String),
    /// Value of the query parameter `labelSelector`.
    Selected(String),
    /// A node, or a service whose endpoints are not selected by labels.
    None,
}

/// Reason why an object cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("{kind} {name:?} not found in namespace {namespace:?}{hint}")]
    NotFound {
        kind: &'static str,
        name: String,
        namespace: String,
        hint: String,
    },
    #[error("node {name:?} not found{hint}")]
    NodeNotFound { name: String, hint: String },
    #[error("{object} {source}")]
    Port {
        object: Reference,
        source: PortError,
    },
    #[error("{0} is of type ExternalName, which has no endpoints in the cluster")]
    ExternalName(Reference),
    #[error("port {port:?} of {object} is a name, and the user may not read it; use its number")]
    PortName { object: Reference, port: String },
    #[error("cannot read {object}: {source}")]
    Api {
        object: Reference,
        source: Box<ApiError>,
    },
}

impl LookupError {
    /// Returns true if the server serves no look-ups to this user. The user may have the right to
    /// the subresource `proxy` alone, and a bastion may serve nothing else.
    pub fn is_unavailable(&self) -> bool {
        let Self::Api { source, .. } = self else {
            return false;
        };
        source.is_no_route()
            || matches!(&**source, ApiError::Status { code, .. } if *code == StatusCode::FORBIDDEN)
    }
}

/// Names of a list of objects.
#[derive(Debug, Deserialize)]
struct Names {
    items: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    metadata: NamedMetadata,
}

#[derive(Debug, Deserialize)]
struct NamedMetadata {
    name: String,
}

/// Selector and ports of a workload.
struct Workload {
    selector: LabelSelector,
    template: PodTemplateSpec,
}

impl Object {
    /// Looks up an object in a namespace.
    ///
    /// # Errors
    /// [`LookupError`], with near names for an object that does not exist.
    pub async fn look_up(
        api: &Api,
        namespace: &str,
        reference: &Reference,
    ) -> Result<Self, LookupError> {
        let kind = reference.kind;
        let path = object_path(kind, namespace, &reference.name);
        let looked_up = match kind {
            Kind::Service => {
                let service: Result<Service, _> = api.get(&path).await;
                service.map(|service| Self::of_service(service, reference))
            }
            Kind::Pod => {
                let pod: Result<Pod, _> = api.get(&path).await;
                let pods = Pods::Named(reference.name.clone());
                pod.map(|pod| Ok(Self::of_pod(pod.spec.as_ref(), pods)))
            }
            Kind::Node => {
                let node: Result<Node, _> = api.get(&path).await;
                node.map(|_| Ok(Self::of_pod(None, Pods::None)))
            }
            Kind::Deployment
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::ReplicaSet
            | Kind::Job
            | Kind::ReplicationController => workload(api, kind, &path).await.map(|workload| {
                let pods = Pods::Selected(pods::label_selector(&workload.selector));
                Ok(Self::of_pod(workload.template.spec.as_ref(), pods))
            }),
        };
        match looked_up {
            Ok(found) => found,
            Err(error) if error.is_not_found() && !error.is_no_route() => {
                Err(not_found(api, namespace, reference).await)
            }
            Err(source) => Err(LookupError::Api {
                object: reference.clone(),
                source: Box::new(source),
            }),
        }
    }

    pub fn of_service(service: Service, reference: &Reference) -> Result<Self, LookupError> {
        let spec = service.spec.unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            return Err(LookupError::ExternalName(reference.clone()));
        }
        let ports = ports::of_service(&spec, Protocol::Tcp);
        let udp_ports = ports::of_service(&spec, Protocol::Udp);
        let selector = spec.selector.filter(|selector| !selector.is_empty());
        let pods = selector.map_or(Pods::None, |labels| {
            Pods::Selected(pods::label_selector(&LabelSelector {
                match_labels: Some(labels),
                match_expressions: None,
            }))
        });
        Ok(Self {
            ports,
            udp_ports,
            has_other_ports: false,
            is_headless: spec.cluster_ip.as_deref() == Some("None"),
            pods,
        })
    }

    pub fn of_pod(spec: Option<&PodSpec>, pods: Pods) -> Self {
        let ports = |protocol| spec.map(|spec| ports::of_pod(spec, protocol));
        Self {
            ports: ports(Protocol::Tcp).unwrap_or_default(),
            udp_ports: ports(Protocol::Udp).unwrap_or_default(),
            has_other_ports: true,
            is_headless: false,
            pods,
        }
    }
}

impl Found {
    /// Looks up an object in a namespace. `port` is used if the argument has none.
    ///
    /// # Errors
    /// [`LookupError`], with near names for an object that does not exist, and the ports to choose
    /// from.
    pub async fn look_up(
        api: &Api,
        namespace: &str,
        reference: &Reference,
        port: Option<&str>,
    ) -> Result<Self, LookupError> {
        let object = Object::look_up(api, namespace, reference).await?;
        let requested = reference.port.as_deref().or(port);
        let is_node = reference.kind == Kind::Node;
        let port = if is_node && requested.is_none() {
            None
        } else {
            let chosen = ports::choose(&object.ports, requested, object.has_other_ports);
            Some(chosen.map_err(|source| LookupError::Port {
                object: reference.clone(),
                source,
            })?)
        };
        Ok(Self {
            kind: reference.kind,
            name: reference.name.clone(),
            namespace: if is_node { "" } else { namespace }.to_owned(),
            port,
            pods: object.pods,
        })
    }

    /// Returns the target that an argument names, if its port needs no look-up.
    ///
    /// # Errors
    /// [`LookupError::PortName`]
    pub fn unverified(
        namespace: &str,
        reference: &Reference,
        port: Option<&str>,
    ) -> Result<Self, LookupError> {
        let requested = reference.port.as_deref().or(port);
        let port = requested.map(|port| {
            let number = port.parse().ok().filter(|number| *number > 0);
            number.map(Port::new).ok_or_else(|| LookupError::PortName {
                object: reference.clone(),
                port: port.to_owned(),
            })
        });
        Ok(Self {
            kind: reference.kind,
            name: reference.name.clone(),
            namespace: namespace.to_owned(),
            port: port.transpose()?,
            pods: Pods::None,
        })
    }
}

async fn workload(api: &Api, kind: Kind, path: &str) -> Result<Workload, ApiError> {
    let (selector, template) = match kind {
        Kind::StatefulSet => {
            let set: StatefulSet = api.get(path).await?;
            let spec = set.spec;
            (spec.selector, Some(spec.template))
        }
        Kind::DaemonSet => {
            let set: DaemonSet = api.get(path).await?;
            let spec = set.spec;
            (spec.selector, Some(spec.template))
        }
        Kind::ReplicaSet => {
            let set: ReplicaSet = api.get(path).await?;
            let spec = set.spec;
            (spec.selector, spec.template)
        }
        Kind::Job => {
            let job: Job = api.get(path).await?;
            let spec = job.spec.unwrap_or_default();
            (spec.selector.unwrap_or_default(), Some(spec.template))
        }
        Kind::ReplicationController => {
            let controller: ReplicationController = api.get(path).await?;
            let spec = controller.spec.unwrap_or_default();
            let selector = LabelSelector {
                match_labels: spec.selector,
                match_expressions: None,
            };
            (selector, spec.template)
        }
        Kind::Deployment | Kind::Service | Kind::Pod | Kind::Node => {
            let deployment: Deployment = api.get(path).await?;
            let spec = deployment.spec;
            (spec.selector, Some(spec.template))
        }
    };
    Ok(Workload {
        selector,
        template: template.unwrap_or_default(),
    })
}

/// Returns the path of the objects of a kind.
pub fn list_path(kind: Kind, namespace: &str) -> String {
    match kind {
        Kind::Node => format!("{}/{}", kind.api(), kind.plural()),
        _ => format!(
            "{}/namespaces/{}/{}",
            kind.api(),
            escape(namespace),
            kind.plural()
        ),
    }
}

pub fn object_path(kind: Kind, namespace: &str, name: &str) -> String {
    format!("{}/{}", list_path(kind, namespace), escape(name))
}

/// Returns the error for an object that does not exist, with those that do if the user may list
/// them.
async fn not_found(api: &Api, namespace: &str, reference: &Reference) -> LookupError {
    let kind = reference.kind;
    let path = format!("{}?limit={MAX_OBJECTS}", list_path(kind, namespace));
    let names: Result<Names, _> = api.get(&path).await;
    let names: Vec<_> = names
        .map(|names| names.items.into_iter().map(|item| item.metadata.name))
        .into_iter()
        .flatten()
        .collect();
    let hint = hint(&reference.name, &names, kind);
    let name = reference.name.clone();
    if kind == Kind::Node {
        return LookupError::NodeNotFound { name, hint };
    }
    LookupError::NotFound {
        kind: kind.singular(),
        name,
        namespace: namespace.to_owned(),
        hint,
    }
}

/// Maximum number of names that an error lists.
const MAX_LISTED: usize = 8;

fn hint(name: &str, names: &[String], kind: Kind) -> String {
    let candidates: Vec<_> = names.iter().map(String::as_str).collect();
    if let Some(near) = similar(name, &candidates) {
        return format!("; did you mean {near:?}?");
    }
    match names.len() {
        0 => String::new(),
        1..=MAX_LISTED => format!("; its {}: {}", kind.plural(), names.join(", ")),
        count => format!(
            "; its {}: {} and {} more",
            kind.plural(),
            names[..MAX_LISTED].join(", "),
            count - MAX_LISTED
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_has_the_near_name_or_the_first_ones() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (name, existing, expected) in [
            (
                "webb",
                names(&["web", "api"]),
                "; did you mean \"web\"?".to_owned(),
            ),
            (
                "x",
                names(&["web", "api"]),
                "; its services: web, api".to_owned(),
            ),
            ("x", names(&[]), String::new()),
            (
                "x",
                names(&["a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9"]),
                "; its services: a1, a2, a3, a4, a5, a6, a7, a8 and 1 more".to_owned(),
            ),
        ] {
            assert_eq!(hint(name, &existing, Kind::Service), expected);
        }
    }

    #[test]
    fn paths_have_the_group_and_the_namespace_of_the_kind() {
        for (kind, expected) in [
            (Kind::Service, "/api/v1/namespaces/a%2Fb/services/w"),
            (Kind::Node, "/api/v1/nodes/w"),
            (
                Kind::Deployment,
                "/apis/apps/v1/namespaces/a%2Fb/deployments/w",
            ),
            (Kind::Job, "/apis/batch/v1/namespaces/a%2Fb/jobs/w"),
        ] {
            assert_eq!(object_path(kind, "a/b", "w"), expected);
        }
    }
}
