//! Responses of the backend: valid, tolerated, malformed, cut, and with surplus bytes. Each is
//! tagged with the number of its request, in a field and at the start of its body.

use arbitrary::Arbitrary;

use super::input::{Body, Field, LINE_ENDS, MAX_FIELDS, find, pick, raw};
use crate::message::{Ending, Field as Pair, Framing, Line};
use crate::reference;

const STATUS_LINES: [&str; 24] = [
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200",
    "HTTP/1.1 201 ",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 206 Partial Content",
    "HTTP/1.1 302 Found",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 404 Not\tFound",
    "HTTP/1.1 426 Upgrade Required",
    "HTTP/1.1 503 Service Unavailable",
    "HTTP/1.1  299 \u{e4} odd",
    "HTTP/1.1 999 \x01",
    "HTTP/1.0 200 OK",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 101 Switching Protocols",
    "HTTP/1.1 103 Early Hints",
    "HTTP/1.9 200 OK",
    "HTTP/2.0 200 OK",
    "HTTP/1.1 20 OK",
    "HTTP/1.1 2000 OK",
    "ICY 200 OK",
    "",
];
const INTERIM_LINES: [&str; 6] = [
    "HTTP/1.1 100 Continue",
    "HTTP/1.1 102 Processing",
    "HTTP/1.1 103 Early Hints",
    "HTTP/1.1 103",
    "HTTP/1.0 103 Early Hints",
    "HTTP/1.1 199 odd",
];
const MAX_INTERIM: usize = 3;
/// Start of each body, before the number.
const TAG: &[u8] = b"answer ";

#[derive(Arbitrary, Clone, Debug)]
pub struct Answer {
    interim: Vec<(u8, Vec<Field>)>,
    status: u8,
    line_end: u8,
    fields: Vec<Field>,
    body: Body,
    surplus: Option<Surplus>,
    /// Number of bytes after which the backend closes the connection.
    cut: Option<u16>,
    /// The response does not wait for the body of the request.
    pub early: bool,
    /// The connection stays open if the response is complete.
    pub keep: bool,
    /// Size of the pieces in which it is sent; 0 for one piece.
    pub pieces: u8,
}

/// Bytes behind the response.
#[derive(Arbitrary, Clone, Debug)]
enum Surplus {
    Raw(Vec<u8>),
    /// A response that belongs to no request.
    Response {
        status: u8,
        body: Body,
    },
}

/// The final response that a tolerant reader finds in an answer.
#[derive(Clone, Debug)]
pub struct Prediction {
    pub status: u16,
    pub body: Vec<u8>,
    pub trailers: Vec<Pair>,
    pub is_complete: bool,
    /// Another request may follow on the connection.
    pub is_delimited: bool,
    /// The bastion may change the body.
    pub may_be_page: bool,
}

impl Answer {
    /// Returns the bytes that answer a request with this number. `upgrade` is what the request
    /// offered.
    pub fn bytes(&self, number: u64, upgrade: Option<&str>) -> Vec<u8> {
        let mut out = Vec::new();
        for (line, fields) in self.interim.iter().take(MAX_INTERIM) {
            out.extend_from_slice(pick(&INTERIM_LINES, *line).as_bytes());
            out.extend(format!("\r\nX-Answer: {number}\r\n").bytes());
            for field in fields.iter().take(MAX_FIELDS) {
                out.extend(field.line());
            }
            out.extend_from_slice(b"\r\n");
        }
        let status = pick(&STATUS_LINES, self.status);
        out.extend_from_slice(status.as_bytes());
        // Most lines end well, so that most responses are read further.
        let end = if self.line_end < 0xe0 {
            "\r\n"
        } else {
            pick(&LINE_ENDS, self.line_end)
        };
        out.extend_from_slice(end.as_bytes());
        out.extend(format!("X-Answer: {number}\r\n").bytes());
        if status.contains(" 101 ") {
            let protocol = upgrade.unwrap_or("websocket");
            out.extend(format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n").bytes());
        }
        for field in self.fields.iter().take(MAX_FIELDS) {
            out.extend(field.line());
        }
        self.body.write(&mut out, &tag(number));
        match &self.surplus {
            None => {}
            Some(Surplus::Raw(bytes)) => out.extend(raw(bytes)),
            Some(Surplus::Response { status, body }) => {
                out.extend_from_slice(pick(&STATUS_LINES, *status).as_bytes());
                out.extend(format!("\r\nX-Answer: {number}\r\n").bytes());
                body.write(&mut out, &tag(number));
            }
        }
        if let Some(cut) = self.cut {
            out.truncate(usize::from(cut));
        }
        out
    }
}

/// Reads an answer to a request with `method`. `None` if it has no final response.
pub fn predict(bytes: &[u8], method: &str) -> Option<Prediction> {
    let transcript = reference::read(bytes, Some(method), MAX_INTERIM + 2);
    let mut messages = transcript.messages.into_iter();
    while let Some(message) = messages.next() {
        let Line::Response { status, .. } = message.head.line else {
            continue;
        };
        if status < 200 && status != 101 {
            continue;
        }
        let is_last = messages.len() == 0;
        let names: Vec<Vec<u8>> = message
            .head
            .fields
            .iter()
            .map(|(name, _)| reference::lower(name))
            .collect();
        return Some(Prediction {
            status,
            body: message.body.data,
            trailers: message.body.trailers,
            is_complete: !(is_last && transcript.ending == Ending::InBody),
            is_delimited: message.head.framing != Framing::UntilClose && status != 101,
            may_be_page: names
                .iter()
                .any(|name| matches!(&name[..], b"content-type" | b"content-encoding")),
        });
    }
    None
}

fn tag(number: u64) -> Vec<u8> {
    [TAG, number.to_string().as_bytes(), b" "].concat()
}

/// Returns the number in the tag at the start of a body, if it arrived.
pub fn tag_of(body: &[u8]) -> Option<u64> {
    let rest = body.strip_prefix(TAG)?;
    let end = find(rest, b" ")?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}
