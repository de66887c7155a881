//! Errors of the YAML document of a configuration, in terms of its fields.

use std::fmt;

use serde_saphyr::Error;

use super::{API_VERSION, KIND, suggest};
use crate::model::similar::similar;

/// Error of a YAML document that is not a valid configuration: `LINE:COLUMN: FIELD: REASON`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ParseError {
    line: u64,
    column: u64,
    /// Path of the field, such as `upstream.retry.maxAttempts`. Empty at the top level.
    field: String,
    reason: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl ParseError {
    /// `path` is that of the field as `serde_path_to_error` displays it: `.` for the document, `?`
    /// for a key that was not read.
    pub(super) fn new(path: &str, error: &Error) -> Self {
        let (line, column) = error
            .location()
            .map_or((1, 1), |location| (location.line(), location.column()));
        let field = path.trim_end_matches(['.', '?']);
        Self {
            line: line.max(1),
            column: column.max(1),
            field: field.to_owned(),
            reason: reason(field, error),
        }
    }
}

/// Replaces messages that address the users of the library. Messages of this crate's own parsers
/// stay as they are.
fn reason(field: &str, error: &Error) -> String {
    let required = format!("the file requires apiVersion: {API_VERSION} and kind: {KIND}");
    match error.without_snippet() {
        Error::Message { msg, .. } => msg.clone(),
        Error::ExternalMessage { msg, .. } => format!("not valid YAML: {msg}"),
        Error::Eof { .. } => format!("the document is empty or incomplete; {required}"),
        Error::SerdeMissingField { field, .. } => format!("{field} is not set; {required}"),
        // The path ends with the name.
        Error::SerdeUnknownField {
            field: name,
            expected,
            ..
        } => match suggest::fields(field, name, expected) {
            Some(suggestion) => format!("unknown field; did you mean {suggestion}?"),
            None => format!("unknown field; use {}", alternatives(expected)),
        },
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => invalid_value(variant, expected),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("duplicate field {key:?}; remove one of them")
        }
        Error::DuplicateMappingKey { key: None, .. } => {
            "duplicate field; remove one of them".to_owned()
        }
        Error::MultipleDocuments { .. } => {
            "the file has several YAML documents; use one document per file".to_owned()
        }
        Error::Unexpected { expected, .. } => match *expected {
            "mapping start" if field.is_empty() => {
                format!("the document is not a mapping of fields; {required}")
            }
            "mapping start" => {
                "the value is not a mapping of fields; write them indented below it".to_owned()
            }
            "sequence start" => "the value is not a list; write [A, B]".to_owned(),
            "string scalar" => NOT_A_SCALAR.to_owned(),
            expected => format!("expected {expected}"),
        },
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => NOT_A_SCALAR.to_owned(),
        Error::NullIntoString { .. } => "null is not a text; write a value".to_owned(),
        Error::TaggedScalarCannotDeserializeIntoString { .. } | Error::UnsupportedTag { .. } => {
            "the value has a YAML tag (!); remove the tag".to_owned()
        }
        Error::UnknownAnchor { .. } => {
            "the YAML alias (*) refers to no anchor (&) before it; write the value".to_owned()
        }
        other => {
            let message = other.to_string();
            // The position precedes the message already.
            let message = match message.rsplit_once(" at line ") {
                Some((message, _)) => message,
                None => &message,
            };
            format!("not a valid configuration: {message}")
        }
    }
}

const NOT_A_SCALAR: &str = "the value is a list or a mapping; write a single value";

/// Message for a value that is not one of a closed set.
fn invalid_value(value: &str, expected: &[&str]) -> String {
    let accepted = alternatives(expected);
    match similar(value, expected) {
        Some(suggestion) => format!(
            "{value:?} is not a valid value; did you mean {suggestion}? Accepted: {accepted}"
        ),
        None => format!("{value:?} is not a valid value; use {accepted}"),
    }
}

/// Joins names as `a, b or c`.
fn alternatives(names: &[&str]) -> String {
    match names {
        [] => "no value".to_owned(),
        [name] => (*name).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
