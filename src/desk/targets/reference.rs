//! Arguments that name targets: `TYPE/NAME`, with an optional port.

use std::fmt;
use std::str::FromStr;

use crate::model::quote::GoQuoted;
use crate::model::similar::similar;

/// Kind of an object that commands reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Service,
    Pod,
    Node,
    Deployment,
    StatefulSet,
    DaemonSet,
    ReplicaSet,
    Job,
    ReplicationController,
}

/// Names of the kinds as kubectl accepts them: the singular, the plural, and the short ones.
const NAMES: [(Kind, &str, &str, &[&str]); 9] = [
    (Kind::Service, "service", "services", &["svc"]),
    (Kind::Pod, "pod", "pods", &["po"]),
    (Kind::Node, "node", "nodes", &["no"]),
    (Kind::Deployment, "deployment", "deployments", &["deploy"]),
    (Kind::StatefulSet, "statefulset", "statefulsets", &["sts"]),
    (Kind::DaemonSet, "daemonset", "daemonsets", &["ds"]),
    (Kind::ReplicaSet, "replicaset", "replicasets", &["rs"]),
    (Kind::Job, "job", "jobs", &[]),
    (
        Kind::ReplicationController,
        "replicationcontroller",
        "replicationcontrollers",
        &["rc"],
    ),
];

impl Kind {
    pub fn singular(self) -> &'static str {
        self.names().1
    }

    /// Returns the plural, as in the paths of the API.
    pub fn plural(self) -> &'static str {
        self.names().2
    }

    /// Returns the path of the API group.
    pub fn api(self) -> &'static str {
        match self {
            Self::Service | Self::Pod | Self::Node | Self::ReplicationController => "/api/v1",
            Self::Job => "/apis/batch/v1",
            Self::Deployment | Self::StatefulSet | Self::DaemonSet | Self::ReplicaSet => {
                "/apis/apps/v1"
            }
        }
    }

    fn names(self) -> (Self, &'static str, &'static str, &'static [&'static str]) {
        NAMES[self as usize]
    }

    /// Parses the name of a type, with the API group or without, such as `deployments.apps`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (name, group) = text.split_once('.').unwrap_or((&text, ""));
        let found = NAMES.iter().find(|(_, singular, plural, short)| {
            name == *singular || name == *plural || short.contains(&name)
        });
        let kind = found?.0;
        // A version may precede the group.
        let group = group.strip_prefix("v1.").unwrap_or(group);
        let is_own = match kind {
            Self::Service | Self::Pod | Self::Node | Self::ReplicationController => {
                group.is_empty()
            }
            Self::Job => matches!(group, "" | "batch"),
            Self::Deployment | Self::StatefulSet | Self::DaemonSet | Self::ReplicaSet => {
                matches!(group, "" | "apps")
            }
        };
        is_own.then_some(kind)
    }
}

/// Object that an argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub kind: Kind,
    pub name: String,
    /// Number or name of a port.
    pub port: Option<String>,
}

/// Reason why an argument is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("{} has no type; use TYPE/NAME, such as svc/{text}", GoQuoted(text))]
    NoType { text: String },
    #[error("{} has no name; use TYPE/NAME, such as svc/web", GoQuoted(.0))]
    NoName(String),
    #[error(
        "unknown type {}{}; use svc, pod, node, deploy, sts, ds, rs, rc or job",
        GoQuoted(name),
        suggestion(*near)
    )]
    UnknownType {
        name: String,
        near: Option<&'static str>,
    },
}

fn suggestion(near: Option<&'static str>) -> String {
    near.map_or_else(String::new, |near| format!(" (similar: {near})"))
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let Some((kind, name)) = text.split_once('/') else {
            return Err(ReferenceError::NoType {
                text: text.to_owned(),
            });
        };
        let parsed = Kind::parse(kind).ok_or_else(|| {
            let names = NAMES.iter().flat_map(|(_, singular, plural, short)| {
                [*singular, *plural]
                    .into_iter()
                    .chain(short.iter().copied())
            });
            ReferenceError::UnknownType {
                name: kind.to_owned(),
                // A type with a group is one of an extension.
                near: similar(kind, &names.collect::<Vec<_>>()).filter(|_| !kind.contains('.')),
            }
        })?;
        // Names of objects have no colon.
        let (name, port) = match name.split_once(':') {
            Some((name, port)) => (name, Some(port.to_owned()).filter(|port| !port.is_empty())),
            None => (name, None),
        };
        if name.is_empty() || name.contains('/') {
            return Err(ReferenceError::NoName(text.to_owned()));
        }
        Ok(Self {
            kind: parsed,
            name: name.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.singular(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Kind, String, Option<String>), String> {
        let parsed = text.parse::<Reference>();
        parsed
            .map(|Reference { kind, name, port }| (kind, name, port))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn table_of_names_has_the_order_of_the_kinds() {
        for (index, (kind, ..)) in NAMES.iter().enumerate() {
            assert_eq!(*kind as usize, index);
        }
    }

    #[test]
    fn accepts_full_and_short_names_of_types() {
        for (text, kind) in [
            ("svc/a", Kind::Service),
            ("services/a", Kind::Service),
            ("Service/a", Kind::Service),
            ("po/a", Kind::Pod),
            ("node/a", Kind::Node),
            ("deploy/a", Kind::Deployment),
            ("deployments.apps/a", Kind::Deployment),
            ("deployment.v1.apps/a", Kind::Deployment),
            ("sts/a", Kind::StatefulSet),
            ("ds/a", Kind::DaemonSet),
            ("rs/a", Kind::ReplicaSet),
            ("jobs.batch/a", Kind::Job),
            ("rc/a", Kind::ReplicationController),
        ] {
            assert_eq!(parse(text), Ok((kind, "a".into(), None)), "{text}");
        }
        assert_eq!(
            parse("svc/a.b:https"),
            Ok((Kind::Service, "a.b".into(), Some("https".into())))
        );
        assert_eq!(parse("svc/a:"), Ok((Kind::Service, "a".into(), None)));
    }

    #[test]
    fn errors_show_the_form_of_arguments() {
        for (text, message) in [
            (
                "web",
                r#""web" has no type; use TYPE/NAME, such as svc/web"#,
            ),
            (
                "svc/",
                r#""svc/" has no name; use TYPE/NAME, such as svc/web"#,
            ),
            (
                "svc/a/b",
                r#""svc/a/b" has no name; use TYPE/NAME, such as svc/web"#,
            ),
            (
                "ingress/a",
                r#"unknown type "ingress"; use svc, pod, node, deploy, sts, ds, rs, rc or job"#,
            ),
            (
                "servcie/a",
                r#"unknown type "servcie" (similar: service); use svc, pod, node, deploy, sts, ds, rs, rc or job"#,
            ),
            (
                "services.serving.knative.dev/a",
                r#"unknown type "services.serving.knative.dev"; use svc, pod, node, deploy, sts, ds, rs, rc or job"#,
            ),
        ] {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
    }
}
