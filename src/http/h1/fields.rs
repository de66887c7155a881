//! Field lines (RFC 9112 section 5) of heads and trailer sections.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use memchr::memchr;

use crate::http::MAX_HEADERS;

/// Strictness of a parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The grammar of RFC 9112, for requests.
    Strict,
    /// The grammar, and the deviations that Go's client accepts and that leave the framing certain,
    /// for responses: lines that end with LF, whitespace before the colon, folded lines, and lines
    /// without a valid name, which are dropped.
    Tolerant,
}

/// Reason why a head or a trailer section is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("a line does not end with CRLF")]
    LineEnd,
    #[error("a header line has no colon")]
    NoColon,
    #[error("invalid header name {0:?}")]
    Name(String),
    #[error("invalid value of header {0}")]
    Value(HeaderName),
    #[error("a header line begins with whitespace (obsolete line folding)")]
    Folded,
    #[error("more than {} header fields", MAX_HEADERS)]
    TooManyFields,
}

/// Names of the fields of a head, in the order and spelling of the sender.
///
/// `HeaderMap` has lower-case names, and a removal changes its order. Some applications compare
/// names case-sensitively, so that a proxy must keep what it received.
#[derive(Clone, Debug, Default)]
pub struct FieldNames {
    head: Bytes,
    /// Offset and length of each name in `head`.
    spans: Vec<(u32, u16)>,
}

impl FieldNames {
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.spans
            .iter()
            .map(|(start, length)| &self.head[*start as usize..][..usize::from(*length)])
    }
}

/// Fields of a head or a trailer section.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub headers: HeaderMap,
    pub names: FieldNames,
    /// All names are spelled like `Content-Type`. Not determined in strict mode, and false then.
    pub title_case: bool,
    /// Number of lines without a valid name that were dropped.
    pub dropped: u64,
}

/// Returns the length of the head at the start of `bytes`, its empty line included, or `None` if it
/// is incomplete. The first `scanned` bytes are known to contain no end.
///
/// Lines may end with LF here, and a CR at the start of a line ends the head whatever follows. The
/// parser rejects such a head afterwards, instead of waiting for an end that does not follow.
pub fn find_head_end(bytes: &[u8], scanned: usize) -> Option<usize> {
    // The end has at most three bytes: LF, CR, LF.
    let mut at = scanned.saturating_sub(3);
    while let Some(found) = memchr(b'\n', &bytes[at..]) {
        at += found + 1;
        match bytes.get(at..) {
            Some([b'\n', ..]) => return Some(at + 1),
            Some([b'\r', b'\n', ..]) => return Some(at + 2),
            Some([b'\r', _, ..]) => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Returns the end of the line that begins at `start`, without its line break, and the start of the
/// next line.
pub(super) fn line(bytes: &[u8], start: usize, mode: Mode) -> Result<(usize, usize), HeadError> {
    let end = start + memchr(b'\n', &bytes[start..]).ok_or(HeadError::LineEnd)?;
    if end > start && bytes[end - 1] == b'\r' {
        Ok((end - 1, end + 1))
    } else if mode == Mode::Tolerant {
        Ok((end, end + 1))
    } else {
        Err(HeadError::LineEnd)
    }
}

/// Parses the field lines from `start` to the empty line that ends `head`. `visit` gets each field
/// and returns false for one that is not kept.
pub(super) fn parse_fields(
    head: &Bytes,
    start: usize,
    mode: Mode,
    mut visit: impl FnMut(&HeaderName, &HeaderValue) -> bool,
) -> Result<Fields, HeadError> {
    let mut fields = Fields {
        headers: HeaderMap::with_capacity(TYPICAL_FIELDS),
        title_case: true,
        ..Fields::default()
    };
    let mut spans = Vec::with_capacity(TYPICAL_FIELDS);
    let mut next = start;
    let mut count = 0;
    loop {
        let begin = next;
        let (mut end, after) = line(head, begin, mode)?;
        next = after;
        if begin == end {
            fields.names = FieldNames {
                head: head.clone(),
                spans,
            };
            return Ok(fields);
        }
        if is_whitespace(head[begin]) {
            // A tolerant parser has read the folds of a field with its first line: this one has
            // none to continue.
            return Err(HeadError::Folded);
        }
        let mut folded = Vec::new();
        while mode == Mode::Tolerant && head.get(next).copied().is_some_and(is_whitespace) {
            let (fold_end, after) = line(head, next, mode)?;
            if folded.is_empty() {
                folded.extend_from_slice(&head[begin..end]);
            }
            // One space replaces the line break and the whitespace around it (RFC 9112 section
            // 5.2).
            folded.truncate(trimmed(&folded, 0, folded.len()).1);
            folded.push(b' ');
            let (from, to) = trimmed(head, next, fold_end);
            folded.extend_from_slice(&head[from..to]);
            (end, next) = (fold_end, after);
        }
        count += 1;
        if count > MAX_HEADERS {
            return Err(HeadError::TooManyFields);
        }
        let text = if folded.is_empty() {
            &head[begin..end]
        } else {
            &folded[..]
        };
        let Some(colon) = text.iter().position(|byte| *byte == b':') else {
            if mode == Mode::Tolerant {
                fields.dropped += 1;
                continue;
            }
            return Err(HeadError::NoColon);
        };
        let mut spelled = &text[..colon];
        if mode == Mode::Tolerant {
            spelled = &spelled[..trimmed(spelled, 0, colon).1];
        }
        let Ok(name) = HeaderName::from_bytes(spelled) else {
            if mode == Mode::Tolerant && !resembles_framing(spelled) {
                fields.dropped += 1;
                continue;
            }
            return Err(HeadError::Name(printable(spelled)));
        };
        let value = if folded.is_empty() {
            let (from, to) = trimmed(head, begin + colon + 1, end);
            HeaderValue::from_maybe_shared(head.slice(from..to))
        } else {
            let (from, to) = trimmed(text, colon + 1, text.len());
            HeaderValue::from_bytes(&text[from..to])
        };
        let Ok(value) = value else {
            return Err(HeadError::Value(name));
        };
        if !visit(&name, &value) {
            continue;
        }
        fields.title_case &= mode == Mode::Tolerant && is_title_case(spelled);
        spans.push((offset(begin), spelled_length(spelled)));
        fields
            .headers
            .try_append(name, value)
            .map_err(|_| HeadError::TooManyFields)?;
    }
}

/// Number of fields for which the map has room from the start, those that the bastion adds
/// included. Browsers send about 20; growing once costs as much as inserting a few fields.
const TYPICAL_FIELDS: usize = 20;

/// Returns true if a name is spelled like `Content-Type`.
fn is_title_case(name: &[u8]) -> bool {
    let mut begins_word = true;
    name.iter().all(|byte| {
        let fits = if begins_word {
            !byte.is_ascii_lowercase()
        } else {
            !byte.is_ascii_uppercase()
        };
        begins_word = *byte == b'-';
        fits
    })
}

/// Spaces and tabs; the only whitespace around values (RFC 9110 section 5.6.3).
fn is_whitespace(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Returns the range without surrounding whitespace.
fn trimmed(bytes: &[u8], mut from: usize, mut to: usize) -> (usize, usize) {
    while from < to && is_whitespace(bytes[from]) {
        from += 1;
    }
    while from < to && is_whitespace(bytes[to - 1]) {
        to -= 1;
    }
    (from, to)
}

/// Returns true if an invalid name looks like one that frames the body. Such a line is not dropped:
/// its sender may have meant it.
fn resembles_framing(name: &[u8]) -> bool {
    let letters: Vec<u8> = name
        .iter()
        .filter(|byte| byte.is_ascii_alphabetic())
        .map(u8::to_ascii_lowercase)
        .collect();
    letters == b"contentlength" || letters == b"transferencoding"
}

fn offset(at: usize) -> u32 {
    u32::try_from(at).expect("heads are limited to 1 MiB")
}

fn spelled_length(name: &[u8]) -> u16 {
    u16::try_from(name.len()).expect("a valid header name is shorter than 64 KiB")
}

/// Returns the start of a malformed name for an error message.
fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned()
}

/// Returns true for fields that must not be in a trailer section (RFC 9110 section 6.5.1): those
/// that frame, route, authenticate or control a message. Fields that only have a meaning for the
/// bastion are removed by the pipeline.
pub(super) fn is_forbidden_trailer(name: &HeaderName) -> bool {
    crate::http::is_hop_by_hop(name.as_str())
        || [
            header::AGE,
            header::AUTHORIZATION,
            header::CACHE_CONTROL,
            header::CONTENT_ENCODING,
            header::CONTENT_LENGTH,
            header::CONTENT_RANGE,
            header::CONTENT_TYPE,
            header::COOKIE,
            header::EXPECT,
            header::HOST,
            header::LOCATION,
            header::MAX_FORWARDS,
            header::PRAGMA,
            header::RANGE,
            header::SET_COOKIE,
            header::TRAILER,
            header::VARY,
            header::WWW_AUTHENTICATE,
        ]
        .contains(name)
}

/// Removes the fields that must not be in a trailer section.
pub fn remove_forbidden_trailers(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| is_forbidden_trailer(name))
        .cloned()
        .collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &'static str, mode: Mode) -> Result<Fields, HeadError> {
        parse_fields(&Bytes::from_static(text.as_bytes()), 0, mode, |_, _| true)
    }

    #[test]
    fn finds_end_of_head_in_any_split() {
        for (text, end) in [
            ("a\r\n\r\nb", Some(5)),
            ("a\n\nb", Some(3)),
            ("a\n\r\nb", Some(4)),
            ("a\r\nb\r\n", None),
            ("a\r\n\r", None),
            ("a\r\n\r\r\n", Some(4)),
            ("\r\n\r\n", Some(4)),
        ] {
            assert_eq!(find_head_end(text.as_bytes(), 0), end, "{text:?}");
            for scanned in 0..end.unwrap_or(text.len()) {
                assert_eq!(
                    find_head_end(text.as_bytes(), scanned),
                    end,
                    "{text:?} {scanned}"
                );
            }
        }
    }

    #[test]
    fn keeps_order_and_spelling_of_names() {
        let fields = parse("B: 1\r\na-B:2 \r\nB:\t3\r\n\r\n", Mode::Strict).unwrap();
        let names: Vec<_> = fields.names.iter().collect();
        assert_eq!(names, [&b"B"[..], b"a-B", b"B"]);
        assert!(!fields.title_case);
        assert_eq!(fields.headers["a-b"], "2");
        let values: Vec<_> = fields.headers.get_all("b").iter().collect();
        assert_eq!(values, ["1", "3"]);
    }

    #[test]
    fn recognizes_title_case() {
        for (name, title) in [
            ("Content-Type", true),
            ("X-1-A", true),
            ("ETag", false),
            ("content-Type", false),
            ("WWW-Authenticate", false),
            ("_a", true),
        ] {
            let text = Bytes::from(format!("{name}: 1\r\n\r\n"));
            let fields = parse_fields(&text, 0, Mode::Tolerant, |_, _| true).unwrap();
            assert_eq!(fields.title_case, title, "{name}");
        }
    }

    #[test]
    fn strict_mode_rejects_deviations() {
        for (text, error) in [
            ("A: 1\n\r\n", HeadError::LineEnd),
            ("A: 1\r\n\n", HeadError::LineEnd),
            ("A 1\r\n\r\n", HeadError::NoColon),
            ("A : 1\r\n\r\n", HeadError::Name("A ".into())),
            (": 1\r\n\r\n", HeadError::Name(String::new())),
            ("A b: 1\r\n\r\n", HeadError::Name("A b".into())),
            (" A: 1\r\n\r\n", HeadError::Folded),
            ("A: 1\r\n 2\r\n\r\n", HeadError::Folded),
            (
                "A: 1\r2\r\n\r\n",
                HeadError::Value(HeaderName::from_static("a")),
            ),
            (
                "A: \0\r\n\r\n",
                HeadError::Value(HeaderName::from_static("a")),
            ),
        ] {
            assert_eq!(parse(text, Mode::Strict).unwrap_err(), error, "{text:?}");
        }
    }

    #[test]
    fn tolerant_mode_reads_what_go_reads() {
        let text = "A : 1\nB: 2\t\n  3\r\n\t4 \nX y: 5\nno colon\nC: 6\n\n";
        let fields = parse(text, Mode::Tolerant).unwrap();
        assert_eq!(fields.dropped, 2);
        assert_eq!(fields.headers["a"], "1");
        assert_eq!(fields.headers["b"], "2 3 4");
        assert_eq!(fields.headers["c"], "6");
        assert_eq!(fields.headers.len(), 3);
    }

    #[test]
    fn tolerant_mode_finds_colon_in_a_folded_line() {
        let fields = parse("X\r\n    : 5\r\n\r\n", Mode::Tolerant).unwrap();
        assert_eq!(fields.headers["x"], "5");
        let names: Vec<_> = fields.names.iter().collect();
        assert_eq!(names, [b"X"]);
    }

    #[test]
    fn tolerant_mode_trims_only_spaces_and_tabs() {
        for text in [
            "Content-Length\x0c: 3\r\n\r\n",
            "Content-Length\r: 3\r\n\r\n",
            "A: b\r\r\n c\r\n\r\n",
        ] {
            assert!(parse(text, Mode::Tolerant).is_err(), "{text:?}");
        }
    }

    #[test]
    fn tolerant_mode_rejects_doubtful_framing() {
        for text in [
            "Content Length: 1\r\n\r\n",
            "Transfer\x0bEncoding: chunked\r\n\r\n",
        ] {
            assert!(matches!(
                parse(text, Mode::Tolerant),
                Err(HeadError::Name(_))
            ));
        }
        assert!(matches!(
            parse(" a: b\r\n\r\n", Mode::Tolerant),
            Err(HeadError::Folded)
        ));
    }

    #[test]
    fn limits_number_of_fields() {
        let text = |count: usize| Bytes::from("A: 1\r\n".repeat(count) + "\r\n");
        let parse = |count| parse_fields(&text(count), 0, Mode::Strict, |_, _| true);
        assert_eq!(parse(MAX_HEADERS).unwrap().headers.len(), MAX_HEADERS);
        assert_eq!(
            parse(MAX_HEADERS + 1).unwrap_err(),
            HeadError::TooManyFields
        );
    }
}
