//! Lines of the access log, as JSON and as text.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Record;
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
/// Not formatted with a serializer, which took a seventh of all instructions of a request.
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
            code,
            error,
            namespace,
            id,
            ..
        } = self.record;
        line.extend_from_slice(b"{\"time\":\"");
        clock.write(line);
        line.push(b'"');
        put_string(line, "user", &self.user());
        if let Some(impersonated_user) = &self.record.impersonated_user {
            put_string(
                line,
                "impersonatedUser",
                &truncate(&impersonated_user.user, MAX_USER_BYTES),
            );
        }
        put(line, "client", format_args!("\"{client}\""));
        put_string(line, "verb", self.verb());
        put_string(line, "method", &truncate(method.as_str(), MAX_METHOD_BYTES));
        put_string(line, "resource", self.resource());
        put_string(line, "namespace", &truncate(namespace, MAX_NAMESPACE_BYTES));
        put_string(line, "name", &truncate(id, MAX_ID_BYTES));
        // Without the query, which may contain secrets.
        put_string(line, "path", &self.path());
        put(line, "protocol", format_args!("\"{version:?}\""));
        if let Some(endpoint) = endpoint {
            put(line, "endpoint", format_args!("\"{}\"", endpoint.address));
            put_string(line, "endpointName", &endpoint.name);
        }
        put(line, "code", format_args!("{}", code.as_u16()));
        put(line, "received", format_args!("{}", self.record.received()));
        put(line, "sent", format_args!("{}", self.record.sent));
        put(line, "duration", format_args!("{}", Seconds(self.duration)));
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

    /// Appends the line as `key=value` text. Strings of clients are quoted, so that they cannot
    /// imitate a field.
    pub fn write_text(&self, clock: &mut Clock, line: &mut Vec<u8>) {
        let Record {
            method,
            version,
            client,
            audit_id,
            endpoint,
            code,
            error,
            namespace,
            id,
            sent,
            ..
        } = self.record;
        clock.write(line);
        let slash = if namespace.is_empty() { "" } else { "/" };
        let mut put = || -> std::io::Result<()> {
            write!(
                line,
                " {} {} {} {version:?} user={} client={client} verb={} \
                 target=\"{}/{}{slash}{}\" ",
                code.as_u16(),
                truncate(method.as_str(), MAX_METHOD_BYTES),
                Quoted(&self.path()),
                Quoted(&self.user()),
                self.verb(),
                self.resource(),
                Escaped(&truncate(namespace, MAX_NAMESPACE_BYTES)),
                Escaped(&truncate(id, MAX_ID_BYTES)),
            )?;
            if let Some(user) = &self.record.impersonated_user {
                let user = truncate(&user.user, MAX_USER_BYTES);
                write!(line, "impersonated-user={} ", Quoted(&user))?;
            }
            match endpoint {
                Some(Endpoint { address, name }) => {
                    let name = Quoted(name);
                    write!(line, "endpoint={address} endpoint-name={name} ")?;
                }
                None => write!(line, "endpoint=- ")?,
            }
            let (received, duration) = (self.record.received(), Seconds(self.duration));
            let audit_id = truncate(audit_id.to_str().unwrap_or_default(), MAX_AUDIT_ID_BYTES);
            let audit_id = Quoted(&audit_id);
            write!(
                line,
                "received={received} sent={sent} duration={duration} audit-id={audit_id}"
            )?;
            match error {
                Some(error) => writeln!(line, " error={:?}", truncate(error, MAX_ERROR_BYTES)),
                None => writeln!(line),
            }
        };
        put().expect("writing to a Vec does not fail");
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
            self.record.target.path(),
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
    text.bytes()
        .all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\')
}

/// Displays a text in quotes, escaped as `{:?}` does.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_plain(self.0) {
            write!(f, "\"{}\"", self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// Displays a part of a quoted text, escaped as `{:?}` does.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_plain(self.0) {
            f.write_str(self.0)
        } else {
            write!(f, "{}", self.0.escape_debug())
        }
    }
}

/// Appends `,"key":value`. The value must be JSON.
fn put(line: &mut Vec<u8>, key: &str, value: fmt::Arguments<'_>) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(key.as_bytes());
    line.extend_from_slice(b"\":");
    line.write_fmt(value)
        .expect("writing to a Vec does not fail");
}

/// Appends `,"key":"value"` with the value escaped.
fn put_string(line: &mut Vec<u8>, key: &str, value: &str) {
    put(line, key, format_args!(""));
    if is_plain(value) {
        line.push(b'"');
        line.extend_from_slice(value.as_bytes());
        line.push(b'"');
    } else {
        serde_json::to_writer(line, value).expect("writing to a Vec does not fail");
    }
}

/// Displays a duration in seconds with six decimals.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0.as_secs(), self.0.subsec_micros())
    }
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
        write!(line, "{}.{:03}Z", self.text, now.subsec_millis())
            .expect("writing to a Vec does not fail");
    }
}
