//! Differences between two reads of a folder, for the log.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

/// Maximum number of names in each list of a [`Difference`].
const MAX_NAMES: usize = 10;

/// Objects of a folder with hashes of their contents.
#[derive(Debug, Default)]
pub(super) struct ObjectDigests(BTreeMap<String, u64>);

/// Objects that differ between two reads.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub added: Names,
    pub changed: Names,
    pub removed: Names,
}

/// Kinds and names of objects. The text is limited to [`MAX_NAMES`] of them.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<String>);

/// Hash of an object. The order of its fields does not matter.
pub(super) fn digest(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish()
}

/// From names with kind and namespace, and hashes. Of several with one name, the last is used.
impl FromIterator<(String, u64)> for ObjectDigests {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(objects: I) -> Self {
        Self(objects.into_iter().collect())
    }
}

impl ObjectDigests {
    /// Returns the difference from `previous`.
    pub fn since(&self, previous: &Self) -> Difference {
        let mut difference = Difference::default();
        for (name, digest) in &self.0 {
            match previous.0.get(name) {
                None => difference.added.0.push(name.clone()),
                Some(before) if before != digest => difference.changed.0.push(name.clone()),
                Some(_) => {}
            }
        }
        let removed = previous.0.keys().filter(|name| !self.0.contains_key(*name));
        difference.removed.0.extend(removed.cloned());
        difference
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(names) = self;
        if names.is_empty() {
            return f.write_str("none");
        }
        let shown = names.len().min(MAX_NAMES);
        f.write_str(&names[..shown].join(", "))?;
        match names.len() - shown {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digests(objects: &[(&str, Value)]) -> ObjectDigests {
        let digests = objects
            .iter()
            .map(|(name, object)| ((*name).to_owned(), digest(object)));
        digests.collect()
    }

    #[test]
    fn lists_added_changed_and_removed_objects() {
        let before = digests(&[
            ("Node n", json!(1)),
            ("Service a/web", json!({"port": 80})),
            ("Pod a/web", json!({})),
            ("Role a/r", json!([])),
        ]);
        let after = digests(&[
            ("Pod b/web", json!({})),
            ("Service a/web", json!({"port": 81})),
            ("Role a/r", json!([])),
            ("Node n", json!(1)),
        ]);
        let Difference {
            added,
            changed,
            removed,
        } = after.since(&before);
        assert_eq!(
            (&*added.0, &*changed.0, &*removed.0),
            (
                &["Pod b/web".to_owned()][..],
                &["Service a/web".to_owned()][..],
                &["Pod a/web".to_owned()][..]
            )
        );
    }

    #[test]
    fn ignores_order_of_fields_and_of_objects() {
        let one: Value = serde_json::from_str(r#"{"a": 1, "b": {"c": 2, "d": 3}}"#).unwrap();
        let other: Value = serde_json::from_str(r#"{"b": {"d": 3, "c": 2}, "a": 1}"#).unwrap();
        let before = digests(&[("Node n", one.clone()), ("Node m", one)]);
        let after = digests(&[("Node m", other.clone()), ("Node n", other)]);
        let Difference {
            added,
            changed,
            removed,
        } = after.since(&before);
        assert!(added.0.is_empty() && changed.0.is_empty() && removed.0.is_empty());
    }

    #[test]
    fn limits_names_in_text() {
        let names = |count: usize| Names((0..count).map(|n| format!("Pod a/{n}")).collect());
        assert_eq!(names(0).to_string(), "none");
        assert_eq!(names(2).to_string(), "Pod a/0, Pod a/1");
        assert!(names(10).to_string().ends_with(", Pod a/9"));
        assert!(names(12).to_string().ends_with("Pod a/9 and 2 more"));
    }
}
