//! Conditional requests (RFC 9110 section 13) for files, which have a date but no entity tag.

use http::{HeaderName, Method, header};
use jiff::Timestamp;
use jiff::fmt::rfc2822::{DateTimeParser, DateTimePrinter};

use crate::http::RequestHead;

/// Conditions of a request for a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions<'a> {
    pub head: &'a RequestHead,
    /// Time of the last modification in seconds since the Unix epoch.
    pub modified: Option<i64>,
}

/// Result of the conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome<'a> {
    /// The file is sent, or the range of it that the client requests.
    Send {
        range: Option<&'a str>,
    },
    NotModified,
    /// The client requires a state that the file does not have.
    Failed,
}

impl<'a> Conditions<'a> {
    /// Evaluates the conditions in the order of RFC 9110 section 13.2.2.
    pub fn evaluate(&self) -> Outcome<'a> {
        let required = match self.text(header::IF_MATCH) {
            Some(tags) => names_any(tags),
            None => self.is_before(header::IF_UNMODIFIED_SINCE).unwrap_or(true),
        };
        if !required {
            return Outcome::Failed;
        }
        match self.text(header::IF_NONE_MATCH) {
            Some(tags) if names_any(tags) && self.reads() => return Outcome::NotModified,
            Some(tags) if names_any(tags) => return Outcome::Failed,
            // The date does not count beside it.
            Some(_) => {}
            None if self.is_unmodified() => return Outcome::NotModified,
            None => {}
        }
        let range = self.text(header::RANGE);
        Outcome::Send {
            range: range.filter(|_| self.allows_range()),
        }
    }

    /// Returns true if the client has the file already (`If-Modified-Since`).
    pub fn is_unmodified(&self) -> bool {
        self.reads() && self.is_before(header::IF_MODIFIED_SINCE) == Some(true)
    }

    /// Returns true unless `If-Range` names another state of the file.
    fn allows_range(&self) -> bool {
        match self.text(header::IF_RANGE) {
            Some(state) if self.reads() => self
                .modified
                .is_some_and(|at| parse_date(state) == Some(at)),
            _ => true,
        }
    }

    fn reads(&self) -> bool {
        matches!(self.head.method, Method::GET | Method::HEAD)
    }

    /// Compares the modification with the date of a header. `None` without a valid date.
    fn is_before(&self, name: HeaderName) -> Option<bool> {
        Some(self.modified? <= parse_date(self.text(name)?)?)
    }

    /// Returns a header that is not empty.
    fn text(&self, name: HeaderName) -> Option<&'a str> {
        let value = self.head.headers.get(name)?.to_str().ok()?;
        Some(value).filter(|value| !value.is_empty())
    }
}

/// Returns true if a list of entity tags is `*`. Tags never match, because files have none.
fn names_any(tags: &str) -> bool {
    tags.trim_start_matches([',', ' ', '\t']).starts_with('*')
}

/// Parses a date in the form of `Sun, 06 Nov 1994 08:49:37 GMT`, in seconds since the Unix epoch.
fn parse_date(text: &str) -> Option<i64> {
    let parsed = DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(parsed.as_second())
}

/// Formats a date in the form that [`parse_date`] reads.
pub(super) fn format_date(second: i64) -> Option<String> {
    let timestamp = Timestamp::from_second(second).ok()?;
    let mut text = String::new();
    DateTimePrinter::new()
        .print_timestamp_rfc9110(&timestamp, &mut text)
        .ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::head;

    const MODIFIED: i64 = 784_111_777;
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

    #[test]
    fn evaluates_conditions_as_go_does() {
        let sent = Outcome::Send { range: None };
        let part = Outcome::Send {
            range: Some("bytes=0-1"),
        };
        for (method, headers, expected) in [
            ("GET", &[][..], sent),
            ("GET", &[("if-modified-since", SAME)], Outcome::NotModified),
            (
                "HEAD",
                &[("if-modified-since", AFTER)],
                Outcome::NotModified,
            ),
            ("GET", &[("if-modified-since", BEFORE)], sent),
            ("GET", &[("if-modified-since", "yesterday")], sent),
            ("POST", &[("if-modified-since", SAME)], sent),
            ("GET", &[("if-unmodified-since", SAME)], sent),
            ("GET", &[("if-unmodified-since", BEFORE)], Outcome::Failed),
            ("GET", &[("if-match", "*")], sent),
            ("GET", &[("if-match", "\"a\"")], Outcome::Failed),
            (
                "GET",
                &[("if-match", "*"), ("if-unmodified-since", BEFORE)],
                sent,
            ),
            ("GET", &[("if-none-match", "*")], Outcome::NotModified),
            ("PUT", &[("if-none-match", "*")], Outcome::Failed),
            (
                "GET",
                &[("if-none-match", "\"a\""), ("if-modified-since", SAME)],
                sent,
            ),
            ("GET", &[("range", "bytes=0-1")], part),
            ("GET", &[("range", "bytes=0-1"), ("if-range", SAME)], part),
            ("GET", &[("range", "bytes=0-1"), ("if-range", AFTER)], sent),
            (
                "GET",
                &[("range", "bytes=0-1"), ("if-range", "\"a\"")],
                sent,
            ),
        ] {
            let mut request = http::Request::builder().method(method).uri("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let conditions = Conditions {
                head: &head(request),
                modified: Some(MODIFIED),
            };
            assert_eq!(conditions.evaluate(), expected, "{method} {headers:?}");
        }
    }

    #[test]
    fn formats_date_as_http_requires() {
        assert_eq!(format_date(MODIFIED).as_deref(), Some(SAME));
        assert_eq!(parse_date(SAME), Some(MODIFIED));
    }
}
