//! Errors of the YAML document of a configuration, in terms of its fields.

use std::fmt;

use serde_saphyr::Error;

use super::{API_VERSION, KIND};

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
    pub(super) fn new(text: &str, error: &Error) -> Self {
        let (line, column) = error
            .location()
            .map_or((1, 1), |location| (location.line(), location.column()));
        let (line, column) = (line.max(1), column.max(1));
        let field = match error.without_snippet() {
            Error::Eof { .. } | Error::MultipleDocuments { .. } => String::new(),
            _ => field_at(text, line, column),
        };
        Self {
            line,
            column,
            field,
            reason: reason(error),
        }
    }
}

/// Replaces messages that address the users of the library. Messages of this crate's own parsers
/// stay as they are.
fn reason(error: &Error) -> String {
    let required = format!("the file requires apiVersion: {API_VERSION} and kind: {KIND}");
    match error.without_snippet() {
        Error::Message { msg, .. } => msg.clone(),
        Error::ExternalMessage { msg, .. } => format!("not valid YAML: {msg}"),
        Error::Eof { .. } => format!("the document is empty or incomplete; {required}"),
        Error::SerdeMissingField { field, .. } => format!("{field} is not set; {required}"),
        Error::SerdeUnknownField {
            field, expected, ..
        } => format!("unknown field {field:?}; use {}", alternatives(expected)),
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => format!(
            "{variant:?} is not a valid value; use {}",
            alternatives(expected)
        ),
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
            "mapping start" => "the value is not a mapping of fields".to_owned(),
            "sequence start" => "the value is not a list".to_owned(),
            "string scalar" => "the value is not a scalar".to_owned(),
            expected => format!("expected {expected}"),
        },
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => {
            "the value is not a scalar".to_owned()
        }
        other => {
            let message = other.to_string();
            // The position precedes the message already.
            match message.rsplit_once(" at line ") {
                Some((message, _)) => message.to_owned(),
                None => message,
            }
        }
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

/// Returns the path of the field whose value begins at a position. The parser reports positions
/// only, so the path is taken from the indentation of the lines above and the keys before the
/// position. Flow mappings that span lines are not followed.
fn field_at(text: &str, line: u64, column: u64) -> String {
    let index = |number: u64| usize::try_from(number - 1).unwrap_or(usize::MAX);
    let mut lines = text.lines().take(index(line).saturating_add(1)).peekable();
    let mut above = Vec::new();
    let mut current = "";
    while let Some(next) = lines.next() {
        if lines.peek().is_some() {
            above.push(next);
        } else {
            current = next;
        }
    }
    // The position of an absent value is that of the colon before it.
    let colon = usize::from(current.chars().nth(index(column)) == Some(':'));
    let before: String = current.chars().take(index(column) + colon).collect();
    let mut path = keys(&before);
    // The items of a list may have the indentation of its key.
    let mut indent = indentation(current) + usize::from(current.trim_start().starts_with('-'));
    for line in above.into_iter().rev() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with(['#', '-']) || indentation(line) >= indent {
            continue;
        }
        indent = indentation(line);
        if let Some((key, _)) = content.split_once(':') {
            path.insert(0, key);
        }
    }
    path.join(".")
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Returns the keys that are open at the end of a line's beginning: `a: {b: {c: 1}, d: ` has `a`
/// and `d`.
fn keys(before: &str) -> Vec<&str> {
    let mut path = Vec::new();
    let (mut start, mut lists) = (0, 0_usize);
    for (at, character) in before.char_indices() {
        match character {
            ':' if before[at + 1..].is_empty() || before[at + 1..].starts_with(' ') => {
                path.push(before[start..at].trim().trim_start_matches("- "));
            }
            '[' => lists += 1,
            ']' => lists = lists.saturating_sub(1),
            ',' if lists == 0 => drop(path.pop()),
            '}' if !before[..at].trim_end().ends_with('{') => drop(path.pop()),
            '{' => {}
            _ => continue,
        }
        start = at + 1;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_field_at_a_position() {
        for (text, line, column, field) in [
            ("drain:\n  timeout: 0s\n", 2, 12, "drain.timeout"),
            ("a:\n  b: 1\n\n  # c\n  d:\n    e: 2\n", 6, 8, "a.d.e"),
            ("a: {b: {c: 1}, d: 2}\n", 1, 19, "a.d"),
            ("a: {b: {}, c: 2}\n", 1, 15, "a.c"),
            ("a:\n  b: [X, Y]\n", 2, 10, "a.b"),
            ("a:\n  b:\n  - X\n", 3, 5, "a.b"),
            ("a:\n  b: '127.0.0.1:1'\n", 2, 6, "a.b"),
            ("a:\n  b:\n  c: 1\n", 2, 4, "a.b"),
            ("a: 1\nb: 2\n", 2, 1, ""),
            ("", 1, 1, ""),
        ] {
            assert_eq!(field_at(text, line, column), field, "{text:?}");
        }
    }
}
