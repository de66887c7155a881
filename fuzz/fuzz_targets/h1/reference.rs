//! A naive parser of HTTP/1.1 messages, written from RFC 9112 and RFC 3986 without any code of the
//! codec. It copies, parses whole inputs only, and knows two outcomes: accepted or not.

use super::message::{Body, Ending, Field, Framing, Head, Line, Message, Transcript};

/// Limits of the codec that the RFC leaves to implementations.
const MAX_FIELDS: usize = 1000;
const MAX_METHOD: usize = 64;
const MAX_LENGTH_DIGITS: usize = 19;
const MAX_SIZE_DIGITS: usize = 16;
const MAX_CHUNK_LINE: usize = 4096;
const MAX_EXTENSIONS: usize = 16 * 1024;
const MAX_TRAILERS: usize = 64 * 1024;

/// Fields that must not be in a trailer section (RFC 9110 section 6.5.1), and hop-by-hop fields.
pub const NOT_IN_TRAILERS: [&str; 27] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "www-authenticate",
];

/// Fields of a head that decide about its framing and connection, and those that are forwarded.
#[derive(Default)]
struct Sorted {
    lengths: Vec<Vec<u8>>,
    codings: Vec<Vec<u8>>,
    close: bool,
    keep_alive: bool,
    hosts: Vec<Vec<u8>>,
    expectations: Vec<Vec<u8>>,
    kept: Vec<Field>,
}

/// Reads messages until one is rejected or incomplete, or `most` are read. Responses are those to a
/// request with `method`.
pub fn read(input: &[u8], method: Option<&str>, most: usize) -> Transcript {
    let mut messages = Vec::new();
    let mut rest = input;
    while messages.len() < most {
        let Some(end) = head_end(rest) else {
            return Transcript {
                messages,
                ending: Ending::Rest(rest.to_vec()),
            };
        };
        let head = match method {
            None => request(&rest[..end]),
            Some(method) => response(&rest[..end], method),
        };
        let Some(head) = head else {
            return Transcript {
                messages,
                ending: Ending::Rejected,
            };
        };
        rest = &rest[end..];
        let (body, length) = body(rest, head.framing, method.is_some());
        messages.push(Message { head, body });
        match length {
            Some(length) => rest = &rest[length..],
            None => {
                return Transcript {
                    messages,
                    ending: Ending::InBody,
                };
            }
        }
    }
    Transcript {
        messages,
        ending: Ending::Rest(rest.to_vec()),
    }
}

/// Returns the length of the head: it ends with a line that is empty or begins with CR. The first
/// line is never its end.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    for at in 1..bytes.len() {
        if bytes[at - 1] != b'\n' {
            continue;
        }
        if bytes[at] == b'\n' {
            return Some(at + 1);
        }
        if bytes[at] == b'\r' && at + 1 < bytes.len() {
            return Some(if bytes[at + 1] == b'\n' {
                at + 2
            } else {
                at + 1
            });
        }
    }
    None
}

/// `request-line *( field-line CRLF ) CRLF`.
pub fn request(head: &[u8]) -> Option<Head> {
    let (lines, _) = lines(head, false)?;
    let (request_line, field_lines) = lines.split_first()?;
    let parts = split(request_line, b' ');
    if parts.len() != 3 {
        return None;
    }
    let (method, version) = (&parts[0], &parts[2]);
    if method.len() > MAX_METHOD || !is_token(method) {
        return None;
    }
    let http11 = match &version[..] {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return None,
    };
    let (authority, target) = request_target(method, &parts[1])?;
    let (fields, _) = fields(field_lines, false)?;
    let sorted = sort(fields);
    if sorted.hosts.len() > 1 || (http11 && sorted.hosts.is_empty()) {
        return None;
    }
    let connects = target.is_empty();
    if sorted
        .hosts
        .iter()
        .any(|host| !(is_authority(host) || connects && is_connect_authority(host)))
    {
        return None;
    }
    // RFC 9112 section 6.3, where every doubt is an error.
    let framing = match (&sorted.codings[..], &sorted.lengths[..]) {
        ([], []) => Framing::Empty,
        ([], [length]) => Framing::of_length(digits(length)?),
        ([coding], []) if http11 && lower(coding) == b"chunked" => Framing::Chunked,
        _ => return None,
    };
    // RFC 9110 section 9.3.6.
    if connects && !matches!(framing, Framing::Empty) {
        return None;
    }
    if http11
        && sorted
            .expectations
            .iter()
            .any(|value| lower(value) != b"100-continue")
    {
        return None;
    }
    Some(Head {
        line: Line::Request {
            method: method.clone(),
            authority,
            target,
            http11,
        },
        framing,
        keep_alive: !sorted.close && (http11 || sorted.keep_alive),
        expects_continue: http11 && !sorted.expectations.is_empty() && framing != Framing::Empty,
        fields: sorted.kept,
        dropped: 0,
    })
}

/// A response with the deviations that are tolerated.
fn response(head: &[u8], method: &str) -> Option<Head> {
    let (lines, _) = lines(head, true)?;
    let (status_line, field_lines) = lines.split_first()?;
    // HTTP/1.x SP *SP 3DIGIT [ SP reason-phrase ]
    if status_line.len() < 12 || &status_line[..7] != b"HTTP/1." || status_line[8] != b' ' {
        return None;
    }
    let minor = status_line[7];
    if !minor.is_ascii_digit() {
        return None;
    }
    let http11 = minor != b'0';
    let mut at = 8;
    while at < status_line.len() && status_line[at] == b' ' {
        at += 1;
    }
    let code = status_line.get(at..at + 3)?;
    let status = digits(code)?;
    if status < 100 {
        return None;
    }
    let rest = &status_line[at + 3..];
    if !rest.is_empty() && rest[0] != b' ' {
        return None;
    }
    let (fields, dropped) = fields(field_lines, true)?;
    let mut sorted = sort(fields);
    let opens_tunnel = method == "CONNECT" && (200..300).contains(&status);
    let no_body =
        method == "HEAD" || opens_tunnel || status < 200 || status == 204 || status == 304;
    let framing = match (&sorted.codings[..], &sorted.lengths[..]) {
        ([], []) if no_body => Framing::Empty,
        ([], []) => Framing::UntilClose,
        ([], lengths) => {
            let mut values = Vec::new();
            for value in lengths {
                for element in split(value, b',') {
                    values.push(digits(trim(&element))?);
                }
            }
            if values.iter().any(|value| *value != values[0]) {
                return None;
            }
            if sorted.lengths[0].contains(&b',') {
                set_length(&mut sorted.kept, values[0]);
            }
            if no_body {
                Framing::Empty
            } else {
                Framing::of_length(values[0])
            }
        }
        ([coding], _) if http11 && lower(coding) == b"chunked" => {
            remove_length(&mut sorted.kept);
            if no_body {
                Framing::Empty
            } else {
                Framing::Chunked
            }
        }
        _ => return None,
    };
    if status < 200 {
        remove_length(&mut sorted.kept);
    }
    Some(Head {
        line: Line::Response {
            status: u16::try_from(status).ok()?,
            reason: reason(rest),
        },
        framing,
        keep_alive: framing != Framing::UntilClose
            && !sorted.close
            && (http11 || sorted.keep_alive),
        expects_continue: false,
        fields: sorted.kept,
        dropped,
    })
}

/// A response as it must be written: `HTTP/1.x SP 3DIGIT SP reason-phrase CRLF` and strict fields.
/// Returns the minor version, the status, the reason phrase and the fields.
pub fn strict_response(head: &[u8]) -> Option<(u8, u16, Vec<u8>, Vec<Field>)> {
    let (lines, length) = lines(head, false)?;
    if length != head.len() {
        return None;
    }
    let (status_line, field_lines) = lines.split_first()?;
    let minor = match status_line.get(..9)? {
        b"HTTP/1.1 " => 1,
        b"HTTP/1.0 " => 0,
        _ => return None,
    };
    let status = u16::try_from(digits(status_line.get(9..12)?)?).ok()?;
    if status_line.get(12) != Some(&b' ') || !is_text(&status_line[13..]) {
        return None;
    }
    let (fields, _) = fields(field_lines, false)?;
    Some((minor, status, status_line[13..].to_vec(), fields))
}

/// Fields of a request as it must be written.
pub fn strict_request_fields(head: &[u8]) -> Option<Vec<Field>> {
    let (lines, length) = lines(head, false)?;
    if length != head.len() {
        return None;
    }
    Some(fields(lines.get(1..)?, false)?.0)
}

/// Returns the body and its length on the wire, or no length if it is malformed or incomplete.
pub fn body(bytes: &[u8], framing: Framing, tolerant: bool) -> (Body, Option<usize>) {
    match framing {
        Framing::Empty => (Body::default(), Some(0)),
        Framing::Length(length) => {
            let whole = bytes.len() as u64 >= length;
            let length = if whole {
                usize::try_from(length).expect("the input is that long")
            } else {
                bytes.len()
            };
            let body = Body {
                data: bytes[..length].to_vec(),
                trailers: Vec::new(),
            };
            (body, whole.then_some(length))
        }
        Framing::UntilClose => {
            let body = Body {
                data: bytes.to_vec(),
                trailers: Vec::new(),
            };
            (body, Some(bytes.len()))
        }
        Framing::Chunked => {
            let mut body = Body::default();
            let length = chunked(bytes, tolerant, &mut body);
            (body, length)
        }
    }
}

fn chunked(bytes: &[u8], tolerant: bool, body: &mut Body) -> Option<usize> {
    let mut at = 0;
    let mut extensions = 0;
    loop {
        let (text, next) = line(bytes, at, tolerant)?;
        if next - 1 - at > MAX_CHUNK_LINE {
            return None;
        }
        let mut size: u64 = 0;
        let mut count = 0;
        while count < text.len() && text[count].is_ascii_hexdigit() {
            if count == MAX_SIZE_DIGITS {
                return None;
            }
            size = size * 16 + u64::from(hex(text[count]));
            count += 1;
        }
        let extension = &text[count..];
        let padding = tolerant && extension.iter().all(|byte| is_blank(*byte));
        if count == 0 || !(padding || are_extensions(extension)) {
            return None;
        }
        extensions += extension.len();
        if extensions > MAX_EXTENSIONS {
            return None;
        }
        at = next;
        if size == 0 {
            return trailers(bytes, at, tolerant, body);
        }
        let available = (bytes.len() - at) as u64;
        if size > available {
            body.data.extend_from_slice(&bytes[at..]);
            return None;
        }
        let size = usize::try_from(size).expect("the input is that long");
        body.data.extend_from_slice(&bytes[at..at + size]);
        at += size;
        if bytes.len() < at + 2 || &bytes[at..at + 2] != b"\r\n" {
            return None;
        }
        at += 2;
    }
}

fn trailers(bytes: &[u8], start: usize, tolerant: bool, body: &mut Body) -> Option<usize> {
    let (lines, length) = lines(&bytes[start..], tolerant)?;
    if length > MAX_TRAILERS {
        return None;
    }
    let (fields, _) = fields(&lines, tolerant)?;
    for (name, value) in fields {
        let plain = String::from_utf8(lower(&name)).expect("a token");
        if !NOT_IN_TRAILERS.contains(&&*plain) {
            body.trailers.push((lower(&name), value));
        }
    }
    Some(start + length)
}

/// `*( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )`.
fn are_extensions(text: &[u8]) -> bool {
    let mut at = 0;
    while at < text.len() {
        at = skip_blanks(text, at);
        if text.get(at) != Some(&b';') {
            return false;
        }
        at = skip_blanks(text, at + 1);
        let name = skip_token(text, at);
        if name == at {
            return false;
        }
        at = name;
        let equals = skip_blanks(text, at);
        if text.get(equals) != Some(&b'=') {
            continue;
        }
        at = skip_blanks(text, equals + 1);
        if text.get(at) == Some(&b'"') {
            at += 1;
            loop {
                match text.get(at) {
                    Some(b'"') => break,
                    Some(b'\\') => {
                        if !text.get(at + 1).is_some_and(|byte| is_text(&[*byte])) {
                            return false;
                        }
                        at += 2;
                    }
                    Some(byte) if is_text(&[*byte]) => at += 1,
                    _ => return false,
                }
            }
            at += 1;
        } else {
            let value = skip_token(text, at);
            if value == at {
                return false;
            }
            at = value;
        }
    }
    true
}

fn skip_blanks(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(|byte| is_blank(*byte)) {
        at += 1;
    }
    at
}

fn skip_token(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(|byte| is_token(&[*byte])) {
        at += 1;
    }
    at
}

/// Returns the line at `start` and the start of the next one.
fn line(bytes: &[u8], start: usize, tolerant: bool) -> Option<(Vec<u8>, usize)> {
    let mut end = start;
    while *bytes.get(end)? != b'\n' {
        end += 1;
    }
    let mut text = bytes[start..end].to_vec();
    if text.last() == Some(&b'\r') {
        text.pop();
    } else if !tolerant {
        return None;
    }
    Some((text, end + 1))
}

/// Returns the lines to the first empty one, folded lines joined, and the length of all of them.
fn lines(bytes: &[u8], tolerant: bool) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let mut at = 0;
    loop {
        let (text, next) = line(bytes, at, tolerant)?;
        at = next;
        if text.is_empty() {
            return Some((lines, at));
        }
        if text[0] == b'\r' {
            // It could be taken for the empty line.
            return None;
        }
        lines.push(text);
    }
}

/// Parses field lines. Returns them, and the number of lines that were dropped.
fn fields(lines: &[Vec<u8>], tolerant: bool) -> Option<(Vec<Field>, u64)> {
    let mut joined: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        if is_blank(line[0]) {
            if !tolerant {
                return None;
            }
            let last = joined.pop()?;
            joined.push([trim(&last), b" ", trim(line)].concat());
        } else {
            joined.push(line.clone());
        }
    }
    if joined.len() > MAX_FIELDS {
        return None;
    }
    let (mut fields, mut dropped) = (Vec::new(), 0);
    for line in joined {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            if !tolerant {
                return None;
            }
            dropped += 1;
            continue;
        };
        let mut name = &line[..colon];
        while tolerant && name.last().is_some_and(|byte| is_blank(*byte)) {
            name = &name[..name.len() - 1];
        }
        if !is_token(name) {
            let letters: Vec<u8> = lower(name)
                .into_iter()
                .filter(u8::is_ascii_alphabetic)
                .collect();
            if !tolerant || letters == b"contentlength" || letters == b"transferencoding" {
                return None;
            }
            dropped += 1;
            continue;
        }
        let value = trim(&line[colon + 1..]);
        if !is_text(value) {
            return None;
        }
        fields.push((name.to_vec(), value.to_vec()));
    }
    Some((fields, dropped))
}

fn sort(fields: Vec<Field>) -> Sorted {
    let mut sorted = Sorted::default();
    for (name, value) in fields {
        let keep = match &lower(&name)[..] {
            b"content-length" => {
                sorted.lengths.push(value.clone());
                sorted.lengths.len() == 1
            }
            b"transfer-encoding" => {
                sorted.codings.push(value.clone());
                false
            }
            b"connection" => {
                let mut others = false;
                for option in split(&value, b',') {
                    match &lower(trim(&option))[..] {
                        b"" => {}
                        b"close" => sorted.close = true,
                        b"keep-alive" => sorted.keep_alive = true,
                        _ => others = true,
                    }
                }
                others
            }
            b"host" => {
                sorted.hosts.push(value.clone());
                true
            }
            b"expect" => {
                sorted.expectations.push(value.clone());
                true
            }
            _ => true,
        };
        if keep {
            sorted.kept.push((name, value));
        }
    }
    sorted
}

fn set_length(fields: &mut [Field], length: u64) {
    for (name, value) in fields {
        if lower(name) == b"content-length" {
            *value = length.to_string().into_bytes();
        }
    }
}

fn remove_length(fields: &mut Vec<Field>) {
    fields.retain(|(name, _)| lower(name) != b"content-length");
}

/// A reason phrase that is not valid is replaced by the usual one.
fn reason(text: &[u8]) -> Vec<u8> {
    let mut text = text;
    while text.first().is_some_and(u8::is_ascii_whitespace) {
        text = &text[1..];
    }
    while text.last().is_some_and(u8::is_ascii_whitespace) {
        text = &text[..text.len() - 1];
    }
    if is_text(text) {
        text.to_vec()
    } else {
        Vec::new()
    }
}

/// Returns the authority, and the target in origin form (RFC 9112 section 3.2).
fn request_target(method: &[u8], target: &[u8]) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
    if target.first() == Some(&b'/') {
        return Some((None, origin_form(target)?));
    }
    if method == b"CONNECT" {
        return is_connect_authority(target).then(|| (Some(target.to_vec()), Vec::new()));
    }
    if target == b"*" {
        return (method == b"OPTIONS").then(|| (None, target.to_vec()));
    }
    let scheme = ["http://", "https://"].into_iter().find(|scheme| {
        target.len() >= scheme.len() && lower(&target[..scheme.len()]) == scheme.as_bytes()
    })?;
    let rest = &target[scheme.len()..];
    let mut end = 0;
    while end < rest.len() && rest[end] != b'/' && rest[end] != b'?' {
        end += 1;
    }
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !is_authority(authority) {
        return None;
    }
    let path = if path.first() == Some(&b'/') {
        path.to_vec()
    } else {
        [b"/", path].concat()
    };
    Some((Some(authority.to_vec()), origin_form(&path)?))
}

/// Checks path and query. Bytes beyond RFC 3986 are valid that kube-apiserver accepts, and escapes
/// are checked in the path only.
fn origin_form(text: &[u8]) -> Option<Vec<u8>> {
    let mut in_query = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            0..=b' ' | 0x7f | b'#' => return None,
            b'?' => in_query = true,
            b'%' if !in_query => {
                let escape = text.get(at + 1..at + 3)?;
                if !escape.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
            }
            _ => {}
        }
    }
    std::str::from_utf8(text).ok()?;
    Some(text.to_vec())
}

/// `uri-host [ ":" port ]` without user information. The host may be empty without a port.
pub fn is_authority(text: &[u8]) -> bool {
    if text.is_empty() {
        return true;
    }
    let (host_is_valid, port) = if text[0] == b'[' {
        let Some(end) = text.iter().position(|byte| *byte == b']') else {
            return false;
        };
        let literal = &text[1..end];
        (is_ipv6(literal) || is_ip_future(literal), &text[end + 1..])
    } else {
        let end = text
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(text.len());
        (end > 0 && is_reg_name(&text[..end]), &text[end..])
    };
    let port_is_valid = match port.split_first() {
        None => true,
        Some((b':', [])) => true,
        Some((b':', digits_of_port)) => {
            digits_of_port.len() <= 5 && digits(digits_of_port).is_some_and(|port| port <= 65_535)
        }
        Some(_) => false,
    };
    host_is_valid && port_is_valid
}

/// A host and a port (RFC 9112 section 3.2.3), which may be the name of one.
fn is_connect_authority(text: &[u8]) -> bool {
    let Some(colon) = text.iter().rposition(|byte| *byte == b':') else {
        return false;
    };
    let (host, port) = (&text[..colon], &text[colon + 1..]);
    let is_number = digits(port).is_some_and(|port| port <= 65_535) && port.len() <= 5;
    let is_name = port.iter().any(u8::is_ascii_alphabetic)
        && port
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    // Without a colon of its own, outside of an address.
    let is_host = host.ends_with(b"]") || !host.contains(&b':');
    !host.is_empty() && is_host && is_authority(host) && (is_number || is_name)
}

fn is_reg_name(text: &[u8]) -> bool {
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'%' {
            let escape = text.get(at + 1..at + 3);
            if !escape.is_some_and(|escape| escape.iter().all(u8::is_ascii_hexdigit)) {
                return false;
            }
            at += 3;
        } else if is_unreserved_or_sub_delim(text[at]) {
            at += 1;
        } else {
            return false;
        }
    }
    true
}

fn is_ip_future(text: &[u8]) -> bool {
    let Some(dot) = text.iter().position(|byte| *byte == b'.') else {
        return false;
    };
    let (version, address) = (&text[..dot], &text[dot + 1..]);
    version.len() > 1
        && matches!(version[0], b'v' | b'V')
        && version[1..].iter().all(u8::is_ascii_hexdigit)
        && !address.is_empty()
        && address
            .iter()
            .all(|byte| is_unreserved_or_sub_delim(*byte) || *byte == b':')
}

/// `IPv6address` of RFC 3986: eight groups, of which `::` replaces at least one.
fn is_ipv6(text: &[u8]) -> bool {
    let mut double = None;
    for at in 0..text.len().saturating_sub(1) {
        if &text[at..at + 2] == b"::" {
            if double.is_some() {
                return false;
            }
            double = Some(at);
        }
    }
    match double {
        None => groups(text, true) == Some(8),
        Some(at) => {
            let (before, after) = (&text[..at], &text[at + 2..]);
            let count = |text: &[u8], last| {
                if text.is_empty() {
                    Some(0)
                } else {
                    groups(text, last)
                }
            };
            matches!((count(before, false), count(after, true)), (Some(a), Some(b)) if a + b < 8)
        }
    }
}

/// Counts groups that are separated by colons. The last two may be an IPv4 address.
fn groups(text: &[u8], may_end_with_ipv4: bool) -> Option<usize> {
    let parts = split(text, b':');
    let mut count = 0;
    for (index, part) in parts.iter().enumerate() {
        let is_group = (1..=4).contains(&part.len()) && part.iter().all(u8::is_ascii_hexdigit);
        if is_group {
            count += 1;
        } else if may_end_with_ipv4 && index + 1 == parts.len() && is_ipv4(part) {
            count += 2;
        } else {
            return None;
        }
    }
    Some(count)
}

fn is_ipv4(text: &[u8]) -> bool {
    let parts = split(text, b'.');
    parts.len() == 4
        && parts.iter().all(|part| {
            part.len() <= 3
                && (part.len() == 1 || part.first() != Some(&b'0'))
                && digits(part).is_some_and(|number| number <= 255)
        })
}

fn is_unreserved_or_sub_delim(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// Parses `1*DIGIT`.
pub fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > MAX_LENGTH_DIGITS {
        return None;
    }
    let mut number = 0;
    for byte in text {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u64::from(byte - b'0');
    }
    Some(number)
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// `HTAB / SP / VCHAR / obs-text`.
fn is_text(text: &[u8]) -> bool {
    text.iter()
        .all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn trim(text: &[u8]) -> &[u8] {
    let mut text = text;
    while text.first().is_some_and(|byte| is_blank(*byte)) {
        text = &text[1..];
    }
    while text.last().is_some_and(|byte| is_blank(*byte)) {
        text = &text[..text.len() - 1];
    }
    text
}

fn split(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    for byte in text {
        if *byte == separator {
            parts.push(Vec::new());
        } else {
            parts.last_mut().expect("there is one").push(*byte);
        }
    }
    parts
}

pub fn lower(text: &[u8]) -> Vec<u8> {
    text.to_ascii_lowercase()
}
