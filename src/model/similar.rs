//! Suggestions for misspelled names.

/// Minimum similarity (Jaro-Winkler, from 0 to 1) of a suggestion: `warning` and `warn` have 0.91,
/// unrelated words less than 0.8.
const MIN_SIMILARITY: f64 = 0.85;

/// Minimum length of a name that is taken for the end of another one.
const MIN_SUFFIX_LEN: usize = 6;

/// Returns the candidate that `name` probably stands for.
///
/// Case, dashes and underscores do not count, so that the name of a flag finds its field.
pub fn similar<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
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

/// Returns the letters and digits of a name in lower case.
pub fn normalized(name: &str) -> String {
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
        for (name, expected) in [
            ("prd", Some("prod")),
            ("prod2", Some("prod")),
            ("prod-e", Some("prod-eu")),
            ("staging2", Some("staging")),
            ("test", None),
            ("x", None),
        ] {
            let contexts = ["prod", "prod-eu", "staging"];
            assert_eq!(similar(name, &contexts), expected, "{name}");
        }
        assert_eq!(similar("a", &[]), None);
    }
}
