//! Documents of a file, decoded into objects of the index and RBAC objects.

use std::fmt;
use std::path::Path;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::objects::{
    DecodeError, Indexed, Item, ObjectError, SlimNode, SlimPod, SlimService, SlimSlice, decode,
};
use super::ManifestError;
use super::changes::digest;
use crate::cluster::{Kind, Object};
use crate::model::nulls::RULE_LISTS;
use crate::model::redact::Redacted;

/// Kinds that are used, with their API, and true if they are namespaced.
const USED_KINDS: [(&str, &str, bool); 8] = [
    ("Node", CORE, false),
    ("Pod", CORE, true),
    ("Service", CORE, true),
    ("EndpointSlice", "discovery.k8s.io/v1", true),
    ("Role", RBAC, true),
    ("ClusterRole", RBAC, false),
    ("RoleBinding", RBAC, true),
    ("ClusterRoleBinding", RBAC, false),
];
const CORE: &str = "v1";
const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// Reason why a document is malformed. Contains no values of the document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("kind is required")]
    NoKind,
    #[error("metadata.name is required")]
    NoName,
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

/// Kind, namespace and name, which identify an object in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ObjectId {
    pub kind: Box<str>,
    /// Empty for objects of the cluster.
    pub namespace: Box<str>,
    pub name: Box<str>,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        if namespace.is_empty() {
            write!(f, "{kind} {name:?}")
        } else {
            write!(f, "{kind} {name:?} of the namespace {namespace:?}")
        }
    }
}

/// An object of a file.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub id: ObjectId,
    /// First line of the document, from 1.
    pub line: u64,
    /// Hash of all fields of the object, also of those that are not used.
    pub digest: u64,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Object(Kind, Object),
    Role(Role),
    ClusterRole(ClusterRole),
    RoleBinding(RoleBinding),
    ClusterRoleBinding(ClusterRoleBinding),
}

/// Objects of a file.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub objects: Vec<Document>,
    /// Objects that cannot be decoded. They do not affect the others.
    pub malformed: Vec<(ObjectId, ManifestError)>,
    /// Number of objects of kinds that are not used.
    pub skipped: usize,
}

/// Position of an object, for errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position<'a> {
    pub path: &'a Path,
    /// First line of the document, from 1.
    pub line: u64,
    /// Number of the document in its file, from 1, without empty documents.
    pub number: usize,
    /// Index in the items of a list.
    pub item: Option<usize>,
}

impl Position<'_> {
    /// Returns the error of the object at this position.
    fn malformed(self, kind: &str, name: &str, source: DocumentError) -> ManifestError {
        let item = self.item.map(|index| format!(", items[{index}]"));
        let place = format!("document {}{}", self.number, item.unwrap_or_default());
        ManifestError::Malformed {
            path: self.path.into(),
            line: self.line,
            object: match (kind, name) {
                ("", "") => place,
                (kind, "") => format!("{place} ({kind})"),
                ("", name) => format!("{place} ({name:?})"),
                (kind, name) => format!("{kind} {name:?}"),
            },
            source,
        }
    }
}

impl Documents {
    /// Adds the object of a document or, if it is a list, its items. Skips kinds that are not used.
    ///
    /// # Errors
    /// The document does not say which object it describes, so that the file as a whole is invalid.
    pub fn add(
        &mut self,
        position: Position<'_>,
        mut document: Value,
    ) -> Result<(), ManifestError> {
        let kind = text(&document["kind"]);
        let name = text(&document["metadata"]["name"]);
        let malformed = |error| position.malformed(&kind, &name, error);
        if kind.is_empty() {
            return Err(malformed(DocumentError::NoKind));
        }
        if let Some((item_kind, api)) = list(&kind)
            && is_of_api(&document, api)
        {
            return self.add_items(position, &kind, item_kind, document);
        }
        // Other APIs have kinds of the same name, such as the Service of Knative.
        let used = USED_KINDS.into_iter().find(|(used, ..)| *used == kind);
        let Some((_, _, is_namespaced)) = used.filter(|(_, api, _)| is_of_api(&document, api))
        else {
            self.skipped += 1;
            tracing::info!(
                path = %position.path.display(),
                kind,
                version = text(&document["apiVersion"]),
                name,
                "skipping an object of an unused kind"
            );
            return Ok(());
        };
        if name.is_empty() {
            return Err(malformed(DocumentError::NoName));
        }
        let mut namespace = text(&document["metadata"]["namespace"]);
        if !is_namespaced {
            namespace.clear();
        } else if namespace.is_empty() {
            // As with kubectl. Not where the namespace is malformed, which decoding reports.
            namespace.push_str("default");
            let field = &mut document["metadata"]["namespace"];
            if field.is_null() || field.is_string() {
                *field = (&*namespace).into();
            }
        }
        let id = ObjectId {
            kind: (&*kind).into(),
            namespace: namespace.into(),
            name: (&*name).into(),
        };
        let digest = digest(&document);
        match content(&kind, document) {
            Ok(content) => self.objects.extend(content.map(|content| Document {
                id,
                line: position.line,
                digest,
                content,
            })),
            Err(error) => self.malformed.push((id, malformed(error))),
        }
        Ok(())
    }

    /// Adds the items of a list, which are of `item_kind` if they have no kind.
    fn add_items(
        &mut self,
        position: Position<'_>,
        list: &str,
        item_kind: &str,
        mut document: Value,
    ) -> Result<(), ManifestError> {
        // An empty list of Go is null.
        let items = match document["items"].take() {
            Value::Null => Vec::new(),
            items => decode::<Vec<Value>>(&items).map_err(|DecodeError { field, source }| {
                let field = format!("items{field}");
                let error = DecodeError { field, source };
                position.malformed(list, "", error.into())
            })?,
        };
        for (index, mut item) in items.into_iter().enumerate() {
            // The API omits the kind of items in lists of one kind.
            if let Value::Object(members) = &mut item
                && !item_kind.is_empty()
                && !members.contains_key("kind")
            {
                members.insert("kind".to_owned(), item_kind.into());
            }
            let position = Position {
                item: Some(index),
                ..position
            };
            self.add(position, item)?;
        }
        Ok(())
    }
}

/// Returns the kind of the items, empty if it may be any, and the API of a list of used kinds.
fn list(kind: &str) -> Option<(&'static str, &'static str)> {
    let of = kind.strip_suffix("List")?;
    if of.is_empty() {
        return Some(("", CORE));
    }
    let mut kinds = USED_KINDS.into_iter();
    let (kind, api, _) = kinds.find(|(kind, ..)| *kind == of)?;
    Some((kind, api))
}

fn is_of_api(document: &Value, api: &str) -> bool {
    document
        .get("apiVersion")
        .is_none_or(|version| *version == api)
}

/// Decodes an object of a used kind. `None` if the index does not need it.
fn content(kind: &str, document: Value) -> Result<Option<Content>, DocumentError> {
    Ok(Some(match kind {
        "Node" => return object::<SlimNode>(document),
        "Pod" => return object::<SlimPod>(document),
        "Service" => return object::<SlimService>(document),
        "EndpointSlice" => return object::<SlimSlice>(document),
        "Role" => Content::Role(role(&document)?),
        "ClusterRole" => Content::ClusterRole(role(&document)?),
        "RoleBinding" => Content::RoleBinding(parse(&document)?),
        "ClusterRoleBinding" => Content::ClusterRoleBinding(parse(&document)?),
        _ => return Ok(None),
    }))
}

fn object<K: Indexed>(document: Value) -> Result<Option<Content>, DocumentError> {
    let object = Item::<K>::from_value(document).kept()?;
    Ok(object.map(|object| Content::Object(K::KIND, object)))
}

/// Parses a role. Unknown fields of its rules are errors, as with kubectl: a misspelled restriction
/// would grant more than it says.
fn role<T: DeserializeOwned>(document: &Value) -> Result<T, DocumentError> {
    let rules = document["rules"].as_array().into_iter().flatten();
    for (index, rule) in rules.enumerate() {
        let mut fields = rule.as_object().into_iter().flatten();
        if let Some((field, _)) = fields.find(|(field, _)| !RULE_LISTS.contains(&&***field)) {
            return Err(DocumentError::Field {
                field: format!("rules[{index}].{field}"),
                reason: Redacted::new("unknown field"),
            });
        }
    }
    parse(document)
}

fn parse<T: DeserializeOwned>(document: &Value) -> Result<T, DocumentError> {
    Ok(decode(document)?)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
