//! A strict reader of the responses that an HTTP/1.1 client receives, and their comparison with
//! what the backend sent.

use super::answer::{Prediction, tag_of};
use super::input::{Request, find};
use super::strict;
use crate::message::{Body, Field, Framing, by_name};
use crate::reference;

/// Hop-by-hop fields that a response must not have.
const REMOVED: [&[u8]; 5] = [
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
];

/// State of the connection behind the bytes that were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    Closed,
    Reset,
}

/// A final response.
#[derive(Debug)]
pub struct Received {
    /// Number of the request, which the bastion returns as its audit id. `None` for the rejection
    /// of a malformed request.
    pub number: Option<u64>,
    /// Number in the tag of the backend.
    tag: Option<u64>,
    status: u16,
    body: Vec<u8>,
    trailers: Vec<Field>,
    framing: Framing,
    is_complete: bool,
}

/// Head of a final response.
struct Head {
    number: Option<u64>,
    tag: Option<u64>,
    status: u16,
    framing: Framing,
    /// No other response follows.
    is_last: bool,
}

/// Reads all final responses of a connection.
pub fn read(bytes: &[u8], requests: &[Request], end: End) -> Result<Vec<Received>, String> {
    let mut list: Vec<Received> = Vec::new();
    let mut interim = Vec::new();
    let mut rest = bytes;
    let mut is_over = false;
    while let Some(length) = find(rest, b"\r\n\r\n") {
        if is_over {
            break;
        }
        let (head, after) = rest.split_at(length + 4);
        let (minor, status, _, fields) =
            reference::strict_response(head).ok_or("a malformed response")?;
        if status < 200 && status != 101 {
            if has(&fields, b"content-length") || has(&fields, b"transfer-encoding") || minor == 0 {
                return Err("an interim response with a body or of HTTP/1.0".into());
            }
            interim.extend(number(&fields, b"x-answer")?);
            rest = after;
            continue;
        }
        let head = final_head(&fields, minor, status, requests)?;
        if head.number.is_some() && list.last().is_some_and(|last| last.number >= head.number) {
            return Err("responses in another order than their requests".into());
        }
        let mut tags = interim.drain(..).chain(head.tag);
        if tags.any(|tag| Some(tag) != head.number) {
            return Err(format!(
                "a response of the backend to another request than {:?}",
                head.number
            ));
        }
        drop(tags);
        is_over = head.is_last;
        let (mut body, mut body_length) = body(after, head.framing, end)?;
        if head.number.is_none() && after.is_empty() && end == End::Closed {
            // A malformed request may have been a HEAD.
            (body, body_length) = (Body::default(), Some(0));
        }
        list.push(Received {
            number: head.number,
            tag: head.tag,
            status,
            body: body.data,
            trailers: body.trailers,
            framing: head.framing,
            is_complete: body_length.is_some(),
        });
        match body_length {
            // Behind a 101 the tunnel follows.
            Some(length) if head.status != 101 => rest = &after[length..],
            _ => return Ok(list),
        }
    }
    if is_over && !rest.is_empty() {
        return Err("bytes behind the last response".into());
    }
    Ok(list)
}

/// Checks the fields that the bastion sets or removes.
fn final_head(
    fields: &[Field],
    minor: u8,
    status: u16,
    requests: &[Request],
) -> Result<Head, String> {
    if let Some((name, _)) = fields
        .iter()
        .find(|(name, _)| REMOVED.contains(&&*reference::lower(name)))
    {
        return Err(format!("the field {}", name.escape_ascii()));
    }
    let number_of_request = number(fields, b"audit-id")?;
    let find = |number| {
        requests
            .iter()
            .find(|request| request.number == number)
            .ok_or("a response to a request of another connection")
    };
    let request = number_of_request.map(find).transpose()?;
    if request.is_some_and(|request| request.is_http10 != (minor == 0)) {
        return Err("a response of another version".into());
    }
    if status == 101 && !request.is_some_and(|request| request.offers_upgrade) {
        return Err("a 101 that was not requested".into());
    }
    let framing = framing(fields, minor, status, request)?;
    let keeps = connection(fields)?.unwrap_or(minor == 1);
    let is_last = !keeps || framing == Framing::UntilClose;
    if request.is_none() && !(is_last && status >= 400) {
        return Err("a rejection that does not close the connection".into());
    }
    Ok(Head {
        number: number_of_request,
        tag: number(fields, b"x-answer")?,
        status,
        framing,
        is_last,
    })
}

impl Received {
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    pub fn is_upgrade(&self) -> bool {
        self.status == 101
    }

    /// Compares a tagged response with what the backend sent for the request. `sent` is its final
    /// response, if it has a valid one.
    pub fn check(&self, sent: impl FnOnce(u64) -> Option<Prediction>) -> Result<(), String> {
        let in_body = tag_of(&self.body);
        if in_body.is_some() && in_body != self.number {
            return Err(format!(
                "the body of another request than {:?}",
                self.number
            ));
        }
        let Some(tag) = self.tag.or(in_body) else {
            return Ok(());
        };
        let sent = sent(tag).ok_or("a response that the backend did not send, or malformed")?;
        if sent.status != self.status {
            return Err(format!("status {} of {}", self.status, sent.status));
        }
        check_body(&self.body, self.is_complete, &sent)?;
        if self.is_complete
            && self.framing == Framing::Chunked
            && !sent.may_be_page
            && by_name(&self.trailers) != by_name(&sent.trailers)
        {
            return Err("other trailers".into());
        }
        Ok(())
    }
}

/// Checks that a body is that of the backend, and that a cut one is not complete.
pub fn check_body(body: &[u8], is_complete: bool, sent: &Prediction) -> Result<(), String> {
    if is_complete && !sent.is_complete {
        return Err("a complete response of one that was cut".into());
    }
    let is_equal = if is_complete {
        sent.body == body
    } else {
        sent.body.starts_with(body)
    };
    if !sent.may_be_page && !is_equal {
        return Err(format!(
            "the body {} of {}",
            body.escape_ascii(),
            sent.body.escape_ascii()
        ));
    }
    Ok(())
}

fn framing(
    fields: &[Field],
    minor: u8,
    status: u16,
    request: Option<&Request>,
) -> Result<Framing, String> {
    let codings: Vec<&[u8]> = values(fields, b"transfer-encoding").collect();
    let lengths: Vec<&[u8]> = values(fields, b"content-length").collect();
    let is_head = request.is_some_and(|request| request.is_head);
    let length = match lengths[..] {
        [] => None,
        [length] => Some(reference::digits(length).ok_or("an invalid Content-Length")?),
        _ => return Err("several Content-Length".into()),
    };
    let no_body = is_head || matches!(status, 101 | 204 | 304);
    match (&codings[..], length) {
        ([], Some(_)) if matches!(status, 101 | 204) => Err("a length without a body".into()),
        ([], _) if no_body => Ok(Framing::Empty),
        ([], Some(length)) => Ok(Framing::of_length(length)),
        ([], None) if minor == 0 => Ok(Framing::UntilClose),
        ([], None) => Err("a response until the end of an HTTP/1.1 connection".into()),
        ([b"chunked"], None) if minor == 1 && !no_body => Ok(Framing::Chunked),
        _ => Err("a wrong Transfer-Encoding".into()),
    }
}

/// Returns false if the connection closes and true if it is kept.
fn connection(fields: &[Field]) -> Result<Option<bool>, String> {
    match values(fields, b"connection").collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [b"close"] => Ok(Some(false)),
        [b"keep-alive"] => Ok(Some(true)),
        [value] if value.eq_ignore_ascii_case(b"upgrade") => Ok(Some(false)),
        _ => Err("an odd Connection".into()),
    }
}

/// Returns the body, and its length if it is complete.
fn body(bytes: &[u8], framing: Framing, end: End) -> Result<(Body, Option<usize>), String> {
    if framing == Framing::Chunked {
        strict::chunked(bytes, |_| Ok(()))?;
    }
    let (body, length) = reference::body(bytes, framing, false);
    if framing == Framing::UntilClose && end != End::Closed {
        return Ok((body, None));
    }
    Ok((body, length))
}

fn number(fields: &[Field], name: &[u8]) -> Result<Option<u64>, String> {
    match values(fields, name).collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [value] => Ok(std::str::from_utf8(value)
            .ok()
            .and_then(|value| value.parse().ok())),
        _ => Err(format!("several {}", name.escape_ascii())),
    }
}

fn has(fields: &[Field], name: &[u8]) -> bool {
    values(fields, name).next().is_some()
}

fn values<'a>(fields: &'a [Field], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
        .map(|(_, value)| &**value)
}
