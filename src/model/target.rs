//! What a request path names: the URL grammar of the apiserver's `/proxy/` (CONFORMANCE chapters 1
//! and 3).

use std::borrow::Cow;

use percent_encoding::{percent_decode_str, utf8_percent_encode};

use super::path::{self, without_dot_segments};
use super::quote::GoQuoted;
use super::{Resource, Scheme};

/// A namespace is a DNS label of at most 63 bytes (RFC 1123).
const MAX_NAMESPACE_BYTES: usize = 63;
/// The name of an object has at most 253 bytes (RFC 1123); a scheme and a port come to it, and some
/// room for what is refused with an error that quotes it.
const MAX_ID_BYTES: usize = 512;

/// A target as the path spells it. Nothing is looked up here, and the id is judged only after
/// authorization, so that a caller without rights learns nothing from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub resource: Resource,
    /// Empty for nodes, or where the path leaves it empty (C9).
    pub namespace: Cow<'a, str>,
    /// `name`, `name:port` or `scheme:name:port`, percent-decoded; RBAC's `resourceNames` list it
    /// whole (C18).
    pub id: Cow<'a, str>,
    /// The path up to and including `/proxy`, as it came.
    pub prefix: &'a str,
    /// What follows `/proxy`, as it came: empty, or beginning with a slash.
    pub rest: &'a str,
}

/// Why a path names no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// None of the three routes of core v1 (C1, C2).
    #[error("the server could not find the requested resource")]
    NoRoute,
    /// `%2F` left of `/proxy`: upstream takes it for a separator, which nobody can mean (C11).
    #[error("an encoded slash (%2F) left of /proxy names no node, pod or service")]
    EncodedSlash,
    /// Longer than any object's name, so that nothing need be asked about it.
    #[error("the {0} is longer than any that an object can have")]
    TooLong(&'static str),
    /// An escape left of `/proxy` that is not UTF-8 when decoded.
    #[error("the path left of /proxy is not UTF-8 when percent-decoded")]
    NotUtf8,
}

impl<'a> Target<'a> {
    /// Reads the raw path of a request, without its query.
    ///
    /// # Errors
    /// [`TargetError`] says why the path is no `/proxy/` path.
    pub fn parse(path: &'a str) -> Result<Self, TargetError> {
        let mut segments = Segments { path, at: 0 };
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
        if namespace.len() > MAX_NAMESPACE_BYTES {
            return Err(TargetError::TooLong("namespace"));
        }
        if id.len() > MAX_ID_BYTES {
            return Err(TargetError::TooLong("name"));
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

    /// Splits the id into scheme, name and port (C4 to C7).
    ///
    /// # Errors
    /// [`InvalidId`] quotes the whole id, as the apiserver does (C6).
    pub fn id(&self) -> Result<Id<'_>, InvalidId> {
        Id::parse(&self.id).ok_or_else(|| self.invalid_id())
    }

    /// The error for an id that cannot be meant, its port included (C39).
    pub fn invalid_id(&self) -> InvalidId {
        InvalidId {
            resource: self.resource,
            id: self.id.clone().into_owned(),
        }
    }

    /// The path up to and including `/proxy` in its plainest spelling: escaped is only what must
    /// be.
    pub fn plain_prefix(&self) -> Cow<'a, str> {
        if !self.prefix.contains('%') {
            return Cow::Borrowed(self.prefix);
        }
        let decoded = percent_decode_str(self.prefix).decode_utf8_lossy();
        Cow::Owned(utf8_percent_encode(&decoded, path::ESCAPED).to_string())
    }

    /// Where a browser that forgot the trailing slash is sent: the path with the slash, and the
    /// query (C29).
    pub fn with_trailing_slash(&self, query: Option<&str>) -> String {
        let path = self.plain_prefix();
        match query {
            Some(query) => format!("{path}/?{query}"),
            None => format!("{path}/"),
        }
    }

    /// The path for the backend: the bytes right of `/proxy` as they came, save that dot segments,
    /// `%2e` spelled or not, are resolved and never climb above the root (C25 to C27).
    pub fn backend_path(&self) -> Cow<'a, str> {
        if self.rest.is_empty() {
            Cow::Borrowed("/")
        } else {
            without_dot_segments(self.rest)
        }
    }
}

/// The parts of an id. The port is text still: a number, or the name of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id<'a> {
    /// None where the id names none, so that the default may be looked up.
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

    /// What keeps the name from being an object's (C10), in the storage layer's words.
    pub fn name_fault(&self) -> Option<String> {
        let fault = match self.name {
            "." => "may not be '.'".to_owned(),
            ".." => "may not be '..'".to_owned(),
            name => {
                let faults: Vec<_> = ['/', '%']
                    .into_iter()
                    .filter(|c| name.contains(*c))
                    .map(|c| format!("may not contain '{c}'"))
                    .collect();
                if faults.is_empty() {
                    return None;
                }
                faults.join(";")
            }
        };
        Some(format!(
            "Name parameter invalid: {}: {fault}",
            GoQuoted(self.name)
        ))
    }
}

/// An id that names nothing, quoted whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {} request {}", resource.singular(), GoQuoted(id))]
pub struct InvalidId {
    resource: Resource,
    id: String,
}

/// Walks the raw path segment by segment, remembering how far it has come.
struct Segments<'a> {
    path: &'a str,
    at: usize,
}

impl<'a> Segments<'a> {
    fn raw(&mut self) -> Result<&'a str, TargetError> {
        let rest = self.path[self.at..]
            .strip_prefix('/')
            .ok_or(TargetError::NoRoute)?;
        let segment = rest.split('/').next().unwrap_or_default();
        self.at += 1 + segment.len();
        Ok(segment)
    }

    fn decoded(&mut self) -> Result<Cow<'a, str>, TargetError> {
        let raw = self.raw()?;
        if !raw.contains('%') {
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
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<(Resource, String, String, &str), TargetError> {
        Target::parse(path).map(|t| {
            (
                t.resource,
                t.namespace.into_owned(),
                t.id.into_owned(),
                t.rest,
            )
        })
    }

    #[test]
    fn the_three_routes() {
        use Resource::{Nodes, Pods, Services};
        let cases = [
            ("/api/v1/nodes/n/proxy", Nodes, "", "n", ""),
            ("/api/v1/nodes/n:9100/proxy/", Nodes, "", "n:9100", "/"),
            (
                "/api/v1/namespaces/ns/pods/p/proxy/a/b",
                Pods,
                "ns",
                "p",
                "/a/b",
            ),
            (
                "/api/v1/namespaces/ns/services/https:s:443/proxy//x",
                Services,
                "ns",
                "https:s:443",
                "//x",
            ),
            (
                "/api/v1/namespaces/ns/services/http%3As%3A80/proxy/%2F",
                Services,
                "ns",
                "http:s:80",
                "/%2F",
            ),
            ("/api/v1/namespaces/ns/pods//proxy", Pods, "ns", "", ""),
            ("/api/v1/namespaces//pods/p/proxy", Pods, "", "p", ""),
            ("/api/v1/n%6Fdes/n/pr%6fxy/x", Nodes, "", "n", "/x"),
            (
                "/api/v1/nodes/proxy/proxy/proxy",
                Nodes,
                "",
                "proxy",
                "/proxy",
            ),
        ];
        for (path, resource, namespace, id, rest) in cases {
            assert_eq!(
                parse(path),
                Ok((resource, namespace.into(), id.into(), rest)),
                "{path}"
            );
        }
    }

    #[test]
    fn anything_else_is_no_route() {
        for path in [
            "/",
            "*",
            "",
            "/api/v1",
            "/api/v1/nodes/n",
            "/api/v1/nodes/n/proxyx/",
            "/api/v1/proxy/nodes/n/x",
            "/api/v1/namespaces/ns/pods/p/log",
            "/api/v1/namespaces/ns/secrets/s/proxy/",
            "/apis/apps/v1/namespaces/ns/pods/p/proxy",
            "//api/v1/nodes/n/proxy",
            "/API/v1/nodes/n/proxy",
        ] {
            assert_eq!(parse(path), Err(TargetError::NoRoute), "{path}");
        }
    }

    #[test]
    fn an_encoded_slash_left_of_proxy_is_refused() {
        for path in [
            "/api/v1/nodes/a%2fb/proxy/",
            "/api/v1/namespaces/a%2Fpods/pods/b/proxy",
        ] {
            assert_eq!(parse(path), Err(TargetError::EncodedSlash), "{path}");
        }
        assert_eq!(parse("/api/v1/nodes/%ff/proxy"), Err(TargetError::NotUtf8));
    }

    #[test]
    fn names_longer_than_any_objects_are_refused_before_anything_is_asked() {
        let path = |namespace: usize, id: usize| {
            format!(
                "/api/v1/namespaces/{}/pods/{}/proxy/",
                "n".repeat(namespace),
                "p".repeat(id)
            )
        };
        assert!(Target::parse(&path(63, 512)).is_ok());
        assert_eq!(
            Target::parse(&path(64, 1)),
            Err(TargetError::TooLong("namespace"))
        );
        assert_eq!(
            Target::parse(&path(1, 513)),
            Err(TargetError::TooLong("name"))
        );
    }

    #[test]
    fn ids_split_into_scheme_name_and_port() {
        use Scheme::{Http, Https};
        let cases = [
            ("web", Some((None, "web", ""))),
            ("web:80", Some((None, "web", "80"))),
            ("web:", Some((None, "web", ""))),
            ("https:x", Some((None, "https", "x"))),
            (":web:80", Some((None, "web", "80"))),
            ("http:web:", Some((Some(Http), "web", ""))),
            ("https:web:tls", Some((Some(Https), "web", "tls"))),
            (":80", None),
            ("a:b:c", None),
            ("HTTP:x:", None),
            ("http::80", None),
            ("::", None),
            ("http:a:80:b", None),
        ];
        for (id, expected) in cases {
            let parsed = Id::parse(id).map(|id| (id.scheme, id.name, id.port));
            assert_eq!(parsed, expected, "{id}");
        }
    }

    #[test]
    fn an_invalid_id_is_quoted_whole() {
        let target = Target::parse("/api/v1/namespaces/ns/services/a:b:c/proxy/").unwrap();
        assert_eq!(
            target.id().unwrap_err().to_string(),
            r#"invalid service request "a:b:c""#
        );
    }

    #[test]
    fn names_that_no_object_can_have() {
        let cases = [
            (
                "..",
                Some(r#"Name parameter invalid: "..": may not be '..'"#),
            ),
            (
                "http:.:80",
                Some(r#"Name parameter invalid: ".": may not be '.'"#),
            ),
            (
                "a%",
                Some(r#"Name parameter invalid: "a%": may not contain '%'"#),
            ),
            ("...", None),
        ];
        for (id, fault) in cases {
            assert_eq!(
                Id::parse(id).unwrap().name_fault().as_deref(),
                fault,
                "{id}"
            );
        }
    }

    #[test]
    fn the_backend_sees_the_bytes_that_came_but_no_dot_segments() {
        let cases = [
            ("", "/"),
            ("/", "/"),
            ("//", "//"),
            ("//x", "//x"),
            ("/a/", "/a/"),
            ("/a%2Fb", "/a%2Fb"),
            ("/(a)!*'[b]", "/(a)!*'[b]"),
            ("/%2", "/%2"),
            ("/.hidden/..x/...", "/.hidden/..x/..."),
            ("/.", "/"),
            ("/..", "/"),
            ("/../../x", "/x"),
            ("/%2e%2E/x", "/x"),
            ("/.%2e/x", "/x"),
            ("/a/./b", "/a/b"),
            ("/a/b/..", "/a"),
            ("/a/b/.", "/a/b"),
            ("/a/..", "/"),
            ("/a/b/../", "/a/"),
            ("/a//../b", "/a/b"),
            ("/a/%2e%2e%2fb", "/a/%2e%2e%2fb"),
        ];
        for (rest, expected) in cases {
            let path = format!("/api/v1/nodes/n/proxy{rest}");
            assert_eq!(
                Target::parse(&path).unwrap().backend_path(),
                expected,
                "{rest}"
            );
        }
    }

    #[test]
    fn the_redirect_keeps_the_query() {
        let target = Target::parse("/api/v1/namespaces/ns/pods/http%3Ap%3A80/proxy").unwrap();
        let prefix = "/api/v1/namespaces/ns/pods/http:p:80/proxy/";
        assert_eq!(target.with_trailing_slash(None), prefix);
        assert_eq!(
            target.with_trailing_slash(Some("a=%20b")),
            format!("{prefix}?a=%20b")
        );
    }
}
