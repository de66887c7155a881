//! Heads and chunks as they are written. All parts are validated types, so that what leaves always
//! matches the grammar of RFC 9112.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use hyper::ext::ReasonPhrase;

use super::fields::FieldNames;
use crate::http::RequestHead;

/// Length of a body that is about to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// No body, and no field that announces one: interim responses and 204.
    None,
    /// No body, and `Content-Length` of the head passes: requests without a body, responses to
    /// HEAD, and 304.
    Unframed,
    /// `Content-Length` of this many bytes.
    Known(u64),
    Chunked,
    /// The body ends with the connection: responses to HTTP/1.0 clients.
    UntilClose,
}

/// Writes the head of a request to an endpoint.
#[derive(Debug)]
pub struct RequestEncoder<'a> {
    pub head: &'a RequestHead,
    pub length: BodyLength,
    /// `Host` if the request has none, as with an HTTP/1.0 client.
    pub default_host: SocketAddr,
}

impl RequestEncoder<'_> {
    pub fn write(&self, out: &mut Vec<u8>) {
        let head = self.head;
        out.extend_from_slice(head.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(head.target.path_and_query().as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        if !head.headers.contains_key(header::HOST) {
            use std::io::Write;
            // Writing to a vector cannot fail.
            let _ = write!(out, "Host: {}\r\n", self.default_host);
        }
        write_fields(out, &head.headers, &head.names, self.length);
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes the head of a response to a client.
#[derive(Debug)]
pub struct ResponseEncoder<'a> {
    pub status: StatusCode,
    /// Reason phrase instead of the usual one of the status.
    pub reason: Option<&'a ReasonPhrase>,
    pub headers: &'a HeaderMap,
    pub names: Option<&'a FieldNames>,
    pub length: BodyLength,
    /// Version of the request.
    pub version: Version,
    /// The connection stays open after the response.
    pub keep_alive: bool,
}

impl ResponseEncoder<'_> {
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_status(out);
        let none = FieldNames::default();
        write_fields(out, self.headers, self.names.unwrap_or(&none), self.length);
        // An upgrade has its own `Connection`. HTTP/1.0 closes by default.
        if self.status != StatusCode::SWITCHING_PROTOCOLS
            && !self.headers.contains_key(header::CONNECTION)
        {
            match (self.version, self.keep_alive) {
                (Version::HTTP_10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
                (Version::HTTP_10, false) | (_, true) => {}
                (_, false) => out.extend_from_slice(b"Connection: close\r\n"),
            }
        }
        // RFC 9110 section 6.6.1: a recipient that forwards a response without a date adds it.
        if !self.headers.contains_key(header::DATE) {
            out.extend_from_slice(b"Date: ");
            crate::http::date::write_now(out);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Writes an interim response.
    pub fn write_interim(&self, out: &mut Vec<u8>) {
        self.write_status(out);
        let none = FieldNames::default();
        write_fields(
            out,
            self.headers,
            self.names.unwrap_or(&none),
            BodyLength::None,
        );
        out.extend_from_slice(b"\r\n");
    }

    fn write_status(&self, out: &mut Vec<u8>) {
        // As Go's server; some clients of HTTP/1.0 reject a higher version.
        out.extend_from_slice(if self.version == Version::HTTP_10 {
            b"HTTP/1.0 "
        } else {
            b"HTTP/1.1 "
        });
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.push(b' ');
        let usual = || {
            self.status
                .canonical_reason()
                .unwrap_or_default()
                .as_bytes()
        };
        let reason = self.reason.map_or_else(usual, ReasonPhrase::as_bytes);
        out.extend_from_slice(reason);
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes the size line of a chunk.
pub(super) fn write_chunk_size(out: &mut Vec<u8>, size: usize) {
    use std::io::Write;
    // Writing to a vector cannot fail.
    let _ = write!(out, "{size:x}\r\n");
}

/// Writes the last chunk and the trailer section.
pub(super) fn write_last_chunk(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        for (name, value) in trailers {
            if !super::fields::is_forbidden_trailer(name) {
                write_field(
                    out,
                    name.as_str().as_bytes(),
                    Spelling::TitleCase,
                    value.as_bytes(),
                );
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the fields in the order and spelling of `names`, then those that the bastion added.
fn write_fields(out: &mut Vec<u8>, headers: &HeaderMap, names: &FieldNames, length: BodyLength) {
    let mut framing = FramingWriter {
        length,
        written: false,
    };
    let mut fields = headers.iter();
    let mut pending = fields.next();
    let mut spelled = names.iter();
    // Without a removal the map has the order of the sender, so that both lists advance together.
    let mut mismatch = None;
    while let Some((name, value)) = pending {
        let Some(spelling) = spelled.next() else {
            framing.write(out, name, Spelling::TitleCase, value);
            pending = fields.next();
            continue;
        };
        if !spelling.eq_ignore_ascii_case(name.as_str().as_bytes()) {
            mismatch = Some(spelling);
            break;
        }
        framing.write(out, name, Spelling::As(spelling), value);
        pending = fields.next();
    }
    if let Some(spelling) = mismatch {
        let remaining: Vec<(&HeaderName, &HeaderValue)> =
            pending.into_iter().chain(fields).collect();
        write_reordered(
            out,
            &remaining,
            std::iter::once(spelling).chain(spelled),
            &mut framing,
        );
    }
    framing.finish(out);
}

/// Writes fields whose order in the map differs from that of `names`.
fn write_reordered<'n>(
    out: &mut Vec<u8>,
    fields: &[(&HeaderName, &HeaderValue)],
    names: impl Iterator<Item = &'n [u8]>,
    framing: &mut FramingWriter,
) {
    let mut written = vec![false; fields.len()];
    let mut expected = 0;
    for spelling in names {
        // Most names are at the expected position. The others were removed, or moved to the place
        // of a removed one.
        let order = (expected..fields.len()).chain(0..expected);
        let found = order.into_iter().find(|index| {
            !written[*index] && spelling.eq_ignore_ascii_case(fields[*index].0.as_str().as_bytes())
        });
        if let Some(index) = found {
            written[index] = true;
            expected = index + 1;
            framing.write(
                out,
                fields[index].0,
                Spelling::As(spelling),
                fields[index].1,
            );
        }
    }
    for ((name, value), _) in fields.iter().zip(written).filter(|(_, written)| !written) {
        framing.write(out, name, Spelling::TitleCase, value);
    }
}

/// Writes the fields that frame the body, once, and in the place where the sender had them.
struct FramingWriter {
    length: BodyLength,
    written: bool,
}

impl FramingWriter {
    fn write(
        &mut self,
        out: &mut Vec<u8>,
        name: &HeaderName,
        spelling: Spelling<'_>,
        value: &HeaderValue,
    ) {
        if *name == header::TRANSFER_ENCODING {
            return;
        }
        if *name == header::CONTENT_LENGTH {
            match self.length {
                BodyLength::Unframed if !self.written => {}
                BodyLength::Known(length) if !self.written => {
                    self.written = true;
                    let mut digits = itoa::Buffer::new();
                    let length = digits.format(length).as_bytes();
                    write_field(out, name.as_str().as_bytes(), spelling, length);
                    return;
                }
                _ => return,
            }
            self.written = true;
        }
        write_field(out, name.as_str().as_bytes(), spelling, value.as_bytes());
    }

    fn finish(self, out: &mut Vec<u8>) {
        match self.length {
            BodyLength::Known(length) if !self.written => {
                let mut digits = itoa::Buffer::new();
                let length = digits.format(length).as_bytes();
                write_field(out, b"content-length", Spelling::TitleCase, length);
            }
            BodyLength::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            BodyLength::None
            | BodyLength::Unframed
            | BodyLength::Known(_)
            | BodyLength::UntilClose => {}
        }
    }
}

/// Spelling of a field name.
#[derive(Clone, Copy)]
enum Spelling<'a> {
    As(&'a [u8]),
    /// `Content-Type`, as Go's client and server write names.
    TitleCase,
}

fn write_field(out: &mut Vec<u8>, name: &[u8], spelling: Spelling<'_>, value: &[u8]) {
    match spelling {
        Spelling::As(spelled) => out.extend_from_slice(spelled),
        Spelling::TitleCase => {
            let start = out.len();
            out.extend_from_slice(name);
            let mut begins_word = true;
            for byte in &mut out[start..] {
                if begins_word {
                    byte.make_ascii_uppercase();
                }
                begins_word = *byte == b'-';
            }
        }
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Returns the length of the body of a response, for its client.
pub(super) fn response_length(
    exact: Option<u64>,
    method: &Method,
    status: StatusCode,
    version: Version,
) -> BodyLength {
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        return BodyLength::None;
    }
    if super::framing::has_no_body(method, status) {
        return BodyLength::Unframed;
    }
    match exact {
        Some(length) => BodyLength::Known(length),
        None if version == Version::HTTP_10 => BodyLength::UntilClose,
        None => BodyLength::Chunked,
    }
}
