//! Errors about the contents of files, without the contents.
//!
//! A folder of manifests may hold Secrets, and a kubeconfig holds credentials. Errors appear in the
//! log and in `/readyz`, whose readers may not have access to them. YAML and JSON libraries quote
//! the input in their messages, so the errors of manifests and kubeconfigs never contain theirs,
//! neither as text nor as a `source`.

use std::fmt;

/// Message of a decoding error without quoted values. Field names may be missing from it, too.
#[derive(Debug)]
pub struct Redacted(String);

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Redacted {
    /// Redacts the message of serde, such as `invalid type: string "x", expected u16`.
    pub fn new(message: &str) -> Self {
        for kind in ["invalid type: ", "invalid value: "] {
            // The last occurrence, because the value itself may contain the separator.
            if let Some((rest, expected)) = message
                .strip_prefix(kind)
                .and_then(|rest| rest.rsplit_once(", expected "))
            {
                // The lower-case words before the value name its type.
                let unexpected: Vec<_> = rest
                    .split(' ')
                    .take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase()))
                    .collect();
                return Self(format!(
                    "{kind}{}, expected {}",
                    yaml_term(&unexpected.join(" ")),
                    yaml_term(&without_quotes(expected))
                ));
            }
        }
        // The field is one of ours, not of the file.
        if message.starts_with("missing field `") {
            return Self(message.replace('`', ""));
        }
        Self(without_quotes(message))
    }
}

/// Replaces the name of a Rust type or of serde's data model by a term of YAML and Kubernetes.
fn yaml_term(name: &str) -> String {
    match name {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "integer" => "a whole number",
        "f32" | "f64" | "floating point" => "a number",
        "map" | "a map" => "a mapping",
        "sequence" | "a sequence" => "a list",
        "string" => "a string",
        "boolean" => "a boolean",
        // `struct PodSpec` of serde, `Role` of the Kubernetes types.
        name if name.starts_with("struct ") || name.starts_with(char::is_uppercase) => "a mapping",
        name => name,
    }
    .to_owned()
}

/// Reason why a file is not YAML.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    #[error("{0}")]
    Syntax(Redacted),
    #[error("unexpected end of the file")]
    UnexpectedEnd,
    #[error("duplicate key in a mapping")]
    DuplicateKey,
    #[error("a number is out of range")]
    NumberOutOfRange,
    #[error("too large or too deeply nested, or too many aliases")]
    TooLarge,
    #[error("the document cannot be decoded")]
    Other,
}

impl YamlError {
    pub fn new(error: &serde_saphyr::Error) -> Self {
        use serde_saphyr::Error;
        match error.without_snippet() {
            // The message of the scanner, which may quote the file.
            Error::ExternalMessage { msg, .. } => Self::Syntax(Redacted(without_quotes(msg))),
            Error::Eof { .. } => Self::UnexpectedEnd,
            Error::DuplicateMappingKey { .. } => Self::DuplicateKey,
            Error::NonFiniteFloat { .. } => Self::NumberOutOfRange,
            Error::Budget { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. } => Self::TooLarge,
            _ => Self::Other,
        }
    }
}

/// Replaces text in quotes or backticks by an ellipsis.
fn without_quotes(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(['"', '\'', '`']) {
        kept.push_str(&rest[..start]);
        kept.push('…');
        let quote = rest[start..].chars().next().unwrap_or('"');
        // Up to the last quote of this kind, because the value may contain quotes.
        rest = rest[start + 1..]
            .rsplit_once(quote)
            .map_or("", |(_, after)| after);
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_types_and_removes_values() {
        for (message, redacted) in [
            (
                r#"invalid type: string "s3cr3t", expected u16"#,
                "invalid type: a string, expected a whole number from 0 to 65535",
            ),
            (
                r#"invalid type: string "a, expected s3cr3t", expected u16"#,
                "invalid type: a string, expected a whole number from 0 to 65535",
            ),
            (
                "invalid value: integer `70000`, expected u16",
                "invalid value: a whole number, expected a whole number from 0 to 65535",
            ),
            (
                "invalid type: map, expected a sequence",
                "invalid type: a mapping, expected a list",
            ),
            (
                r#"invalid type: string "s3cr3t", expected struct PodSpec"#,
                "invalid type: a string, expected a mapping",
            ),
            ("missing field `port`", "missing field port"),
            ("unclosed 's3cr3t", "unclosed …"),
            ("not an IP address", "not an IP address"),
        ] {
            assert_eq!(Redacted::new(message).to_string(), redacted, "{message}");
        }
    }
}
