//! YAML documents of a folder, sorted into objects of the index and RBAC rules.

use std::fmt;
use std::path::Path;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::objects::{
    DecodeError, Item, ObjectError, SlimNode, SlimPod, SlimService, SlimSlice, Watched, decode,
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

impl From<DecodeError> for DocumentError {
    fn from(DecodeError { field, source }: DecodeError) -> Self {
        let reason = Redacted::new(&source.to_string());
        if field.is_empty() {
            Self::Decode { reason }
        } else {
            Self::Field { field, reason }
        }
    }
}

impl From<ObjectError> for DocumentError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Decode(error) => error.into(),
            ObjectError::Missing(_) => Self::Decode {
                reason: Redacted::new(&error.to_string()),
            },
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
            let items = decode::<Vec<Value>>(&document["items"])
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
        let is_used = is_known_api && self.decode(&kind, document).map_err(malformed)?;
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
            "Role" => self.rules.roles.push(parse::<Role>(&document)?),
            "ClusterRole" => {
                let role = parse::<ClusterRole>(&document)?;
                self.rules.cluster_roles.push(role);
            }
            "RoleBinding" => {
                let binding = parse::<RoleBinding>(&document)?;
                self.rules.role_bindings.push(binding);
            }
            "ClusterRoleBinding" => {
                let binding = parse::<ClusterRoleBinding>(&document)?;
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

fn parse<T: DeserializeOwned>(document: &Value) -> Result<T, DocumentError> {
    Ok(decode(document)?)
}
