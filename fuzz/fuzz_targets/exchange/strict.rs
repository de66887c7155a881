//! A strict reader of HTTP/1.1 requests (RFC 9112). Ambiguous requests are errors.

use crate::reference;

/// Bytes beyond RFC 3986 that kube-apiserver forwards, too: curl and Prometheus send them, and
/// paths in UTF-8.
fn is_target_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'#' || byte >= 0x80
}

/// Fields that are never sent to a backend in any spelling: servers that convert fields to
/// environment variables do not distinguish `_` and `-`.
const REMOVED: [&str; 11] = [
    "authorization",
    "http2-settings",
    "impersonate-group",
    "impersonate-uid",
    "impersonate-user",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "x-remote-group",
    "x-remote-uid",
    "x-remote-user",
];
const REMOVED_PREFIXES: [&str; 2] = ["impersonate-extra-", "x-remote-extra-"];
/// Fields that the bastion sets. A spelling with `_` of the client must not be sent in addition.
const OWN: [&str; 6] = [
    "content-length",
    "transfer-encoding",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-uri",
];
/// Fields that occur at most once.
const SINGLE: [&str; 9] = [
    "connection",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-uri",
];
/// Protocols that allow further requests on the connection, which bypass the bastion.
const HTTP_PROTOCOLS: [&str; 4] = ["h2", "h2c", "http", "tls"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
}

#[derive(Clone, Debug)]
pub struct Head {
    /// Number of the request in the input.
    pub number: u64,
    pub method: String,
    pub target: String,
    pub framing: Framing,
    pub upgrade: Option<String>,
}

type Fields = Vec<(String, Vec<u8>)>;

/// Parses the head at the start of `bytes`. Returns it and its length, or `None` if it is
/// incomplete.
pub fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, String> {
    let Some(end) = super::input::find(bytes, b"\r\n\r\n") else {
        return match super::input::find(bytes, b"\n\n")
            .or_else(|| super::input::find(bytes, b"\n\r\n"))
        {
            Some(_) => Err("a head that ends by bare LF".into()),
            None => Ok(None),
        };
    };
    let (line, rest) = lines(&bytes[..end]);
    let (method, target) = request_line(line)?;
    let fields = rest.map(field).collect::<Result<Fields, _>>()?;
    for (name, _) in &fields {
        check_name(name)?;
    }
    for name in SINGLE {
        if values(&fields, name).count() > 1 {
            return Err(format!("several {name}"));
        }
    }
    check_host(&fields)?;
    let framing = framing(&fields)?;
    let upgrade = upgrade(&fields)?;
    if values(&fields, "te").any(|value| !value.eq_ignore_ascii_case(b"trailers")) {
        return Err("TE that says more than trailers".into());
    }
    let number = match values(&fields, "x-case").collect::<Vec<_>>()[..] {
        [number] => String::from_utf8_lossy(number)
            .parse()
            .map_err(|_| "a number that no input gave")?,
        _ => return Err(format!("{method} {target} was not sent as a request")),
    };
    Ok(Some((
        Head {
            number,
            method,
            target,
            framing,
            upgrade,
        },
        end + 4,
    )))
}

/// Returns the length of a body with its framing, or `None` if it is incomplete.
pub fn body(bytes: &[u8], framing: Framing) -> Result<Option<usize>, String> {
    match framing {
        Framing::None => Ok(Some(0)),
        Framing::Length(length) => Ok((bytes.len() >= length).then_some(length)),
        Framing::Chunked => chunked(bytes, |name| {
            check_name(name)?;
            if SINGLE.contains(&name) || OWN.contains(&name) {
                return Err(format!("{name} in trailers"));
            }
            Ok(())
        }),
    }
}

/// Returns the length of a chunked body, or `None` if it is incomplete. `check` gets the names of
/// the trailers.
pub fn chunked(
    bytes: &[u8],
    check: impl Fn(&str) -> Result<(), String>,
) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let Some(end) = super::input::find(&bytes[at..], b"\r\n") else {
            return Ok(None);
        };
        let size = &bytes[at..at + end];
        if size.is_empty() || size.len() > 8 || !size.iter().all(u8::is_ascii_hexdigit) {
            return Err(format!(
                "the chunk size {:?}",
                String::from_utf8_lossy(size)
            ));
        }
        let size = usize::from_str_radix(&String::from_utf8_lossy(size), 16)
            .map_err(|error| error.to_string())?;
        at += end + 2;
        if size == 0 {
            return trailers(bytes, at, check);
        }
        let Some(end) = bytes.get(at + size..at + size + 2) else {
            return Ok(None);
        };
        if end != b"\r\n" {
            return Err("a chunk that does not end by CRLF".into());
        }
        at += size + 2;
    }
}

fn trailers(
    bytes: &[u8],
    mut at: usize,
    check: impl Fn(&str) -> Result<(), String>,
) -> Result<Option<usize>, String> {
    loop {
        let Some(end) = super::input::find(&bytes[at..], b"\r\n") else {
            return Ok(None);
        };
        let line = &bytes[at..at + end];
        at += end + 2;
        if line.is_empty() {
            return Ok(Some(at));
        }
        let (name, _) = field(line)?;
        if reference::NOT_IN_TRAILERS.contains(&&*name) {
            return Err(format!("{name} in trailers"));
        }
        check(&name)?;
    }
}

fn lines(head: &[u8]) -> (&[u8], impl Iterator<Item = &[u8]>) {
    // Splitting at LF detects bare line feeds (a line without CR) and bare CRs (a CR within a
    // line).
    let mut lines = head
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    (lines.next().unwrap_or_default(), lines)
}

fn request_line(line: &[u8]) -> Result<(String, String), String> {
    let text = String::from_utf8_lossy(line).into_owned();
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = *parts else {
        return Err(format!("the request line {text:?}"));
    };
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Err(format!("the method of {text:?}"));
    }
    if target.first() != Some(&b'/') || !target.iter().copied().all(is_target_byte) {
        return Err(format!("the target of {text:?}"));
    }
    // kube-apiserver forwards any query.
    let path = target
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default();
    if !has_good_escapes(path) {
        return Err(format!("the escapes of {text:?}"));
    }
    let method = String::from_utf8_lossy(method).into_owned();
    Ok((method, String::from_utf8_lossy(target).into_owned()))
}

fn has_good_escapes(target: &[u8]) -> bool {
    let mut pieces = target.split(|byte| *byte == b'%');
    pieces.next();
    pieces.all(|piece| piece.len() >= 2 && piece[..2].iter().all(u8::is_ascii_hexdigit))
}

/// A field line, with its name in lower case.
fn field(line: &[u8]) -> Result<(String, Vec<u8>), String> {
    let text = || String::from_utf8_lossy(line).into_owned();
    let colon = line
        .iter()
        .position(|byte| *byte == b':')
        .ok_or_else(|| format!("a line without a colon: {:?}", text()))?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(format!("the field name of {:?}", text()));
    }
    if value
        .iter()
        .any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err(format!("a control character in {:?}", text()));
    }
    if super::input::find(value, super::world::TOKEN.as_bytes()).is_some() {
        return Err(format!("the caller's token in {:?}", text()));
    }
    Ok((String::from_utf8_lossy(name).to_lowercase(), value.to_vec()))
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = name.replace('_', "-");
    let removed = REMOVED.contains(&&*plain)
        || REMOVED_PREFIXES
            .iter()
            .any(|prefix| plain.starts_with(prefix));
    if removed || (plain != name && OWN.contains(&&*plain)) {
        return Err(format!("the field {name}"));
    }
    Ok(())
}

fn check_host(fields: &Fields) -> Result<(), String> {
    match values(fields, "host").next() {
        None => Err("no Host".into()),
        Some(host) if reference::is_authority(host) => Ok(()),
        Some(host) => Err(format!("the Host {:?}", String::from_utf8_lossy(host))),
    }
}

fn framing(fields: &Fields) -> Result<Framing, String> {
    let lengths: Vec<&[u8]> = values(fields, "content-length").collect();
    match (values(fields, "transfer-encoding").next(), &lengths[..]) {
        (Some(_), [_, ..]) => Err("Transfer-Encoding and Content-Length".into()),
        (Some(coding), []) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (Some(coding), []) => Err(format!("the coding {:?}", String::from_utf8_lossy(coding))),
        (None, []) => Ok(Framing::None),
        (None, [_, _, ..]) => Err(format!("{} Content-Length fields", lengths.len())),
        (None, [length]) => {
            let text = String::from_utf8_lossy(length);
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let length = digits.then(|| text.parse().ok()).flatten();
            length
                .map(Framing::Length)
                .ok_or_else(|| format!("the length {text:?}"))
        }
    }
}

/// Checks that `Connection` occurs only with an `Upgrade`, and that both are minimal.
fn upgrade(fields: &Fields) -> Result<Option<String>, String> {
    let connection = values(fields, "connection").next();
    let upgrade = values(fields, "upgrade").next();
    match (connection, upgrade) {
        (None, None) => Ok(None),
        (Some(connection), Some(upgrade)) if connection.eq_ignore_ascii_case(b"upgrade") => {
            let upgrade =
                String::from_utf8(upgrade.to_vec()).map_err(|_| "an Upgrade that is not text")?;
            for protocol in upgrade.split(',').map(str::trim) {
                let name = protocol
                    .split('/')
                    .next()
                    .unwrap_or_default()
                    .to_lowercase();
                if HTTP_PROTOCOLS.contains(&&*name) || name.is_empty() {
                    return Err(format!("the Upgrade {upgrade:?}"));
                }
            }
            Ok(Some(upgrade))
        }
        _ => Err(format!(
            "Connection {:?} with Upgrade {:?}",
            connection.map(String::from_utf8_lossy),
            upgrade.map(String::from_utf8_lossy)
        )),
    }
}

fn values<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |(it, _)| it == name)
        .map(|(_, value)| &**value)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
