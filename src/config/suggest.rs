//! Suggestions for misspelled fields.

use serde_json::Value;

use super::Config;
use crate::model::similar::{normalized, similar};

/// Returns the paths of the fields that `name` may stand for, joined by `or`: a similar one of its
/// section, whose fields are `candidates`, and the one of the same name in another section.
///
/// `path` is that of the unknown field.
pub(super) fn fields(path: &str, name: &str, candidates: &[&str]) -> Option<String> {
    let section = path.strip_suffix(name).unwrap_or_default();
    let wanted = normalized(name);
    let here = similar(name, candidates);
    let fields = all_fields();
    // The name of a flag may be that of a path: `--drain-timeout` is `drain.timeout`.
    if let Some(field) = fields.iter().find(|field| normalized(field) == wanted) {
        return Some(field.clone());
    }
    let is_certain = here.is_some_and(|field| normalized(field) == wanted);
    let mut elsewhere = fields.into_iter().filter(|field| {
        let last = field.rsplit('.').next().unwrap_or_default();
        !is_certain && normalized(last) == wanted
    });
    // A name that several sections have, such as `timeout`, says nothing about the one that is meant.
    let elsewhere = elsewhere.next().filter(|_| elsewhere.next().is_none());
    let here = here.map(|field| format!("{section}{field}"));
    here.into_iter()
        .chain(elsewhere)
        .reduce(|here, elsewhere| format!("{here} or {elsewhere}"))
}

/// Returns the paths of all fields, such as `upstream.retry.maxAttempts`.
fn all_fields() -> Vec<String> {
    fn collect(prefix: &str, value: &Value, fields: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = if prefix.is_empty() {
                name.clone()
            } else {
                format!("{prefix}.{name}")
            };
            collect(&path, value, fields);
            fields.push(path);
        }
    }
    let mut fields = Vec::new();
    let config = serde_json::to_value(Config::new()).expect("the configuration is plain data");
    collect("", &config, &mut fields);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_all_fields() {
        let fields = all_fields();
        assert!(fields.len() > 50, "{fields:?}");
        for field in [
            "serving.tlsCertFile",
            "source.type",
            "upstream.retry.maxAttempts",
        ] {
            assert!(fields.iter().any(|known| known == field), "{field}");
        }
    }
}
