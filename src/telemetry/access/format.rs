//! Lines of the access log, as JSON and as text.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Version;

use super::Record;
use crate::http::all_bytes;
use crate::model::text::{push_decimal, push_ip, push_socket_addr};
use crate::model::{Endpoint, Resource, Verb};

// Fields whose length clients control are truncated and marked, so that one request cannot fill the
// log or the memory of its queue.
/// Maximum length of a path. Longer ones carry the state of an application, not names.
pub(super) const MAX_PATH_BYTES: usize = 2048;
/// Maximum length of a path of an unauthenticated request: enough for the names of a target.
pub(super) const MAX_PATH_BYTES_UNAUTHENTICATED: usize = 256;
/// Maximum length of an `Audit-Id`, as in the log of kube-apiserver.
pub(super) const MAX_AUDIT_ID_BYTES: usize = 64;
/// Maximum length of a namespace: a DNS label has 63 bytes.
pub(super) const MAX_NAMESPACE_BYTES: usize = 64;
/// Maximum length of an id: a scheme, a DNS subdomain (253 bytes), a port (63 bytes), and room for
/// invalid ones.
pub(super) const MAX_ID_BYTES: usize = 384;
/// Maximum length of a user. OIDC users have the URL of the issuer and a subject of up to 255
/// bytes.
pub(super) const MAX_USER_BYTES: usize = 512;
/// Maximum length of a method. Served ones have up to 7 bytes, others are arbitrary tokens.
pub(super) const MAX_METHOD_BYTES: usize = 32;
/// Maximum length of an error: several causes with their addresses.
pub(super) const MAX_ERROR_BYTES: usize = 1024;

/// Line of a request.
///
/// Formatted neither with a serializer nor with `fmt`: each took a seventh of all instructions of a
/// request.
pub(super) struct Line<'a> {
    pub record: &'a Record,
    pub duration: Duration,
}

impl Line<'_> {
    /// Appends the line as a JSON object.
    pub fn write_json(&self, clock: &mut Clock, line: &mut Vec<u8>) {
        let Record {
            method,
            version,
            client,
            audit_id,
            endpoint,
            api_server,
            code,
            error,
            namespace,
            id,
            ..
        } = self.record;
        line.extend_from_slice(b"{\"ts\":\"");
        clock.write(line);
        line.extend_from_slice(b"\",\"level\":\"info\",\"msg\":\"request\"");
        put_string(line, "user", &self.user());
        if let Some(impersonated_user) = &self.record.impersonated_user {
            put_string(
                line,
                "impersonatedUser",
                &truncate(&impersonated_user.user, MAX_USER_BYTES),
            );
        }
        put_key(line, "client");
        line.push(b'"');
        push_ip(line, *client);
        line.push(b'"');
        put_string(line, "verb", self.verb());
        put_string(line, "method", &truncate(method.as_str(), MAX_METHOD_BYTES));
        put_string(line, "resource", self.resource());
        put_string(line, "namespace", &truncate(namespace, MAX_NAMESPACE_BYTES));
        put_string(line, "name", &truncate(id, MAX_ID_BYTES));
        // Without the query, which may contain secrets.
        put_string(line, "path", &self.path());
        put_string(line, "protocol", protocol(*version));
        if let Some(endpoint) = endpoint {
            put_key(line, "endpoint");
            line.push(b'"');
            push_socket_addr(line, endpoint.address);
            line.push(b'"');
            put_string(line, "endpointName", &endpoint.name);
        }
        if let Some(api_server) = api_server {
            put_string(line, "apiServer", api_server);
        }
        put_key(line, "code");
        push_decimal(line, code.as_u16());
        put_key(line, "received");
        push_decimal(line, self.record.received());
        put_key(line, "sent");
        push_decimal(line, self.record.sent);
        put_key(line, "duration");
        push_seconds(line, self.duration);
        put_string(
            line,
            "auditId",
            &truncate(audit_id.to_str().unwrap_or_default(), MAX_AUDIT_ID_BYTES),
        );
        if let Some(error) = error {
            put_string(line, "error", &truncate(error, MAX_ERROR_BYTES));
        }
        line.extend_from_slice(b"}\n");
    }

    /// Appends the line as `key=value` text, with the keys of the JSON. Strings of clients are
    /// quoted, so that they cannot imitate a field.
    pub fn write_text(&self, clock: &mut Clock, line: &mut Vec<u8>) {
        let Record {
            method,
            version,
            client,
            audit_id,
            endpoint,
            api_server,
            code,
            error,
            namespace,
            id,
            sent,
            ..
        } = self.record;
        let push = |line: &mut Vec<u8>, text: &str| line.extend_from_slice(text.as_bytes());
        clock.write(line);
        push(line, " INFO request code=");
        push_decimal(line, code.as_u16());
        push(line, " method=");
        push(line, &truncate(method.as_str(), MAX_METHOD_BYTES));
        push(line, " path=");
        push_quoted(line, &self.path());
        push(line, " protocol=");
        push(line, protocol(*version));
        push(line, " user=");
        push_quoted(line, &self.user());
        if let Some(user) = &self.record.impersonated_user {
            push(line, " impersonatedUser=");
            push_quoted(line, &truncate(&user.user, MAX_USER_BYTES));
        }
        push(line, " client=");
        push_ip(line, *client);
        push(line, " verb=");
        push_word(line, self.verb());
        push(line, " resource=");
        push_word(line, self.resource());
        push(line, " namespace=");
        push_quoted(line, &truncate(namespace, MAX_NAMESPACE_BYTES));
        push(line, " name=");
        push_quoted(line, &truncate(id, MAX_ID_BYTES));
        if let Some(Endpoint { address, name }) = endpoint {
            push(line, " endpoint=");
            push_socket_addr(line, *address);
            push(line, " endpointName=");
            push_quoted(line, name);
        }
        if let Some(api_server) = api_server {
            push(line, " apiServer=");
            push_quoted(line, api_server);
        }
        push(line, " received=");
        push_decimal(line, self.record.received());
        push(line, " sent=");
        push_decimal(line, *sent);
        push(line, " duration=");
        push_seconds(line, self.duration);
        push(line, " auditId=");
        let audit_id = audit_id.to_str().unwrap_or_default();
        push_quoted(line, &truncate(audit_id, MAX_AUDIT_ID_BYTES));
        if let Some(error) = error {
            push(line, " error=");
            push_quoted(line, &truncate(error, MAX_ERROR_BYTES));
        }
        line.push(b'\n');
    }

    fn user(&self) -> Cow<'_, str> {
        truncate(
            self.record
                .identity
                .as_deref()
                .map_or("", |identity| &identity.user),
            MAX_USER_BYTES,
        )
    }

    fn path(&self) -> Cow<'_, str> {
        let known = self.record.is_authenticated();
        truncate(
            self.record.path(),
            if known {
                MAX_PATH_BYTES
            } else {
                MAX_PATH_BYTES_UNAUTHENTICATED
            },
        )
    }

    fn verb(&self) -> &'static str {
        self.record.verb.map_or("", Verb::as_str)
    }

    fn resource(&self) -> &'static str {
        self.record.resource.map_or("", Resource::plural)
    }
}

/// Returns the text, or its first `max_bytes` bytes followed by `…`. Most texts are short and cost
/// one comparison.
fn truncate(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(max_bytes);
    Cow::Owned([&text[..end], "…"].concat())
}

/// Returns true if the text is printable ASCII without quotes and backslashes. Almost all logged
/// texts are, and this check is cheaper than escaping them.
fn is_plain(text: &str) -> bool {
    all_bytes(text.as_bytes(), |byte| {
        (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'
    })
}

/// Appends a text in quotes, escaped as `{:?}` does.
fn push_quoted(line: &mut Vec<u8>, text: &str) {
    if is_plain(text) {
        line.push(b'"');
        line.extend_from_slice(text.as_bytes());
        line.push(b'"');
    } else {
        line.extend_from_slice(format!("{text:?}").as_bytes());
    }
}

/// Appends a word of the bastion's own, or two quotes for an empty one.
fn push_word(line: &mut Vec<u8>, word: &str) {
    line.extend_from_slice(if word.is_empty() {
        b"\"\""
    } else {
        word.as_bytes()
    });
}

/// Returns the name of a version as it stands in a request line.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// Appends `,"key":`.
fn put_key(line: &mut Vec<u8>, key: &str) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(key.as_bytes());
    line.extend_from_slice(b"\":");
}

/// Appends `,"key":"value"` with the value escaped.
fn put_string(line: &mut Vec<u8>, key: &str, value: &str) {
    put_key(line, key);
    if is_plain(value) {
        line.push(b'"');
        line.extend_from_slice(value.as_bytes());
        line.push(b'"');
    } else {
        serde_json::to_writer(line, value).expect("writing to a Vec does not fail");
    }
}

/// Appends a duration in seconds with six decimals.
fn push_seconds(line: &mut Vec<u8>, duration: Duration) {
    push_decimal(line, duration.as_secs());
    push_fraction(line, duration.subsec_micros(), 100_000);
}

/// Appends `.` and the digits of a number, with as many leading zeros as `highest`, the value of
/// the first digit, requires.
fn push_fraction(line: &mut Vec<u8>, number: u32, highest: u32) {
    line.push(b'.');
    let mut value = highest;
    while value > number && value > 1 {
        line.push(b'0');
        value /= 10;
    }
    push_decimal(line, number);
}

/// Formats the current time (RFC 3339). The part up to the second is cached.
#[derive(Debug, Default)]
pub(super) struct Clock {
    second: u64,
    text: String,
}

impl Clock {
    fn write(&mut self, line: &mut Vec<u8>) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if now.as_secs() != self.second || self.text.is_empty() {
            self.second = now.as_secs();
            let seconds = i64::try_from(self.second).unwrap_or_default();
            let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
            time.to_string()
                .trim_end_matches('Z')
                .clone_into(&mut self.text);
        }
        line.extend_from_slice(self.text.as_bytes());
        push_fraction(line, now.subsec_millis(), 100);
        line.push(b'Z');
    }
}
