//! YAML documents of a folder, sorted into objects of the index and RBAC rules.

use std::fmt;
use std::path::Path;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::objects::{
    Item, ObjectError, SlimNode, SlimPod, SlimService, SlimSlice, Watched,
};
use super::ManifestError;
use super::redact::Redacted;
use crate::cluster::{Kind, Object};
use crate::trust::RbacRulesBuilder;

/// Kinds that get the namespace `default` if they have none, as with kubectl.
const NAMESPACED: [&str; 5] = ["Pod", "Service", "EndpointSlice", "Role", "RoleBinding"];

/// Reason why a document is malformed. Contains no values of the document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("kind and metadata.name are required")]
    Incomplete,
    #[error("{reason}")]
    Decode { reason: Redacted },
    #[error("{field}: {reason}")]
    Field {
        /// Path of the field, such as `spec.ports[0].port`.
        field: String,
        reason: Redacted,
    },
}

impl From<serde_json::Error> for DocumentError {
    fn from(error: serde_json::Error) -> Self {
        Self::Decode {
            reason: Redacted::new(&error.to_string()),
        }
    }
}

impl From<ObjectError> for DocumentError {
    fn from(error: ObjectError) -> Self {
        Self::Decode {
            reason: Redacted::new(&error.to_string()),
        }
    }
}

/// Position of a document, for errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position<'a> {
    pub path: &'a Path,
    /// First line, from 1.
    pub line: u64,
    /// Number of the document in its file, from 1, without empty documents.
    pub number: usize,
}

/// Numbers of objects that were read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ObjectCounts {
    /// In the order of [`Kind::ALL`].
    objects: [usize; Kind::ALL.len()],
    roles: usize,
    bindings: usize,
}

impl fmt::Display for ObjectCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in Kind::ALL.into_iter().zip(self.objects) {
            write!(f, "{count} {}, ", kind.plural())?;
        }
        write!(f, "{} roles, {} role bindings", self.roles, self.bindings)
    }
}

/// Objects and rules of the documents so far.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub objects: Vec<(Kind, Object)>,
    pub rules: RbacRulesBuilder,
}

impl Documents {
    /// Counts the objects. Roles and bindings include those of the cluster.
    pub fn counts(&self) -> ObjectCounts {
        let of = |kind: Kind| self.objects.iter().filter(|(of, _)| *of == kind).count();
        ObjectCounts {
            objects: Kind::ALL.map(of),
            roles: self.rules.roles.len() + self.rules.cluster_roles.len(),
            bindings: self.rules.role_bindings.len() + self.rules.cluster_role_bindings.len(),
        }
    }

    /// Adds the object of a document or, if it is a `List`, its items. Skips kinds that are not
    /// used.
    ///
    /// # Errors
    /// The document has no kind or name, or is malformed.
    pub fn add(
        &mut self,
        position: Position<'_>,
        mut document: Value,
    ) -> Result<(), ManifestError> {
        // A file may end with `---`.
        if document.is_null() {
            return Ok(());
        }
        let kind = text(&document["kind"]);
        let name = text(&document["metadata"]["name"]);
        let malformed = |source: DocumentError| ManifestError::Malformed {
            path: position.path.into(),
            line: position.line,
            object: match (&*kind, &*name) {
                ("", "") => format!("document {}", position.number),
                (kind, "") => format!("document {} ({kind})", position.number),
                ("", name) => format!("document {} ({name:?})", position.number),
                (kind, name) => format!("{kind} {name:?}"),
            },
            source,
        };
        // Other APIs have kinds of the same name, such as the Service of Knative.
        let is_known_api = document
            .get("apiVersion")
            .is_none_or(|version| *version == api_version(&kind));
        if kind == "List" && is_known_api {
            let items = serde_json::from_value::<Vec<Value>>(document["items"].take())
                .map_err(|error| malformed(error.into()))?;
            return items
                .into_iter()
                .try_for_each(|item| self.add(position, item));
        }
        if kind.is_empty() || name.is_empty() {
            return Err(malformed(DocumentError::Incomplete));
        }
        let version = text(&document["apiVersion"]);
        if NAMESPACED.contains(&&*kind) && document["metadata"]["namespace"].is_null() {
            document["metadata"]["namespace"] = "default".into();
        }
        let is_used = is_known_api
            && self
                .decode(&kind, document.clone())
                .map_err(|error| malformed(with_field(error, &kind, &document)))?;
        if !is_used {
            tracing::info!(
                path = ?position.path,
                kind,
                version,
                name,
                "skipping an object of an unused kind"
            );
        }
        Ok(())
    }

    /// Returns false if the kind is not used.
    fn decode(&mut self, kind: &str, document: Value) -> Result<bool, DocumentError> {
        match kind {
            "Node" => self.object::<SlimNode>(document)?,
            "Pod" => self.object::<SlimPod>(document)?,
            "Service" => self.object::<SlimService>(document)?,
            "EndpointSlice" => self.object::<SlimSlice>(document)?,
            "Role" => self.rules.roles.push(parse::<Role>(document)?),
            "ClusterRole" => {
                let role = parse::<ClusterRole>(document)?;
                self.rules.cluster_roles.push(role);
            }
            "RoleBinding" => {
                let binding = parse::<RoleBinding>(document)?;
                self.rules.role_bindings.push(binding);
            }
            "ClusterRoleBinding" => {
                let binding = parse::<ClusterRoleBinding>(document)?;
                self.rules.cluster_role_bindings.push(binding);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn object<K: Watched>(&mut self, document: Value) -> Result<(), DocumentError> {
        let object = Item::<K>::from_value(document).object()?;
        self.objects.extend(object.map(|object| (K::KIND, object)));
        Ok(())
    }
}

/// Adds the path of the field to the error of a document.
fn with_field(error: DocumentError, kind: &str, document: &Value) -> DocumentError {
    match (error, malformed_field(kind, document)) {
        (DocumentError::Decode { reason }, field) if !field.is_empty() => {
            DocumentError::Field { field, reason }
        }
        (error, _) => error,
    }
}

/// Returns the path of the innermost field without which the error of a document is another one or
/// absent, because `serde_json` has no positions in a [`Value`]. Stops at the parent of a required
/// field.
fn malformed_field(kind: &str, document: &Value) -> String {
    let error_of = |document: Value| {
        let error = Documents::default().decode(kind, document).err();
        error.map(|error| error.to_string())
    };
    let original = error_of(document.clone());
    let is_cause = |error: Option<String>| {
        let is_required =
            |text: &String| text.starts_with("missing field") || text.ends_with(" is missing");
        error != original && !error.as_ref().is_some_and(is_required)
    };
    let (mut pointer, mut path) = (String::new(), String::new());
    loop {
        let steps: Vec<String> = match document.pointer(&pointer) {
            Some(Value::Object(fields)) => fields.keys().cloned().collect(),
            Some(Value::Array(items)) => (0..items.len()).map(|index| index.to_string()).collect(),
            _ => return path,
        };
        let cause = steps.into_iter().find(|step| {
            let mut without = document.clone();
            match without.pointer_mut(&pointer) {
                Some(Value::Object(fields)) => drop(fields.remove(step)),
                Some(Value::Array(items)) => {
                    drop(step.parse().map(|index: usize| items.remove(index)));
                }
                _ => return false,
            }
            is_cause(error_of(without))
        });
        let Some(step) = cause else {
            return path;
        };
        if matches!(document.pointer(&pointer), Some(Value::Array(_))) {
            path += &format!("[{step}]");
        } else if path.is_empty() {
            path.clone_from(&step);
        } else {
            path += &format!(".{step}");
        }
        // RFC 6901, section 3
        pointer += &format!("/{}", step.replace('~', "~0").replace('/', "~1"));
    }
}

/// Returns the API of a kind that is used.
fn api_version(kind: &str) -> &'static str {
    match kind {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => {
            "rbac.authorization.k8s.io/v1"
        }
        _ => "v1",
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn parse<T: DeserializeOwned>(document: Value) -> Result<T, DocumentError> {
    Ok(serde_json::from_value(document)?)
}
