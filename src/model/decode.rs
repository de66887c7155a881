//! Decoding of documents, with the path of a malformed field in errors.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Error of a field of an object.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}{source}", prefix(.field))]
pub struct DecodeError {
    /// Path of the field, such as `spec.ports[0].port`. Empty for the object as a whole.
    pub field: String,
    /// `Arc` because kube's watcher clones objects.
    pub source: Arc<serde_json::Error>,
}

fn prefix(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!("{field}: ")
    }
}

/// Deserializes a document.
///
/// # Errors
/// Names the path of the malformed field, which errors of a [`Value`] do not.
pub fn decode<T: DeserializeOwned>(document: &Value) -> Result<T, DecodeError> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        DecodeError {
            field: if path == "." { String::new() } else { path },
            source: Arc::new(error.into_inner()),
        }
    })
}
