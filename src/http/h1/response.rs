//! Heads of responses (RFC 9112 section 4), parsed as tolerantly as Go's client does.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::ext::ReasonPhrase;
use memchr::memchr;

use super::fields::{FieldNames, HeadError, Mode, line, parse_fields};
use super::framing::{Framing, FramingError, FramingFields};
use crate::http::{is_hop_by_hop, speaks_for_origin};

/// Parsed head of a response, interim ones included.
#[derive(Debug)]
pub struct ParsedResponse {
    pub status: StatusCode,
    /// Reason phrase, if it is not the usual one of the status.
    pub reason: Option<ReasonPhrase>,
    pub headers: HeaderMap,
    /// `None` if all names are spelled like `Content-Type` and stand in the order of the map.
    pub names: Option<FieldNames>,
    pub framing: Framing,
    /// The endpoint keeps the connection open for further requests.
    pub keep_alive: bool,
    /// Number of header lines without a valid name that were dropped.
    pub dropped: u64,
}

/// Reason why a response is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    #[error("malformed HTTP status line {0:?}")]
    StatusLine(String),
    #[error("unsupported HTTP version in the status line {0:?}")]
    Version(String),
    #[error("malformed HTTP response: {0}")]
    Head(#[from] HeadError),
    #[error("malformed HTTP response: {0}")]
    Framing(#[from] FramingError),
    #[error(
        "the response head is longer than {} bytes",
        crate::http::MAX_HEADER_BYTES
    )]
    HeadTooLong,
}

/// Parses a complete head of the response to a request with `method`.
///
/// # Errors
/// [`ResponseError`] if it is malformed in a way that Go's client rejects, or its framing is
/// uncertain.
pub fn parse_response(head: &Bytes, method: &Method) -> Result<ParsedResponse, ResponseError> {
    let (end, next) = line(head, 0, Mode::Tolerant)?;
    let status_line = &head[..end];
    let shown = || {
        let shown = &status_line[..status_line.len().min(64)];
        String::from_utf8_lossy(shown).into_owned()
    };
    let malformed = || ResponseError::StatusLine(shown());
    let Some(version) = status_line.strip_prefix(b"HTTP/") else {
        return Err(malformed());
    };
    let [b'1', b'.', minor, b' ', rest @ ..] = version else {
        return Err(ResponseError::Version(shown()));
    };
    if !minor.is_ascii_digit() {
        return Err(ResponseError::Version(shown()));
    }
    let http11 = *minor != b'0';
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    let rest = &rest[spaces..];
    // The reason phrase may be missing with its space.
    let (code, reason) = rest.split_at(memchr(b' ', rest).unwrap_or(rest.len()));
    let status = if code.len() == 3 {
        StatusCode::from_bytes(code).map_err(|_| malformed())?
    } else {
        return Err(malformed());
    };
    let reason = reason.trim_ascii();
    let is_usual = status.canonical_reason().unwrap_or_default().as_bytes() == reason;
    let reason = (!is_usual && !reason.is_empty())
        .then(|| ReasonPhrase::try_from(reason).ok())
        .flatten();
    let mut connection = FramingFields::default();
    // A field that the pipeline may remove changes the order of the map.
    let mut may_be_removed = false;
    let mut fields = parse_fields(head, next, Mode::Tolerant, |name, value| {
        let keep = connection.visit(name, value);
        let name = name.as_str();
        may_be_removed |= keep && (is_hop_by_hop(name) || speaks_for_origin(name));
        keep
    })?;
    let (framing, length) = connection.of_response(http11, method, status)?;
    let kept = fields.headers.len();
    if status == StatusCode::SWITCHING_PROTOCOLS || status.is_informational() {
        // They have no body (RFC 9110 section 8.6), and an endpoint that sends a length is not
        // wrong about anything else.
        fields.headers.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = length {
        // A list of equal values is sent as one value.
        if fields
            .headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|value| value.as_bytes().contains(&b','))
        {
            let length = HeaderValue::from(length);
            fields.headers.insert(header::CONTENT_LENGTH, length);
        }
    } else {
        // `Transfer-Encoding` overrides it (RFC 9112 section 6.3).
        fields.headers.remove(header::CONTENT_LENGTH);
    }
    // The map groups equal names, and a removal changes its order.
    let in_order = fields.title_case
        && !may_be_removed
        && fields.headers.len() == kept
        && fields.headers.keys_len() == kept;
    Ok(ParsedResponse {
        status,
        reason,
        headers: fields.headers,
        names: (!in_order).then_some(fields.names),
        framing,
        keep_alive: framing != Framing::UntilClose
            && !connection.close
            && (http11 || connection.keep_alive),
        dropped: fields.dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ParsedResponse, ResponseError> {
        parse_response(&Bytes::copy_from_slice(text.as_bytes()), &Method::GET)
    }

    #[test]
    fn reads_status_lines_as_go_does() {
        for (line, status) in [
            ("HTTP/1.1 200 OK", Some(200)),
            ("HTTP/1.1 200", Some(200)),
            ("HTTP/1.1 200 ", Some(200)),
            ("HTTP/1.0  404 Not\u{fc}Found", Some(404)),
            ("HTTP/1.1 999 x", Some(999)),
            ("HTTP/1.1 20 OK", None),
            ("HTTP/1.1 2000 OK", None),
            ("HTTP/1.1 abc OK", None),
            ("HTTP/1.1 099 OK", None),
            ("HTTP/1.1 \t200 OK", None),
            ("HTTP/2.0 200 OK", None),
            ("HTTP/1. 200 OK", None),
            ("ICY 200 OK", None),
            ("", None),
        ] {
            let parsed = parse(&format!("{line}\r\nContent-Length: 0\r\n\r\n"));
            assert_eq!(
                parsed.ok().map(|parsed| parsed.status.as_u16()),
                status,
                "{line}"
            );
        }
    }

    #[test]
    fn keeps_unusual_reason_phrases() {
        for (line, reason) in [
            ("HTTP/1.1 200 Fine", Some("Fine")),
            ("HTTP/1.1 200 OK", None),
            ("HTTP/1.1 200", None),
            ("HTTP/1.1 799 Very odd ", Some("Very odd")),
            ("HTTP/1.1 200 \0", None),
        ] {
            let parsed = parse(&format!("{line}\r\nContent-Length: 0\r\n\r\n")).unwrap();
            let phrase = parsed.reason.as_ref().map(ReasonPhrase::as_bytes);
            assert_eq!(phrase, reason.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn error_names_the_field() {
        for (lines, name) in [
            (
                "Content-Length: 1\r\nContent-Length: 2\r\n",
                "Content-Length",
            ),
            ("Content-Length: x\r\n", "Content-Length"),
            ("Transfer-Encoding: gzip\r\n", "Transfer-Encoding"),
            ("X-A: \0\r\n", "x-a"),
            ("Content Length: 5\r\n", "Content Length"),
        ] {
            let error = parse(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn sends_equal_repeated_lengths_as_one() {
        for lines in [
            "Content-Length: 2, 2\r\n",
            "Content-Length: 2\r\nContent-Length: 2\r\n",
        ] {
            let parsed = parse(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).unwrap();
            let lengths: Vec<_> = parsed.headers.get_all("content-length").iter().collect();
            assert_eq!(lengths, ["2"]);
            assert_eq!(parsed.framing, Framing::Length(2));
        }
    }

    #[test]
    fn transfer_encoding_removes_content_length() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        let parsed = parse(text).unwrap();
        assert_eq!(parsed.framing, Framing::Chunked);
        assert!(parsed.headers.is_empty());
    }

    #[test]
    fn keeps_connection_only_after_a_framed_response() {
        for (text, keeps) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                false,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
                true,
            ),
        ] {
            assert_eq!(parse(text).unwrap().keep_alive, keeps, "{text:?}");
        }
    }

    #[test]
    fn keeps_names_only_if_their_spelling_or_order_would_be_lost() {
        let names = |line: &str| {
            parse(&format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n"))
                .unwrap()
                .names
                .is_some()
        };
        assert!(!names("Content-Type: a") && !names("Connection: close"));
        assert!(names("content-type: a") && names("Keep-Alive: timeout=5"));
        assert!(names("Alt-Svc: x\r\nA: 1\r\nB: 2"));
        assert!(names("A: 1\r\nB: 2\r\nA: 3"));
        assert!(names(
            "Content-Length: 1\r\nA: 1\r\nTransfer-Encoding: chunked"
        ));
    }
}
