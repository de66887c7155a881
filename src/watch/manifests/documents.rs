//! YAML documents of a folder, sorted into objects of the index and RBAC rules.

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
    #[error("{0}")]
    Decode(Redacted),
}

impl From<serde_json::Error> for DocumentError {
    fn from(error: serde_json::Error) -> Self {
        Self::Decode(Redacted::new(&error.to_string()))
    }
}

impl From<ObjectError> for DocumentError {
    fn from(error: ObjectError) -> Self {
        Self::Decode(Redacted::new(&error.to_string()))
    }
}

/// Objects and rules of the documents so far.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub objects: Vec<(Kind, Object)>,
    pub rules: RbacRulesBuilder,
}

impl Documents {
    /// Adds the object of a document or, if it is a `List`, its items. Skips kinds that are not
    /// used.
    ///
    /// # Errors
    /// The document has no kind or name, or is malformed.
    pub fn add(&mut self, path: &Path, mut document: Value) -> Result<(), ManifestError> {
        // A file may end with `---`.
        if document.is_null() {
            return Ok(());
        }
        let kind = text(&document["kind"]);
        let name = text(&document["metadata"]["name"]);
        let malformed = |source: DocumentError| ManifestError::Malformed {
            path: path.into(),
            object: format!("{kind} {name:?}"),
            source,
        };
        // Other APIs have kinds of the same name, such as the Service of Knative.
        let is_known_api = document
            .get("apiVersion")
            .is_none_or(|version| *version == api_version(&kind));
        if kind == "List" && is_known_api {
            let items = serde_json::from_value::<Vec<Value>>(document["items"].take())
                .map_err(|error| malformed(error.into()))?;
            return items.into_iter().try_for_each(|item| self.add(path, item));
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
                ?path,
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
