//! URL grammar of kube-apiserver's `/proxy/` (CONFORMANCE chapters 1 and 3).

mod host;

pub(super) use host::{host_name, zone};

use std::borrow::Cow;

use percent_encoding::{percent_decode_str, utf8_percent_encode};

use super::dns::MAX_LABEL_BYTES;
use super::path::{self, SubPathDecoding};
use super::quote::GoQuoted;
use super::{Resource, Scheme};

/// Maximum length of an id: the name of an object (253 bytes), a scheme and a port (63 bytes), and
/// room for ids that are rejected with an error that quotes them.
const MAX_ID_BYTES: usize = 512;

/// Hosts of targets in URLs. Part of an error by which clients recognize a bastion.
pub const HOST_FORMS: &str = "NAME.NAMESPACE.svc or NAME.NAMESPACE.pod";

/// Target of a request, as its path spells it.
///
/// Nothing is looked up here, and the id is validated only after authorization, so that a caller
/// without permission learns nothing from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub resource: Resource,
    /// Namespace; empty for nodes, and for paths with an empty namespace (C9).
    pub namespace: Cow<'a, str>,
    /// `name`, `name:port` or `scheme:name:port`, percent-decoded. RBAC compares `resourceNames`
    /// with the whole id (C18).
    pub id: Cow<'a, str>,
    /// The path up to and including `/proxy`, as received. Empty for a URL with the host of a
    /// service or pod.
    pub prefix: &'a str,
    /// The path after the prefix, as received: empty, or beginning with a slash.
    pub rest: &'a str,
}

/// Reason why a path or host does not name a target. The client must change it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not one of the three routes of core v1 (C1, C2).
    #[error("the server could not find the requested resource")]
    NoRoute,
    /// `%2F` before `/proxy`. kube-apiserver takes it for a separator, which routes and authorizes
    /// the request differently than it reads (C11).
    #[error("encoded slash (%2F) before /proxy; names of nodes, pods and services have no slash")]
    EncodedSlash,
    /// Longer than the names of objects, so that no object or review can match.
    #[error(
        "the {0} in the path is too long; use at most {namespace} bytes for a namespace and {id} \
         for an id",
        namespace = MAX_LABEL_BYTES,
        id = MAX_ID_BYTES
    )]
    TooLong(&'static str),
    /// Escapes before `/proxy` that do not decode to UTF-8.
    #[error("the path before /proxy is not percent-encoded UTF-8")]
    NotUtf8,
    /// Host of a URL below `svc` or `pod` that does not name a service or pod.
    #[error(
        "invalid host {}; use {HOST_FORMS}, with a port from 1 to 65535",
        GoQuoted(.0)
    )]
    Host(String),
}

impl<'a> Target<'a> {
    /// Parses the raw path of a request, without its query.
    ///
    /// # Errors
    /// [`TargetError`] if the path does not name a target.
    pub fn parse(path: &'a str) -> Result<Self, TargetError> {
        let mut segments = Segments {
            path,
            at: 0,
            has_escapes: memchr::memchr(b'%', path.as_bytes()).is_some(),
        };
        segments.literal("api")?;
        segments.literal("v1")?;
        let (resource, namespace) = match &*segments.decoded()? {
            "nodes" => (Resource::Nodes, Cow::Borrowed("")),
            "namespaces" => {
                let namespace = segments.decoded()?;
                match &*segments.decoded()? {
                    "pods" => (Resource::Pods, namespace),
                    "services" => (Resource::Services, namespace),
                    _ => return Err(TargetError::NoRoute),
                }
            }
            _ => return Err(TargetError::NoRoute),
        };
        let id = segments.decoded()?;
        segments.literal("proxy")?;
        if namespace.len() > MAX_LABEL_BYTES {
            return Err(TargetError::TooLong("namespace"));
        }
        if id.len() > MAX_ID_BYTES {
            return Err(TargetError::TooLong("id"));
        }
        let (prefix, rest) = path.split_at(segments.at);
        Ok(Self {
            resource,
            namespace,
            id,
            prefix,
            rest,
        })
    }

    /// Returns true if a path names a target, or is an attempt to do so that [`Self::parse`] rejects.
    pub fn is_named_by(path: &str) -> bool {
        if Target::parse(path).is_ok() {
            return true;
        }
        // The common case: neither the segment that all of these paths have, nor an escape of it.
        if memchr::memmem::find(path.as_bytes(), b"proxy").is_none() && !path.contains('%') {
            return false;
        }
        // An API server decodes a path before it routes it, and may drop empty and dot segments.
        let decoded = percent_decode_str(path).decode_utf8_lossy();
        let mut segments = Vec::new();
        for segment in decoded.split('/') {
            match segment {
                "" | "." => {}
                ".." => {
                    segments.pop();
                }
                segment => segments.push(segment),
            }
        }
        let proxy = segments.iter().position(|segment| *segment == "proxy");
        proxy.is_some_and(|proxy| {
            let plain = ["", &segments[..=proxy].join("/")].join("/");
            !matches!(
                Target::parse(&plain),
                Err(TargetError::NoRoute | TargetError::Host(_))
            )
        })
    }

    /// Splits the id into scheme, name and port (C4 to C7).
    ///
    /// # Errors
    /// [`InvalidId`] with the whole id, as kube-apiserver quotes it (C6).
    pub fn id(&self) -> Result<Id<'_>, InvalidId> {
        Id::parse(&self.id).ok_or_else(|| self.invalid_id())
    }

    /// Returns the error for an invalid id or port (C39).
    pub fn invalid_id(&self) -> InvalidId {
        InvalidId {
            resource: self.resource,
            id: self.id.clone().into_owned(),
        }
    }

    /// Returns the path up to and including `/proxy` in normal form, with only the necessary
    /// escapes.
    pub fn plain_prefix(&self) -> Cow<'a, str> {
        if !self.prefix.contains('%') {
            return Cow::Borrowed(self.prefix);
        }
        let decoded = percent_decode_str(self.prefix).decode_utf8_lossy();
        Cow::Owned(utf8_percent_encode(&decoded, path::ESCAPED).to_string())
    }

    /// Returns the prefix of links and cookies of the target: the spelling of the request, so that
    /// a browser finds the cookies that it got under it (RFC 6265 section 5.1.4 compares bytes), or
    /// the normal form if that spelling has characters that are rare in URLs.
    pub fn shown_prefix(&self) -> Cow<'a, str> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~:%".contains(&byte);
        if self.prefix.bytes().all(is_plain) {
            Cow::Borrowed(self.prefix)
        } else {
            self.plain_prefix()
        }
    }

    /// Returns the redirect location for a path without its trailing slash: the path with the
    /// slash, and the query (C29).
    pub fn with_trailing_slash(&self, query: Option<&str>) -> String {
        let path = self.plain_prefix();
        match query {
            Some(query) => format!("{path}/?{query}"),
            None => format!("{path}/"),
        }
    }

    /// Returns true if the target has a host of its own, below which the whole path is its own.
    pub fn is_host(&self) -> bool {
        self.prefix.is_empty()
    }

    /// Returns the path after `/proxy` for the endpoint: the bytes as received,
    /// unless `decoding` applies to them, with dot segments, including those spelled `%2e`,
    /// resolved below the root (C25 to C27). The path of a target with a host of its own is not
    /// changed.
    pub fn sub_path(&self, decoding: SubPathDecoding) -> Cow<'a, str> {
        if self.rest.is_empty() {
            Cow::Borrowed("/")
        } else if self.is_host() {
            Cow::Borrowed(self.rest)
        } else {
            path::endpoint_path(self.rest, decoding)
        }
    }
}

/// Parts of an id. The port is a number or a name, not yet resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id<'a> {
    /// Scheme of the id; `None` selects the default of the target.
    pub scheme: Option<Scheme>,
    pub name: &'a str,
    pub port: &'a str,
}

impl<'a> Id<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let mut parts = id.split(':');
        let (scheme, name, port) = match (parts.next()?, parts.next(), parts.next(), parts.next()) {
            (name, None, ..) => ("", name, ""),
            (name, Some(port), None, _) => ("", name, port),
            (scheme, Some(name), Some(port), None) => (scheme, name, port),
            _ => return None,
        };
        let scheme = match scheme {
            "" => None,
            "http" => Some(Scheme::Http),
            "https" => Some(Scheme::Https),
            _ => return None,
        };
        (!name.is_empty()).then_some(Self { scheme, name, port })
    }

    /// Returns the error message of the API server's storage layer if the name cannot be that of an
    /// object (C10).
    pub fn name_error(&self) -> Option<String> {
        let reason = match self.name {
            "." => "may not be '.'".to_owned(),
            ".." => "may not be '..'".to_owned(),
            name => {
                let reasons: Vec<_> = ['/', '%']
                    .into_iter()
                    .filter(|c| name.contains(*c))
                    .map(|c| format!("may not contain '{c}'"))
                    .collect();
                if reasons.is_empty() {
                    return None;
                }
                reasons.join(";")
            }
        };
        Some(format!(
            "Name parameter invalid: {}: {reason}",
            GoQuoted(self.name)
        ))
    }
}

/// Error of an id that is malformed or has an invalid port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {} request {}", resource.singular(), GoQuoted(id))]
pub struct InvalidId {
    resource: Resource,
    id: String,
}

/// Cursor over the segments of the raw path.
struct Segments<'a> {
    path: &'a str,
    /// Length of the segments read so far.
    at: usize,
    /// The path contains a `%`, in whatever segment.
    has_escapes: bool,
}

impl<'a> Segments<'a> {
    fn raw(&mut self) -> Result<&'a str, TargetError> {
        let rest = self.path[self.at..]
            .strip_prefix('/')
            .ok_or(TargetError::NoRoute)?;
        // Segments are short: a search that is set up for long texts costs more.
        let end = rest.bytes().position(|byte| byte == b'/');
        let segment = &rest[..end.unwrap_or(rest.len())];
        self.at += 1 + segment.len();
        Ok(segment)
    }

    fn decoded(&mut self) -> Result<Cow<'a, str>, TargetError> {
        let raw = self.raw()?;
        if !self.has_escapes {
            return Ok(Cow::Borrowed(raw));
        }
        let decoded = percent_decode_str(raw)
            .decode_utf8()
            .map_err(|_| TargetError::NotUtf8)?;
        if decoded.contains('/') {
            Err(TargetError::EncodedSlash)
        } else {
            Ok(decoded)
        }
    }

    fn literal(&mut self, expected: &str) -> Result<(), TargetError> {
        if self.decoded()? == expected {
            Ok(())
        } else {
            Err(TargetError::NoRoute)
        }
    }
}

#[cfg(test)]
mod tests;
