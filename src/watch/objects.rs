//! Decoding of Kubernetes objects into those of the index.
//!
//! Each object is decoded separately ([`Item`]), so that a malformed object is skipped alone and
//! does not fail its list or watch. `null` is the same as absent everywhere, as it is for the API
//! server.

mod slim;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cluster::{Kind, Object, ObjectKey};
pub(super) use crate::model::decode::{DecodeError, decode};
use crate::model::nulls::remove_nulls;
pub(super) use slim::{SlimNode, SlimPod, SlimService, SlimSlice};

/// Label with the name of the service to which a slice belongs (KEP-752).
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation with the time of the pod change that caused the update of the slice.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Annotation of a Service: `keep` passes the whole path of requests, with the prefix up to
/// `/proxy`, for applications that are mounted under it.
const PATH: &str = "kube-bastion.dev/path";

/// A resource that the sources follow.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    const IS_NAMESPACED: bool = true;

    /// Part of an object that is kept.
    type Kept: Send;

    /// Extracts the part that is kept. `None` if nothing of the object is needed, such as of a slice
    /// without a service.
    fn kept(self) -> Option<Self::Kept>;
}

/// A resource of the index.
pub(super) trait Indexed: Watched<Kept = Object> {
    const KIND: Kind;
}

/// Reason why an object is malformed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ObjectError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// An object of a list or watch. Decoding it never fails, because serde would then fail the list or
/// the event around it.
#[derive(Clone, Debug)]
pub(super) enum Item<K> {
    Object(K),
    /// The readable part of the metadata, and the reason.
    Malformed(Box<ObjectMeta>, ObjectError),
}

impl<K: Watched> Item<K> {
    /// Extracts the part that is kept. `None` if nothing of the object is needed.
    ///
    /// # Errors
    /// The object is malformed.
    pub fn kept(self) -> Result<Option<K::Kept>, ObjectError> {
        match self {
            Self::Object(object) => Ok(object.kept()),
            Self::Malformed(_, error) => Err(error),
        }
    }

    fn from_text(json: &str) -> Self {
        // Nearly all objects decode directly, without a tree of the skipped fields. Only objects
        // with nulls and malformed ones take the second path.
        match serde_json::from_str(json) {
            Ok(object) => Self::with_names(object),
            Err(_) => match serde_json::from_str(json) {
                Ok(value) => Self::from_value(value),
                Err(error) => {
                    let error = DecodeError {
                        field: String::new(),
                        source: Arc::new(error),
                    };
                    Self::Malformed(Box::default(), error.into())
                }
            },
        }
    }

    pub fn from_value(mut value: Value) -> Self {
        // `#[serde(default)]` covers absent fields only, so a null would be an error.
        remove_nulls(&mut value);
        match decode(&value) {
            Ok(object) => Self::with_names(object),
            Err(error) => Self::Malformed(Box::new(readable_meta(&value)), error.into()),
        }
    }

    /// Rejects an object without a name or namespace: no later event could delete it.
    fn with_names(object: K) -> Self {
        let empty = |text: Option<&String>| text.is_none_or(String::is_empty);
        let meta = object.meta();
        let missing = if empty(meta.name.as_ref()) {
            "metadata.name"
        } else if K::IS_NAMESPACED && empty(meta.namespace.as_ref()) {
            "metadata.namespace"
        } else {
            return Self::Object(object);
        };
        Self::Malformed(Box::new(meta.clone()), ObjectError::Missing(missing))
    }
}

impl<'de, K: Watched> Deserialize<'de> for Item<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_text(
            Box::<RawValue>::deserialize(deserializer)?.get(),
        ))
    }
}

impl<K: Watched> Resource for Item<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Object(object) => object.meta(),
            Self::Malformed(meta, _) => meta,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Object(object) => object.meta_mut(),
            Self::Malformed(meta, _) => meta,
        }
    }
}

/// Extracts the readable part of a malformed object's metadata: its name for the log, and the
/// version from which the watch resumes.
fn readable_meta(object: &Value) -> ObjectMeta {
    let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
    ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    }
}

/// Returns namespace and name. The namespace of a node is empty.
pub(super) fn key(meta: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// Returns the time of the pod change that caused the update of a slice, in Unix seconds.
pub(super) fn trigger_time(meta: &ObjectMeta) -> Option<f64> {
    let time: jiff::Timestamp = meta.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok()?;
    Some(time.as_duration().as_secs_f64())
}

/// Returns true if the annotation [`PATH`] of a service is `keep`. Other values have no effect.
fn keeps_path(meta: &ObjectMeta) -> bool {
    let Some(value) = meta.annotations.as_ref().and_then(|all| all.get(PATH)) else {
        return false;
    };
    let keeps = value == "keep";
    if !keeps {
        tracing::warn!(
            service = %key(meta),
            value = %value,
            "annotation {PATH} has no effect: its only value is \"keep\""
        );
    }
    keeps
}

/// Decodes metadata without managed fields, owners, and labels and annotations that are not used.
pub(super) fn slim_meta<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        uid: Option<String>,
        #[serde(default)]
        labels: Labels,
        #[serde(default)]
        annotations: Annotations,
    }
    #[derive(Default, Deserialize)]
    struct Labels {
        #[serde(rename = "kubernetes.io/service-name")]
        service_name: Option<String>,
    }
    #[derive(Default, Deserialize)]
    struct Annotations {
        #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
        trigger_time: Option<String>,
        #[serde(rename = "kube-bastion.dev/path")]
        path: Option<String>,
    }
    let meta = Meta::deserialize(deserializer)?;
    let entries = |entries: &[(&str, Option<&String>)]| {
        let present = entries
            .iter()
            .filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.clone())));
        let map: BTreeMap<_, _> = present.collect();
        (!map.is_empty()).then_some(map)
    };
    Ok(ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        resource_version: meta.resource_version,
        uid: meta.uid,
        labels: entries(&[(SERVICE_NAME, meta.labels.service_name.as_ref())]),
        annotations: entries(&[
            (TRIGGER_TIME, meta.annotations.trigger_time.as_ref()),
            (PATH, meta.annotations.path.as_ref()),
        ]),
        ..ObjectMeta::default()
    })
}

#[cfg(test)]
mod tests;
