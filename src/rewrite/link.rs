//! Rewrites links to the target so that they resolve through the bastion (CONFORMANCE C74, C79).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use percent_encoding::{AsciiSet, percent_decode_str, percent_encode};

use crate::model::path::without_dot_segments;
use crate::model::{Scheme, ServiceAddress, Target};

/// Escapes only bytes beyond ASCII.
const BEYOND_ASCII: &AsciiSet = &AsciiSet::EMPTY;

/// Rewriter of the links of one response: the names by which its links may refer to the target, and
/// the path of the target on the bastion.
#[derive(Clone, Debug)]
pub struct LinkRewriter {
    /// Path of the target on the bastion, up to and including `/proxy`, as the client spells it.
    pub prefix: String,
    /// `Host` as the client sent it.
    pub client_host: Option<String>,
    /// Address that sent the response.
    pub endpoint: SocketAddr,
    /// Scheme of the connection to the endpoint, the default of links without a scheme.
    pub scheme: Scheme,
    /// Requested service, if the target is a service.
    pub service: Option<ServiceAddress>,
    /// DNS domain of the cluster, such as `cluster.local`.
    pub cluster_domain: Arc<str>,
}

/// A link that is not a URL (RFC 3986, as parsed by `net/url` of Go).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a URL")]
pub struct InvalidUrl(pub String);

/// Components of a URL, still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts<'a> {
    scheme: Option<&'a str>,
    /// User, host and port; empty if missing.
    authority: &'a str,
    /// Empty for opaque URLs: those with a scheme and without a slash (`mailto:`).
    path: &'a str,
    /// Query and fragment, including `?` and `#`.
    rest: &'a str,
}

/// Owner of the host in a link.
enum Host {
    /// The link has no host: that of the page.
    Unnamed,
    /// The target, by an address or a name within the cluster, or the bastion, by the name that the
    /// client uses.
    Own,
    Other,
}

impl LinkRewriter {
    /// Returns the link as the client must follow it, or `None` if it needs no change.
    ///
    /// # Errors
    /// [`InvalidUrl`] if the link is not a URL.
    pub fn rewrite(&self, link: &str) -> Result<Option<String>, InvalidUrl> {
        let parts = Parts::parse(link).ok_or_else(|| InvalidUrl(link.into()))?;
        let path = match (self.host(parts), parts.path) {
            (Host::Other, _) => return Ok(None),
            // `http://10.0.0.1` is the root of the target.
            (Host::Own, "") => "/",
            (_, path) if path.starts_with('/') => path,
            _ => return Ok(None),
        };
        // A path alone: the client cannot reach the target, and a proxy between it and the bastion
        // has another host.
        Ok(Some(self.prefixed(path) + parts.rest).filter(|rewritten| rewritten != link))
    }

    /// Returns a path of the target as a path on the bastion.
    pub fn prefixed(&self, path: &str) -> String {
        // Behind the prefix, `/../x` would leave it, where it stays at the root on the target.
        let path = without_dot_segments(path);
        if self.is_prefixed(&path) {
            path.into_owned()
        } else {
            [&self.prefix, &*path].concat()
        }
    }

    /// Returns true for a path below the prefix, and for a relative one that does not leave its
    /// directory.
    pub fn is_below_prefix(&self, link: &str) -> bool {
        let Some(parts) = Parts::parse(link) else {
            return false;
        };
        let leaves = || parts.path.split('/').any(|segment| segment == "..");
        match self.host(parts) {
            Host::Other => false,
            _ if parts.scheme.is_some() => false,
            _ if parts.path.starts_with('/') => self.is_prefixed(&without_dot_segments(parts.path)),
            _ => !leaves(),
        }
    }

    fn host(&self, parts: Parts<'_>) -> Host {
        let authority = parts.authority;
        if authority.is_empty() {
            return Host::Unnamed;
        }
        // User information does not identify a host, and is dropped with the origin.
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        let Some((name, port)) = split_port(host) else {
            return Host::Other;
        };
        // With any port and scheme of the web: many targets do not know those of the bastion.
        let is_web = |scheme: &str| {
            let schemes = ["http", "https", "ws", "wss"];
            schemes.iter().any(|web| web.eq_ignore_ascii_case(scheme))
        };
        let client_name = self.client_host.as_deref().and_then(split_port);
        if parts.scheme.is_none_or(is_web)
            && client_name.is_some_and(|(client, _)| client.eq_ignore_ascii_case(name))
        {
            return Host::Own;
        }
        // Links with other schemes match only with an explicit port.
        let scheme = parts.scheme.map_or(Some(self.scheme), |scheme| {
            let known = [Scheme::Http, Scheme::Https].into_iter();
            known
                .into_iter()
                .find(|known| known.as_str().eq_ignore_ascii_case(scheme))
        });
        let port = match port {
            "" => scheme.map(Scheme::default_port),
            port => port.parse().ok(),
        };
        let Some(port) = port else {
            return Host::Other;
        };
        let address = name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>();
        let is_target = match address {
            Ok(address) => SocketAddr::new(address, port) == self.endpoint,
            Err(_) => self
                .service
                .as_ref()
                .is_some_and(|service| service.port == port && self.is_name_of(service, name)),
        };
        if is_target { Host::Own } else { Host::Other }
    }

    /// Returns true for the DNS names of the service: `svc`, `svc.ns`, `svc.ns.svc` and the last
    /// with the domain of the cluster.
    fn is_name_of(&self, service: &ServiceAddress, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let Some(rest) = host.strip_prefix(&*service.name) else {
            return false;
        };
        let Some(rest) = rest.strip_prefix('.') else {
            return rest.is_empty();
        };
        let Some(rest) = rest.strip_prefix(&*service.namespace) else {
            return false;
        };
        let Some(rest) = rest.strip_prefix('.') else {
            return rest.is_empty();
        };
        let Some(rest) = rest.strip_prefix("svc") else {
            return false;
        };
        let Some(rest) = rest.strip_prefix('.') else {
            return rest.is_empty();
        };
        rest.eq_ignore_ascii_case(&self.cluster_domain)
    }

    /// Returns true if the path has the prefix already, also with the id in another spelling. The
    /// target knows it from `X-Forwarded-Uri` or from its own configuration.
    fn is_prefixed(&self, path: &str) -> bool {
        // Decoded, because targets encode the prefix differently.
        let decoded: Cow<'_, [u8]> = percent_decode_str(path).into();
        decoded
            .strip_prefix(self.prefix.as_bytes())
            .is_some_and(|rest| rest.is_empty() || b"/?#".contains(&rest[0]))
            || self.names_same_object(path)
    }

    /// Returns true if the path names the object of the prefix: a service or pod, with any scheme and
    /// port in its id.
    fn names_same_object(&self, path: &str) -> bool {
        // Parsed first, because most paths are not of the API.
        let Ok(other) = Target::parse(path) else {
            return false;
        };
        let Ok(own) = Target::parse(&self.prefix) else {
            return false;
        };
        own.resource == other.resource
            && own.namespace == other.namespace
            && matches!((own.id(), other.id()), (Ok(own), Ok(other)) if own.name == other.name)
    }
}

impl<'a> Parts<'a> {
    fn parse(link: &'a str) -> Option<Self> {
        // As `net/url` of Go. A line break would also split the header.
        if link.bytes().any(|byte| byte.is_ascii_control()) {
            return None;
        }
        // In this order: a fragment may contain `?` and `:`, and a query may contain `/`.
        let (url, fragment) = link.split_at(link.find('#').unwrap_or(link.len()));
        let (scheme, url) = split_scheme(url)?;
        let (hierarchy, query) = url.split_at(url.find('?').unwrap_or(url.len()));
        let rest = &link[link.len() - query.len() - fragment.len()..];
        if !has_valid_escapes(fragment) {
            return None;
        }
        if !hierarchy.starts_with('/') {
            if scheme.is_some() {
                return Some(Self {
                    scheme,
                    authority: "",
                    path: "",
                    rest,
                });
            }
            // RFC 3986 section 4.2: the first segment of a relative path must not contain a colon.
            let first = hierarchy.split('/').next().unwrap_or_default();
            return (!first.contains(':') && has_valid_escapes(hierarchy)).then_some(Self {
                scheme,
                authority: "",
                path: hierarchy,
                rest,
            });
        }
        // As `net/url` of Go does: `///x` is a path with an empty first segment, while `http:///x`
        // has an empty authority.
        let has_authority =
            hierarchy.starts_with("//") && (scheme.is_some() || !hierarchy.starts_with("///"));
        let (authority, path) = if has_authority {
            let after = &hierarchy[2..];
            after.split_at(after.find('/').unwrap_or(after.len()))
        } else {
            ("", hierarchy)
        };
        let is_valid = is_valid_authority(authority) && has_valid_escapes(path);
        is_valid.then_some(Self {
            scheme,
            authority,
            path,
            rest,
        })
    }
}

/// Returns the text of a header. Bytes beyond ASCII are escaped, so that those of URLs reach the
/// target unchanged.
pub fn text(value: &[u8]) -> Cow<'_, str> {
    percent_encode(value, BEYOND_ASCII).into()
}

/// Splits off the scheme (RFC 3986 section 3.1), if any. Returns `None` if the URL starts with a
/// colon.
fn split_scheme(url: &str) -> Option<(Option<&str>, &str)> {
    let end = url.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')));
    match end {
        Some(0) if url.starts_with(':') => None,
        Some(end)
            if url[end..].starts_with(':')
                && url.starts_with(|c: char| c.is_ascii_alphabetic()) =>
        {
            Some((Some(&url[..end]), &url[end + 1..]))
        }
        _ => Some((None, url)),
    }
}

fn is_valid_authority(authority: &str) -> bool {
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let forbidden = |c: char| {
        matches!(
            c,
            ' ' | '<' | '>' | '"' | '\\' | '^' | '`' | '{' | '|' | '}'
        )
    };
    !authority.contains(forbidden) && has_valid_escapes(authority) && split_port(host).is_some()
}

/// Splits host and port, which is empty if it is missing, and may be too large. Returns `None` if the
/// port is not a number or a bracket is unbalanced.
fn split_port(host: &str) -> Option<(&str, &str)> {
    let after_brackets = match (host.starts_with('['), host.rfind(']')) {
        (true, Some(end)) => end + 1,
        (false, None) if !host.contains('[') => 0,
        _ => return None,
    };
    match host[after_brackets..].find(':') {
        None => Some((host, "")),
        Some(colon) => {
            let (name, port) = host.split_at(after_brackets + colon);
            let port = &port[1..];
            port.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then_some((name, port))
        }
    }
}

fn has_valid_escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        let mut digits = after.bytes().take(2);
        digits.len() == 2 && digits.all(|digit| digit.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "/api/v1/namespaces/ns/services/web/proxy";

    fn links() -> LinkRewriter {
        LinkRewriter {
            prefix: PREFIX.into(),
            client_host: Some("bastion.example:8443".into()),
            endpoint: "10.0.0.1:8080".parse().unwrap(),
            scheme: Scheme::Http,
            service: Some(ServiceAddress {
                namespace: "ns".into(),
                name: "web".into(),
                port: 80,
            }),
            cluster_domain: "cluster.local".into(),
        }
    }

    #[test]
    fn rewrites_links_to_the_target() {
        for (link, rewritten) in [
            ("/", "/"),
            ("/a/b/", "/a/b/"),
            ("/a%2Fb//c?q=/x#/y", "/a%2Fb//c?q=/x#/y"),
            ("/?", "/?"),
            ("///evil.example/x", "///evil.example/x"),
            ("/../../x", "/x"),
            ("http://10.0.0.1:8080/x", "/x"),
            ("HTTP://10.0.0.1:8080", "/"),
            ("//10.0.0.1:8080?q", "/?q"),
            ("http://jane:secret@10.0.0.1:8080/x", "/x"),
            ("http://web/x", "/x"),
            ("http://web:80/x", "/x"),
            ("http://WEB.ns/x", "/x"),
            ("http://web.ns.svc/x", "/x"),
            ("http://web.ns.svc.cluster.local./x", "/x"),
            ("//web.ns", "/"),
            // The bastion by the client's name for it, with any scheme and port.
            ("https://bastion.example:8443/x", "/x"),
            ("http://bastion.example/x?y#z", "/x?y#z"),
            ("wss://BASTION.example:99999/x", "/x"),
            ("//bastion.example", "/"),
        ] {
            assert_eq!(
                links().rewrite(link),
                Ok(Some(format!("{PREFIX}{rewritten}"))),
                "{link}"
            );
        }
        let prefixed = format!("http://10.0.0.1:8080{PREFIX}/x");
        assert_eq!(
            links().rewrite(&prefixed),
            Ok(Some(format!("{PREFIX}/x"))),
            "the prefix is added once"
        );
        let sibling = format!("{PREFIX}x");
        assert_eq!(
            links().rewrite(&sibling),
            Ok(Some(format!("{PREFIX}{sibling}"))),
            "a longer segment is not the prefix"
        );
        for other in [
            "/api/v1/namespaces/ns/services/webs/proxy/",
            "/api/v1/namespaces/other/services/web:80/proxy/",
            "/api/v1/namespaces/ns/pods/web/proxy/",
            "/api/v1/namespaces/ns/services/web/",
        ] {
            let rewritten = format!("{PREFIX}{other}");
            assert_eq!(links().rewrite(other), Ok(Some(rewritten)), "{other}");
        }
    }

    #[test]
    fn keeps_other_links() {
        for link in [
            "",
            "x",
            "./x",
            "../x",
            "?q",
            "#f",
            "mailto:a@b",
            "ftp://bastion.example/x",
            "ssh://bastion.example:8443/x",
            "javascript:go('/x')",
            "data:text/html,/x",
            "http://other.example/x",
            "//other.example/x",
            "http://10.0.0.1/x",
            "http://10.0.0.1:8081/x",
            "https://web/x",
            "http://web:8080/x",
            "http://webs.ns/x",
            "http://web.other/x",
            "http://web.ns.svc.example.com/x",
            "ftp://10.0.0.1/x",
            "http://web:99999/x",
            "https://bastion.example.org/x",
            &format!("{PREFIX}/x"),
            // The same object, with other spellings of its id.
            "/api/v1/namespaces/ns/services/web:80/proxy/",
            "/api/v1/namespaces/ns/services/http:web:http/proxy/x",
            "/api/v1/namespaces/ns/services/web%3A80/proxy",
            "/api/v1/namespaces/ns/services/https:web:/proxy/x?y",
        ] {
            assert_eq!(links().rewrite(link), Ok(None), "{link}");
        }
    }

    #[test]
    fn rejects_invalid_urls() {
        for link in [
            ":x",
            "a:b%zz/%zz",
            "/%zz",
            "/%2",
            "http://a b/",
            "http://a:b/",
            "1:2",
            "/a\nb",
            "http://[::1]x:y/",
            "http://[oops/",
            "http://oops]/",
        ] {
            let is_invalid = links().rewrite(link).is_err();
            // A URL with a scheme and without a slash is opaque, and not validated further.
            assert_eq!(is_invalid, link != "a:b%zz/%zz", "{link:?}");
        }
    }

    #[test]
    fn recognizes_ipv6_addresses_and_default_ports() {
        let links = LinkRewriter {
            endpoint: "[fd00::1]:80".parse().unwrap(),
            ..links()
        };
        for link in [
            "http://[fd00::1]/x",
            "http://[fd00::1]:80/x",
            "http://[fd00:0::1]:/x",
        ] {
            assert_eq!(
                links.rewrite(link),
                Ok(Some(format!("{PREFIX}/x"))),
                "{link}"
            );
        }
    }
}
