//! Start of a client's connection: the header of the PROXY protocol, and the protocols that arrive
//! on the HTTPS port in place of TLS.
//!
//! Bytes are peeked at first and only those are taken that do not belong to TLS, so that rustls
//! reads from the socket itself.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::model::proxy_header::{
    self, MAX_HEADER_BYTES, ProxyHeader, ProxyHeaderError, SIGNATURE_V2,
};

/// Response to HTTP/1 on the HTTPS port, that of Go's server and therefore of kube-apiserver.
const HTTP1_RESPONSE: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
/// Response to HTTP/2 without TLS: an empty SETTINGS frame, and a GOAWAY frame (RFC 9113 sections
/// 6.5 and 6.8) with the error code `INADEQUATE_SECURITY` and the same text.
const HTTP2_RESPONSE: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x37\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0c\
    Client sent an HTTP request to an HTTPS server.";

/// First bytes of HTTP/2 (RFC 9113 section 3.4), as far as they resemble a request line.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Number of bytes that tell an HTTP request from other protocols: the longest registered method, a
/// space and the start of the target, with an empty line before them.
const MAX_START_BYTES: usize = 24;

/// Time for which the rest of a rejected request is read, and its maximum length. Closing earlier
/// would reset the connection, and the client would lose the response.
const LINGER: Duration = Duration::from_secs(2);
const MAX_DISCARDED: usize = 256 * 1024;

/// Protocol that a client begins on the HTTPS port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// TLS, or bytes that rustls rejects with an alert.
    Tls,
    Http1,
    Http2,
    /// A header of the PROXY protocol from an address that may not send one.
    ProxyHeader,
    /// Neither of them, and not TLS either.
    Other,
    /// The connection was closed or reset without a byte, as by health checks of load balancers.
    Unused,
}

/// Reason why no header of the PROXY protocol was read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// The connection was closed or reset without a byte.
    #[error("the connection was closed without a byte")]
    Unused,
    #[error("the connection ended within its header of the PROXY protocol")]
    Incomplete,
    #[error(transparent)]
    Invalid(#[from] ProxyHeaderError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the header of the PROXY protocol, and no byte behind it.
pub(super) async fn read_proxy_header(stream: &mut TcpStream) -> Result<ProxyHeader, HeaderError> {
    let mut bytes = vec![0; MAX_HEADER_BYTES];
    let mut length = 0;
    loop {
        let peeked = match stream.peek(&mut bytes[length..]).await {
            Ok(0) if length == 0 => return Err(HeaderError::Unused),
            Ok(0) => return Err(HeaderError::Incomplete),
            Ok(peeked) => peeked,
            Err(error) if length == 0 && is_reset(&error) => return Err(HeaderError::Unused),
            Err(error) => return Err(error.into()),
        };
        let header = proxy_header::parse(&bytes[..length + peeked])?;
        // All bytes of an incomplete header belong to it. Taking them makes the next `peek` wait.
        let end = header.map_or(length + peeked, |header| header.length);
        stream.read_exact(&mut bytes[length..end]).await?;
        length = end;
        if let Some(header) = header {
            return Ok(header);
        }
    }
}

/// Detects the protocol that a client begins on the HTTPS port. Takes bytes from the stream only if
/// it is not TLS.
pub(super) async fn detect(stream: &mut TcpStream) -> io::Result<Opening> {
    let mut start = [0; MAX_START_BYTES];
    match stream.peek(&mut start[..1]).await {
        Ok(0) => return Ok(Opening::Unused),
        Ok(_) => {}
        Err(error) if is_reset(&error) => return Ok(Opening::Unused),
        Err(error) => return Err(error),
    }
    // Only the first byte is peeked at: with too few bytes, `peek` would return the same again.
    if !may_begin_text(start[0]) {
        return Ok(Opening::Tls);
    }
    let mut length = 0;
    loop {
        let read = stream.read(&mut start[length..]).await?;
        length += read;
        if let Some(opening) = classify(&start[..length]) {
            return Ok(opening);
        }
        if read == 0 {
            return Ok(Opening::Other);
        }
    }
}

/// Returns true if the peer has reset the connection. Some load balancers end their health checks
/// so.
pub(super) fn is_reset(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset
}

/// Returns true for bytes that begin a method, an empty line before a request, or a header of the
/// PROXY protocol. The first byte of a TLS record is its content type, from 20 to 23.
fn may_begin_text(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'\r'
}

/// Classifies the first bytes of a connection that do not begin TLS. `None` if more are needed.
fn classify(start: &[u8]) -> Option<Opening> {
    if SIGNATURE_V2.starts_with(start) {
        return (start.len() == SIGNATURE_V2.len()).then_some(Opening::ProxyHeader);
    }
    if start.starts_with(SIGNATURE_V2) {
        return Some(Opening::ProxyHeader);
    }
    let line = start.strip_prefix(b"\r\n").unwrap_or(start);
    if HTTP2_PREFACE.starts_with(line) && line.len() < HTTP2_PREFACE.len() {
        return None;
    }
    if line.starts_with(HTTP2_PREFACE) {
        return Some(Opening::Http2);
    }
    let mut parts = line.splitn(2, |byte| *byte == b' ');
    let method = parts.next().unwrap_or_default();
    let is_method = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    if !method.iter().all(is_method) {
        return Some(Opening::Other);
    }
    match parts.next() {
        // The forms of a target (RFC 9112 section 3.2): a path, a URL, an authority, an asterisk.
        Some([b'/' | b'*' | b'h' | b'H', ..]) if !method.is_empty() => Some(Opening::Http1),
        Some([_, ..]) if method == b"CONNECT" => Some(Opening::Http1),
        Some([b'T' | b'U', ..]) if method == b"PROXY" => Some(Opening::ProxyHeader),
        Some([_, ..]) => Some(Opening::Other),
        None | Some([]) if start.len() < MAX_START_BYTES => None,
        None | Some([]) => Some(Opening::Other),
    }
}

/// Responds to HTTP on the HTTPS port, and closes the connection.
pub(super) async fn reject_plain_http(mut stream: TcpStream, opening: Opening) {
    let response = if opening == Opening::Http2 {
        HTTP2_RESPONSE
    } else {
        HTTP1_RESPONSE
    };
    let closing = async {
        stream.write_all(response).await?;
        stream.shutdown().await?;
        let mut buffer = [0; 1024];
        let mut discarded = 0;
        while discarded < MAX_DISCARDED {
            match stream.read(&mut buffer).await? {
                0 => break,
                read => discarded += read,
            }
        }
        io::Result::Ok(())
    };
    // The connection ends, whatever the result is.
    let _ = tokio::time::timeout(LINGER, closing).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifies_protocols_by_their_first_bytes() {
        for (start, opening) in [
            (&b"GET / HTTP/1.1\r\n"[..], Opening::Http1),
            (b"HEAD /", Opening::Http1),
            (b"POST /api/v1 HTTP/1.1", Opening::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Opening::Http1),
            (b"GET http://bastion/ HTT", Opening::Http1),
            (b"CONNECT bastion:443 HTTP", Opening::Http1),
            (b"PROPFIND /", Opening::Http1),
            (b"UPDATEREDIRECTREF /", Opening::Http1),
            (b"M-SEARCH * ", Opening::Http1),
            (b"PROXY /path HTTP/1.1\r\n", Opening::Http1),
            (b"PATCH /", Opening::Http1),
            (b"PRI /", Opening::Http1),
            (b"get /", Opening::Http1),
            (b"GET /\r\n", Opening::Http1),
            (b"\r\nGET / HTTP/1.1", Opening::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Opening::Http2),
            (b"PROXY TCP4 192.0.2.7 192", Opening::ProxyHeader),
            (b"PROXY UNKNOWN\r\n", Opening::ProxyHeader),
            (b"\r\n\r\n\0\r\nQUIT\n", Opening::ProxyHeader),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", Opening::ProxyHeader),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Opening::Other),
            (b"EHLO mail.example\r\n", Opening::Other),
            (b"USER anonymous\r\n", Opening::Other),
            (b"A1 LOGIN", Opening::Other),
            (b"GETGETGETGETGETGETGETGET", Opening::Other),
            (b"\r\n\r\n\r\n", Opening::Other),
            (b"\rG", Opening::Other),
            (b"GET\t/", Opening::Other),
            (b"GET  /", Opening::Other),
            (b"G\xff", Opening::Other),
        ] {
            assert_eq!(classify(start), Some(opening), "{start:?}");
        }
    }

    #[test]
    fn needs_the_first_bytes_of_a_target() {
        for start in [
            &b""[..],
            b"G",
            b"GET",
            b"GET ",
            b"\r",
            b"\r\n",
            b"\r\nGET",
            b"P",
            b"PR",
            b"PROX",
            b"PROXY ",
            b"PRI * HTTP/2.0",
            b"\r\n\r\n\0\r\nQU",
            b"UPDATEREDIRECTREF ",
        ] {
            assert_eq!(classify(start), None, "{start:?}");
        }
    }

    #[test]
    fn every_first_byte_that_is_classified_is_not_that_of_a_tls_record() {
        for byte in [20, 21, 22, 23, 0x80, 0] {
            assert!(!may_begin_text(byte), "{byte}");
        }
        assert!(may_begin_text(b'G') && may_begin_text(b'p') && may_begin_text(b'\r'));
    }

    #[test]
    fn response_to_http2_has_valid_frames() {
        let goaway = &HTTP2_RESPONSE[9..];
        assert_eq!(usize::from(goaway[2]), goaway.len() - 9);
        assert!(HTTP2_RESPONSE.ends_with(b"HTTPS server."));
    }
}
