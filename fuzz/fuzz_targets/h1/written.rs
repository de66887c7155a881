//! Check of the encoders: the text for a parsed head parses strictly, and has its fields,
//! in their order and spelling, and those of its framing.

use std::net::SocketAddr;

use http::{Method, Version};
use kube_bastion::http::h1::{
    BodyLength, ParsedRequest, ParsedResponse, RequestEncoder, ResponseEncoder,
};

use super::message::{Field, Framing, Head, Line};
use super::reference::{self, lower};

/// Checks the request to an endpoint.
pub fn check_request(parsed: &ParsedRequest, head: &Head) {
    let Line::Request {
        method,
        target,
        http11,
        ..
    } = &head.line
    else {
        panic!("a request");
    };
    if target.is_empty() {
        // The authority form is not forwarded.
        return;
    }
    let length = match head.framing {
        Framing::Empty => BodyLength::Unframed,
        Framing::Length(length) => BodyLength::Known(length),
        Framing::Chunked => BodyLength::Chunked,
        Framing::UntilClose => panic!("a request until close"),
    };
    let default_host = SocketAddr::from(([192, 0, 2, 1], 80));
    let encoder = RequestEncoder {
        head: &parsed.head,
        length,
        default_host,
    };
    let mut out = Vec::new();
    encoder.write(&mut out);

    let line = [method, &b" "[..], target, b" HTTP/1.1\r\n"].concat();
    assert!(out.starts_with(&line), "{}", out.escape_ascii());
    let mut expected = framed(&head.fields, length);
    if !has(&head.fields, b"host") {
        expected.insert(0, (b"Host".into(), default_host.to_string().into()));
    }
    assert_fields(reference::strict_request_fields(&out), &expected, &out);
    // A server ignores any expectation of HTTP/1.0.
    if *http11 || !has(&head.fields, b"expect") {
        let again = reference::request(&out).expect("it was accepted before");
        assert_eq!(again.framing, head.framing, "{}", out.escape_ascii());
    }
}

/// Checks the response to a client of `version`.
pub fn check_response(
    parsed: &ParsedResponse,
    head: &Head,
    method: &Method,
    version: Version,
    keep_alive: bool,
) {
    let Line::Response { status, reason } = &head.line else {
        panic!("a response");
    };
    let is_interim = *status < 200 && *status != 101;
    let length = match head.framing {
        _ if *status < 200 || *status == 204 => BodyLength::None,
        _ if *status == 304 || *method == Method::HEAD => BodyLength::Unframed,
        _ if *status < 300 && *method == Method::CONNECT => BodyLength::Unframed,
        Framing::Empty => BodyLength::Known(0),
        Framing::Length(length) => BodyLength::Known(length),
        Framing::Chunked | Framing::UntilClose if version == Version::HTTP_10 => {
            BodyLength::UntilClose
        }
        Framing::Chunked | Framing::UntilClose => BodyLength::Chunked,
    };
    let encoder = ResponseEncoder {
        status: parsed.status,
        reason: parsed.reason.as_ref(),
        headers: &parsed.headers,
        names: parsed.names.as_ref(),
        length,
        version,
        keep_alive,
    };
    let mut out = Vec::new();
    if is_interim {
        encoder.write_interim(&mut out);
    } else {
        encoder.write(&mut out);
    }

    let mut expected = framed(&head.fields, length);
    let mut added_date = false;
    if !is_interim {
        if *status != 101 && !has(&head.fields, b"connection") {
            match (version == Version::HTTP_10, keep_alive) {
                (true, true) => expected.push((b"Connection".into(), b"keep-alive".into())),
                (false, false) => expected.push((b"Connection".into(), b"close".into())),
                (true, false) | (false, true) => {}
            }
        }
        added_date = !has(&head.fields, b"date");
    }
    let (minor, written_status, phrase, mut fields) =
        reference::strict_response(&out).unwrap_or_else(|| panic!("{}", out.escape_ascii()));
    if added_date {
        let (name, value) = fields.pop().expect("a date");
        assert_eq!((&name[..], value.len()), (&b"Date"[..], 29));
    }
    assert_fields(Some(fields), &expected, &out);
    assert_eq!(written_status, *status);
    assert_eq!(minor == 0, version == Version::HTTP_10);
    let usual = parsed.status.canonical_reason().unwrap_or_default();
    let reason = if reason.is_empty() {
        usual.as_bytes()
    } else {
        reason
    };
    assert_eq!(phrase, reason, "{}", out.escape_ascii());
    let again = reference::read(&out, Some(method.as_str()), 1);
    let framing = match length {
        BodyLength::None | BodyLength::Unframed => Framing::Empty,
        BodyLength::Known(length) => Framing::of_length(length),
        BodyLength::Chunked => Framing::Chunked,
        BodyLength::UntilClose => Framing::UntilClose,
    };
    assert_eq!(
        again.messages[0].head.framing,
        framing,
        "{}",
        out.escape_ascii()
    );
}

/// Returns the fields as they are written with a body of this length.
fn framed(fields: &[Field], length: BodyLength) -> Vec<Field> {
    let mut framed = Vec::new();
    for (name, value) in fields {
        if lower(name) != b"content-length" {
            framed.push((name.clone(), value.clone()));
            continue;
        }
        match length {
            BodyLength::Unframed => framed.push((name.clone(), value.clone())),
            BodyLength::Known(length) => {
                framed.push((name.clone(), length.to_string().into_bytes()));
            }
            BodyLength::None | BodyLength::Chunked | BodyLength::UntilClose => {}
        }
    }
    match length {
        BodyLength::Known(length) if !has(fields, b"content-length") => {
            framed.push((b"Content-Length".into(), length.to_string().into_bytes()));
        }
        BodyLength::Chunked => {
            framed.push((b"Transfer-Encoding".into(), b"chunked".into()));
        }
        _ => {}
    }
    framed
}

fn has(fields: &[Field], name: &[u8]) -> bool {
    fields.iter().any(|(other, _)| lower(other) == name)
}

fn assert_fields(written: Option<Vec<Field>>, expected: &[Field], out: &[u8]) {
    let written = written.unwrap_or_else(|| panic!("{}", out.escape_ascii()));
    let text = |(name, value): &Field| format!("{}: {}", name.escape_ascii(), value.escape_ascii());
    let (written, expected): (Vec<_>, Vec<_>) = (
        written.iter().map(text).collect(),
        expected.iter().map(text).collect(),
    );
    assert_eq!(written, expected, "{}", out.escape_ascii());
}
