//! Regular expressions in the syntax of Go, which the flags of `kubectl proxy` have.
//!
//! The crate `regex` has the same matches, but another syntax at some places: classes such as `\d`
//! are Unicode, a `{` that begins no repetition is an error, and classes can be nested.

use std::fmt;
use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// Regular expression, with its text in Go's syntax.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

/// Invalid regular expression of a flag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{pattern:?} is not a regular expression: {reason}; the value is a list that is split at each \
     comma, use \\x2c for a comma within an expression"
)]
pub struct InvalidPattern {
    pattern: String,
    reason: String,
}

impl Pattern {
    /// Parses a regular expression.
    ///
    /// # Errors
    /// [`InvalidPattern`] if it is neither valid for Go nor for the crate `regex`.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        // Go has octal escapes.
        let regex = RegexBuilder::new(&translate(text)).octal(true).build();
        let regex = regex.map_err(|error| InvalidPattern {
            pattern: text.to_owned(),
            reason: reason(&error),
        })?;
        Ok(Self {
            text: text.to_owned(),
            regex,
        })
    }

    /// Returns true if any part of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Returns the last line of an error, which has the reason; the lines before it show the position.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").to_owned()
}

/// Translates an expression from Go's syntax.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\\' => escape(&mut rest, &mut out, false),
            '[' => class(&mut rest, &mut out),
            '{' if !begins_repetition(rest.clone()) => out.push_str("\\{"),
            other => out.push(other),
        }
    }
    out
}

/// Translates what follows a backslash.
fn escape(rest: &mut Peekable<Chars<'_>>, out: &mut String, in_class: bool) {
    let Some(character) = rest.next() else {
        // An error in both syntaxes.
        out.push('\\');
        return;
    };
    let (class, negated) = match character {
        'd' => ("0-9", false),
        'D' => ("0-9", true),
        'w' => ("0-9A-Za-z_", false),
        'W' => ("0-9A-Za-z_", true),
        's' => ("\\t\\n\\f\\r ", false),
        'S' => ("\\t\\n\\f\\r ", true),
        'b' if !in_class => return out.push_str("(?-u:\\b)"),
        'Q' if !in_class => return quoted(rest, out),
        // Boundaries of words in the crate.
        '<' | '>' => return out.push(character),
        other => {
            out.push('\\');
            return out.push(other);
        }
    };
    match (in_class, negated) {
        (true, false) => out.push_str(class),
        (_, true) => out.push_str(&format!("[^{class}]")),
        (false, false) => out.push_str(&format!("[{class}]")),
    }
}

/// Translates the text after `\Q`, which is literal up to `\E` or the end.
fn quoted(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    let mut literal = String::new();
    while let Some(character) = rest.next() {
        if character == '\\' && rest.peek() == Some(&'E') {
            rest.next();
            break;
        }
        literal.push(character);
    }
    out.push_str(&regex::escape(&literal));
}

/// Translates the rest of a bracketed class. Within it, Go has named classes but no nested ones and
/// no operators.
fn class(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    out.push('[');
    if rest.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut is_first = true;
    while let Some(character) = rest.next() {
        match character {
            ']' if is_first => out.push_str("\\]"),
            ']' => return out.push(']'),
            '\\' => escape(rest, out, true),
            '[' if rest.peek() == Some(&':') => out.push('['),
            '[' | '&' | '~' => {
                out.push('\\');
                out.push(character);
            }
            '-' if is_first => out.push_str("\\-"),
            '-' if rest.next_if_eq(&'-').is_some() => out.push_str("-\\-"),
            other => out.push(other),
        }
        // The colons and the end of a named class.
        if character == '[' && rest.peek() == Some(&':') {
            for part in rest.by_ref() {
                out.push(part);
                if part == ']' {
                    break;
                }
            }
        }
        is_first = false;
    }
}

/// Returns true if `{` begins a repetition: `{n}`, `{n,}` or `{n,m}`.
fn begins_repetition(mut rest: Peekable<Chars<'_>>) -> bool {
    let mut digits = 0;
    while rest.next_if(char::is_ascii_digit).is_some() {
        digits += 1;
    }
    if digits == 0 {
        return false;
    }
    if rest.next_if_eq(&',').is_some() {
        while rest.next_if(char::is_ascii_digit).is_some() {}
    }
    rest.next() == Some('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_go_does() {
        for (pattern, text, expected) in [
            ("", "anything", true),
            ("^.*", "", true),
            ("^localhost$", "localhost", true),
            ("^localhost$", "localhost\n", false),
            ("fo.*", "xfoo", true),
            // Perl classes and word boundaries have ASCII only.
            (r"^\d+$", "12", true),
            (r"^\d$", "\u{663}", false),
            (r"^\D$", "\u{663}", true),
            (r"^\w+$", "a_1", true),
            (r"^\w$", "\u{e4}", false),
            (r"^\W$", "\u{e4}", true),
            (r"^\s$", "\u{b}", false),
            (r"^\S$", "\u{b}", true),
            (r"\bpods\b", "\u{e4}pods\u{e4}", true),
            (r"^[\w.]+$", "a.b", true),
            (r"^[\D]$", "\u{663}", true),
            (r"^[^\s]$", " ", false),
            // Braces that begin no repetition are literal.
            ("^/{name}$", "/{name}", true),
            ("^a{$", "a{", true),
            ("^a{,2}$", "a{,2}", true),
            ("^a{2}$", "aa", true),
            ("^a{1,}$", "aaa", true),
            // Classes have no nesting and no operators.
            ("^[[]$", "[", true),
            ("^[a[]$", "[", true),
            ("^[a&&b]$", "&", true),
            ("^[a~~b]+$", "a~b", true),
            ("^[]a]$", "]", true),
            ("^[^]a]$", "]", false),
            ("^[+--]$", ",", true),
            ("^[--/]$", ".", true),
            ("^[-a]+$", "-a", true),
            ("^[a-]+$", "-a", true),
            ("^[[:digit:]x]+$", "1x", true),
            ("^[[:^digit:]]$", "1", false),
            (r"^\Qa.b\E.$", "a.bc", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^\Qa*", "a*", true),
            (r"^\<a\>$", "<a>", true),
            (r"^\/\-\_$", "/-_", true),
            (r"^\x2c\054$", ",,", true),
            (r"^\pL$", "\u{e4}", true),
            ("(?i)^API$", "api", true),
            ("(?U)a+", "aaa", true),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(text), expected, "{pattern:?} {text:?}");
        }
    }

    #[test]
    fn rejects_invalid_patterns_with_reason_in_one_line() {
        for pattern in ["(", "[a", "a\\", "*", "(?P<n", r"\8", "[b-a]", "a{2,1}"] {
            let error = Pattern::parse(pattern).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{pattern:?} is not")) && error.lines().count() == 1,
                "{error}"
            );
        }
    }
}
