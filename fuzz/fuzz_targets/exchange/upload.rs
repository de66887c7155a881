//! Bodies of requests as a strict reader of the client's connection finds them.

use std::collections::HashMap;

use super::input::Request;
use crate::message::Line;
use crate::reference;

/// A valid request on the wire.
#[derive(Clone, Debug)]
pub struct Sent {
    pub is_head: bool,
    pub upload: Upload,
}

#[derive(Clone, Debug)]
pub enum Upload {
    Complete(Vec<u8>),
    /// Malformed or incomplete.
    Incomplete,
    Unknown,
}

/// Returns the valid requests in the bytes of an HTTP/1.1 connection, by their numbers. The others
/// must not reach a backend.
pub fn of_http1(bytes: &[u8]) -> HashMap<u64, Sent> {
    let mut requests = HashMap::new();
    let mut rest = bytes;
    loop {
        while let Some(after) = rest.strip_prefix(b"\r\n") {
            rest = after;
        }
        let Some(end) = reference::head_end(rest) else {
            return requests;
        };
        let Some(head) = reference::request(&rest[..end]) else {
            return requests;
        };
        rest = &rest[end..];
        let (body, length) = reference::body(rest, head.framing, false);
        let number = head
            .fields
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(b"x-case"))
            .and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
        let upload = match length {
            Some(_) => Upload::Complete(body.data),
            None => Upload::Incomplete,
        };
        if let Some(number) = number {
            let is_head = matches!(&head.line, Line::Request { method, .. } if *method == b"HEAD");
            requests.insert(number, Sent { is_head, upload });
        }
        let Some(length) = length else {
            return requests;
        };
        rest = &rest[length..];
    }
}

/// Returns the body of a request over HTTP/2, whose frames delimit it.
pub fn of_http2(request: &Request) -> Upload {
    if request.method == "CONNECT" {
        // The frames may belong to a tunnel.
        Upload::Unknown
    } else {
        Upload::Complete(request.body.clone())
    }
}
