//! Suggestions for misspelled names of fields and values.

use serde_json::Value;

use super::Config;

/// Minimum similarity (Jaro-Winkler, from 0 to 1) of a suggestion: `warning` and `warn` have 0.91,
/// unrelated words less than 0.8.
const MIN_SIMILARITY: f64 = 0.85;

/// Minimum length of a name that is taken for the end of another one.
const MIN_SUFFIX_LEN: usize = 6;

/// Returns the candidate that `name` probably stands for.
///
/// Case, dashes and underscores do not count, so that the name of a flag finds its field.
pub(super) fn similar<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let wanted = normalized(name);
    let similarity = |candidate: &str| {
        let candidate = normalized(candidate);
        // `listenAddress` is short for `secureListenAddress`.
        if wanted.len() >= MIN_SUFFIX_LEN && candidate.ends_with(&wanted) {
            1.0
        } else {
            strsim::jaro_winkler(&wanted, &candidate)
        }
    };
    let scored = candidates.iter().map(|name| (similarity(name), *name));
    scored
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        // The first of several with the same similarity.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, candidate)| candidate)
}

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

/// Returns the letters and digits of a name in lower case.
fn normalized(name: &str) -> String {
    let characters = name.chars().filter(|character| character.is_alphanumeric());
    characters.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_similar_names_only() {
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        for (name, expected) in [
            ("warning", Some("warn")),
            ("information", Some("info")),
            ("err", Some("error")),
            ("dbug", Some("debug")),
            ("INFO", Some("info")),
            ("verbose", None),
            ("fatal", None),
            ("3", None),
            ("", None),
        ] {
            assert_eq!(similar(name, &levels), expected, "{name}");
        }
        for (name, expected) in [
            ("manifest", Some("manifests")),
            ("Kubernetes", Some("kubernetes")),
            ("kubernets", Some("kubernetes")),
            ("etcd", None),
        ] {
            assert_eq!(
                similar(name, &["kubernetes", "manifests"]),
                expected,
                "{name}"
            );
        }
    }

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
