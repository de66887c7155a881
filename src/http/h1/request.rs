//! Heads of requests (RFC 9112 section 3), parsed strictly.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Version, header};
use memchr::memchr;

use super::fields::{HeadError, Mode, line, parse_fields};
use super::framing::{Framing, FramingError, FramingFields};
use crate::http::authority::{is_authority, is_connect_authority};
use crate::http::target::{InvalidTarget, RequestTarget};
use crate::http::{MAX_HEADER_BYTES, RequestHead};
use crate::model::proxy_header::{PREFIX_V1, SIGNATURE_V2};

/// Maximum length of a method in bytes. The longest registered one has 17.
const MAX_METHOD: usize = 64;
/// Content type of a TLS record with a handshake message (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Parsed head of a request.
#[derive(Debug)]
pub struct ParsedRequest {
    pub head: RequestHead,
    pub framing: Framing,
    /// The client keeps the connection open for further requests.
    pub keep_alive: bool,
    /// The client waits for 100 before it sends the body (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
    /// The client asks for another protocol, maybe.
    pub upgrade: bool,
}

/// Reason why a request is rejected before the pipeline sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("malformed request line")]
    RequestLine,
    /// The text of Go's server, which is also the body of the response.
    #[error("Client sent an HTTP request to an HTTPS server.")]
    PlainHttp,
    #[error(
        "the client began a TLS handshake where HTTP is expected; \
         serving.insecureListenAddress is a port for http:// URLs"
    )]
    Tls,
    #[error(
        "the connection begins with a header of the PROXY protocol, and its address is not in \
         serving.proxyProtocol.from"
    )]
    ProxyHeader,
    #[error("invalid method in the request line")]
    Method,
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    #[error("unsupported HTTP version: this port serves HTTP/1.0 and HTTP/1.1")]
    Version,
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// RFC 9112 section 3.2.
    #[error("the request must have exactly one Host header")]
    HostCount,
    #[error("invalid Host header")]
    Host,
    #[error("unsupported Expect header: only 100-continue is accepted")]
    Expectation,
    #[error(
        "the request line is longer than {} bytes",
        crate::http::MAX_HEADER_BYTES
    )]
    LineTooLong,
    #[error(
        "the request head is longer than {} bytes",
        crate::http::MAX_HEADER_BYTES
    )]
    HeadTooLong,
    #[error("the memory for large request heads is used up (serving.maxHeadMemory); retry later")]
    HeadMemory,
    #[error("the request head was not received within serving.headTimeout")]
    HeadTimeout,
}

impl RequestError {
    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Framing(FramingError::UnsupportedCoding) => StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::LineTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLong | Self::HeadMemory | Self::Head(HeadError::TooManyFields) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::RequestLine
            | Self::PlainHttp
            | Self::Tls
            | Self::ProxyHeader
            | Self::Method
            | Self::Target(_)
            | Self::Head(_)
            | Self::Framing(_)
            | Self::HostCount
            | Self::Host => StatusCode::BAD_REQUEST,
        }
    }
}

/// Method and target of a request that is rejected, as far as they are valid. For its log line.
#[derive(Debug, Default)]
pub struct RejectedLine {
    pub method: Option<Method>,
    pub target: Option<RequestTarget>,
    pub version: Option<Version>,
}

/// Parses a complete head, as [`find_head_end`](super::find_head_end) delimits it.
///
/// # Errors
/// [`RequestError`] with the parts of the request line that are valid.
pub fn parse_request(head: &Bytes) -> Result<ParsedRequest, (RequestError, Box<RejectedLine>)> {
    let mut parsed = RejectedLine::default();
    parse(head, &mut parsed)
        .map_err(|error| (other_protocol(head).unwrap_or(error), Box::new(parsed)))
}

fn parse(head: &Bytes, rejected: &mut RejectedLine) -> Result<ParsedRequest, RequestError> {
    let (end, next) = line(head, 0, Mode::Strict)?;
    let request_line = &head[..end];
    // Exactly two spaces: a target with a raw space would make a third.
    let first = memchr(b' ', request_line).ok_or(RequestError::RequestLine)?;
    let last = memchr::memrchr(b' ', request_line).ok_or(RequestError::RequestLine)?;
    if first == last {
        return Err(RequestError::RequestLine);
    }
    let method = &request_line[..first];
    if method.len() > MAX_METHOD {
        return Err(RequestError::Method);
    }
    let method = Method::from_bytes(method).map_err(|_| RequestError::Method)?;
    rejected.method = Some(method.clone());
    let version = parse_version(&request_line[last + 1..])?;
    rejected.version = Some(version);
    let target = RequestTarget::parse(&method, &request_line[first + 1..last])?;
    rejected.target = Some(target.clone());
    let http11 = version == Version::HTTP_11;

    let mut framing = FramingFields::default();
    let (mut hosts, mut expects, mut expects_other) = (0, false, false);
    let mut host_is_valid = true;
    let fields = parse_fields(head, next, Mode::Strict, |name, value| {
        if *name == header::HOST {
            hosts += 1;
            host_is_valid = is_authority(value.as_bytes())
                || target.tunnel().is_some() && is_connect_authority(value.as_bytes());
        } else if *name == header::EXPECT {
            expects = true;
            expects_other |= !is_continue(value);
        }
        framing.visit(name, value)
    })?;
    if hosts > 1 || (hosts == 0 && http11) {
        return Err(RequestError::HostCount);
    }
    if !host_is_valid {
        return Err(RequestError::Host);
    }
    let length = framing.of_request(http11)?;
    // Some clients send `Content-Length: 0`.
    if target.tunnel().is_some() && length != Framing::Empty {
        return Err(FramingError::ConnectContent.into());
    }
    // HTTP/1.0 has no interim responses, and a server must ignore the field (RFC 9110 section
    // 10.1.1).
    if http11 && expects_other {
        return Err(RequestError::Expectation);
    }
    Ok(ParsedRequest {
        head: RequestHead {
            method,
            target,
            version,
            headers: fields.headers,
            names: fields.names,
        },
        framing: length,
        keep_alive: if http11 {
            !framing.close
        } else {
            framing.keep_alive && !framing.close
        },
        expects_continue: http11 && expects && length != Framing::Empty,
        upgrade: framing.upgrade,
    })
}

/// Returns true for the only valid value of `Expect` (RFC 9110 section 10.1.1).
pub fn is_continue(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

fn parse_version(text: &[u8]) -> Result<Version, RequestError> {
    match text {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        b"HTTP/1.0" => Ok(Version::HTTP_10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(RequestError::Version)
        }
        _ => Err(RequestError::RequestLine),
    }
}

/// Returns the error of a head that exceeds the limit: `head` is what was read of it.
pub(super) fn too_long(head: &[u8]) -> RequestError {
    let line = memchr(b'\n', head).unwrap_or(head.len());
    if line > MAX_HEADER_BYTES as usize {
        RequestError::LineTooLong
    } else {
        RequestError::HeadTooLong
    }
}

/// Returns the error of an incomplete head whose first bytes cannot begin a request, such as those
/// of a TLS handshake. Without this check the sender would wait for the head timeout.
pub(super) fn rejects_prefix(bytes: &[u8]) -> Option<RequestError> {
    if bytes == b"\r" {
        // Maybe the empty line that is ignored before a request.
        return None;
    }
    if let Some(error) = other_protocol(bytes) {
        return Some(error);
    }
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_token = |byte: &u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(byte);
    let prefix = &method[..method.len().min(MAX_METHOD + 1)];
    (prefix.len() > MAX_METHOD || !prefix.iter().all(is_token)).then_some(RequestError::Method)
}

/// Returns the error of bytes that begin another protocol, and cannot begin a request.
fn other_protocol(bytes: &[u8]) -> Option<RequestError> {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return Some(RequestError::Tls);
    }
    let is_line = || {
        let line = bytes.strip_prefix(PREFIX_V1).unwrap_or_default();
        [&b"TCP4 "[..], b"TCP6 ", b"UNKNOWN"]
            .iter()
            .any(|family| line.starts_with(family))
    };
    // The first line end of the signature has been taken for the empty line before a request.
    (bytes.starts_with(&SIGNATURE_V2[2..]) || is_line()).then_some(RequestError::ProxyHeader)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ParsedRequest, RequestError> {
        parse_request(&Bytes::copy_from_slice(text.as_bytes())).map_err(|(error, _)| error)
    }

    fn with_host(line: &str) -> Result<ParsedRequest, RequestError> {
        parse(&format!("{line}\r\nHost: a\r\n\r\n"))
    }

    #[test]
    fn parses_request_with_body() {
        let text = "POST /a?b HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\nX-A: 1\r\n\r\n";
        let parsed = parse(text).unwrap();
        let head = parsed.head;
        assert_eq!(
            (head.method, head.target.path_and_query()),
            (Method::POST, "/a?b")
        );
        assert_eq!((head.headers.len(), head.version), (3, Version::HTTP_11));
        assert_eq!(
            (parsed.framing, parsed.keep_alive),
            (Framing::Length(3), true)
        );
        assert!(!parsed.expects_continue);
    }

    #[test]
    fn rejects_malformed_request_lines() {
        use RequestError::{Method, RequestLine, Target, Version};
        for (line, error) in [
            ("GET", RequestLine),
            ("GET /", RequestLine),
            ("GET  HTTP/1.1", Target(InvalidTarget::Form)),
            ("GET / HTTP/1.1 ", RequestLine),
            ("GET / a HTTP/1.1", Target(InvalidTarget::Character)),
            ("GET  / HTTP/1.1", Target(InvalidTarget::Form)),
            (" GET / HTTP/1.1", Method),
            ("G@T / HTTP/1.1", Method),
            ("GET / http/1.1", RequestLine),
            ("GET / HTTP/1", RequestLine),
            ("GET / HTTP/1.10", RequestLine),
            ("GET / HTTP/1.2", Version),
            ("GET / HTTP/2.0", Version),
            ("GET / HTTP/0.9", Version),
            ("GET\t/ HTTP/1.1", RequestLine),
        ] {
            assert_eq!(with_host(line).unwrap_err(), error, "{line}");
        }
        let long = format!("{} / HTTP/1.1", "A".repeat(MAX_METHOD + 1));
        assert_eq!(with_host(&long).unwrap_err(), Method);
    }

    #[test]
    fn rejection_has_valid_parts_of_request_line() {
        let head = Bytes::from_static(b"GET /a HTTP/1.1\r\nHost: a b\r\n\r\n");
        let (error, line) = parse_request(&head).unwrap_err();
        assert_eq!(error, RequestError::Host);
        assert_eq!(line.method, Some(Method::GET));
        assert_eq!(line.target.unwrap().path(), "/a");
    }

    #[test]
    fn requires_one_valid_host() {
        let host = |lines: &str, version: &str| {
            parse(&format!("GET / HTTP/{version}\r\n{lines}\r\n"))
                .map(|parsed| parsed.head.headers.len())
        };
        assert_eq!(host("", "1.1"), Err(RequestError::HostCount));
        assert_eq!(host("", "1.0"), Ok(0));
        assert_eq!(
            host("Host: a\r\nHost: a\r\n", "1.1"),
            Err(RequestError::HostCount)
        );
        assert_eq!(
            host("Host: a\r\nHost: a\r\n", "1.0"),
            Err(RequestError::HostCount)
        );
        assert_eq!(host("Host:\r\n", "1.1"), Ok(1));
        assert_eq!(host("Host: u@a\r\n", "1.1"), Err(RequestError::Host));
        assert_eq!(host("Host: a/b\r\n", "1.0"), Err(RequestError::Host));
    }

    #[test]
    fn keeps_connection_open_by_version_and_options() {
        let keeps = |version: &str, connection: &str| {
            parse(&format!(
                "GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n"
            ))
            .unwrap()
            .keep_alive
        };
        assert!(keeps("1.1", "") && !keeps("1.1", "Connection: close\r\n"));
        assert!(!keeps("1.0", "") && keeps("1.0", "Connection: keep-alive\r\n"));
        assert!(!keeps("1.0", "Connection: keep-alive, close\r\n"));
    }

    #[test]
    fn expects_continue_only_with_a_body() {
        let expects = |lines: &str| {
            parse(&format!("PUT / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"))
                .map(|parsed| parsed.expects_continue)
        };
        assert_eq!(
            expects("Expect: 100-Continue\r\nContent-Length: 1\r\n"),
            Ok(true)
        );
        assert_eq!(expects("Expect: 100-continue\r\n"), Ok(false));
        for lines in ["Expect: x\r\n", "Expect: x\r\nExpect: 100-continue\r\n"] {
            assert_eq!(expects(lines), Err(RequestError::Expectation));
        }
    }

    #[test]
    fn names_other_protocols_in_place_of_a_request() {
        for (start, error) in [
            (&b"\x16\x03\x01"[..], RequestError::Tls),
            (b"\x16", RequestError::Tls),
            (b"PROXY TCP4 192.0.2.7 ", RequestError::ProxyHeader),
            (
                b"PROXY TCP6 ::1 ::1 1 2\r\n\x16\x03",
                RequestError::ProxyHeader,
            ),
            (b"PROXY UNKNOWN\r\n", RequestError::ProxyHeader),
            (b"\r\n\0\r\nQUIT\n\x21", RequestError::ProxyHeader),
        ] {
            assert_eq!(rejects_prefix(start), Some(error), "{start:?}");
        }
        assert_eq!(rejects_prefix(b"PROXY /path HTTP"), None);
        for head in [
            "PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\0\r\nQUIT\n\x21\x11\0\x00GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(
                parse(head).unwrap_err(),
                RequestError::ProxyHeader,
                "{head:?}"
            );
        }
        assert_eq!(
            with_host("PROXY /path HTTP/1.1").unwrap().head.method,
            "PROXY"
        );
    }

    #[test]
    fn rejects_prefix_that_cannot_begin_a_request() {
        for (prefix, rejected) in [
            (&b"GET"[..], false),
            (b"GET /\xff", false),
            (b"\x17\x03\x01", true),
            (b"GE\nT", true),
            (b"", false),
            (b"\r", false),
            (&[b'A'; MAX_METHOD + 1], true),
        ] {
            assert_eq!(rejects_prefix(prefix).is_some(), rejected, "{prefix:?}");
        }
    }
}
