//! Links that name the target are made to name it through the bastion (CONFORMANCE C74, C79).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use crate::model::path::without_dot_segments;
use crate::model::{Scheme, ServiceAddress};

/// Who an answer comes from, as its links may spell it, and where that is reached through the
/// bastion.
#[derive(Clone, Debug)]
pub struct LinkRewriter {
    /// The path of the target on the bastion, up to and including `/proxy`.
    pub prefix: String,
    /// `Host` as the client sent it.
    pub client_host: Option<String>,
    /// Where the answer came from.
    pub endpoint: SocketAddr,
    /// How it was spoken to: what a link without a scheme of its own means.
    pub scheme: Scheme,
    /// The service that was asked for.
    pub service: Option<ServiceAddress>,
    /// The cluster's DNS domain, as `cluster.local`.
    pub cluster_domain: Arc<str>,
}

/// A link that is no URL (RFC 3986, as Go's `net/url` reads it).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no URL")]
pub struct InvalidUrl(pub String);

/// A URL in its raw parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts<'a> {
    scheme: Option<&'a str>,
    /// With user and port. Empty is none.
    authority: &'a str,
    /// Where there is no `//`, a URL with a scheme has none: it is opaque (`mailto:`).
    path: &'a str,
    /// Query and fragment with their marks.
    rest: &'a str,
}

/// Whose a link is.
enum Host {
    /// Named nowhere in the link: that of the page.
    Unnamed,
    /// The target's, by an address or a name that only the cluster knows.
    Target,
    /// The bastion's, as the client spells it.
    Client,
    Other,
}

impl LinkRewriter {
    /// The link as the client must follow it; none where it is good as it is.
    ///
    /// # Errors
    /// [`InvalidUrl`] where it cannot be read.
    pub fn rewrite(&self, link: &str) -> Result<Option<String>, InvalidUrl> {
        let parts = Parts::parse(link).ok_or_else(|| InvalidUrl(link.into()))?;
        let host = self.host(parts);
        let path = match (&host, parts.path) {
            (Host::Other, _) => return Ok(None),
            // `http://10.0.0.1` names the root of the target.
            (Host::Target, "") => "/",
            (_, path) if path.starts_with('/') => path,
            _ => return Ok(None),
        };
        let origin = match (&host, parts.scheme) {
            (Host::Client, Some(scheme)) => format!("{scheme}://{}", parts.authority),
            (Host::Client, None) => format!("//{}", parts.authority),
            _ => String::new(),
        };
        // What climbs above the root would climb out of the prefix.
        let path = without_dot_segments(path);
        let prefix = if self.is_prefixed(&path) {
            ""
        } else {
            &self.prefix
        };
        Ok(Some([&origin, prefix, &path, parts.rest].concat())
            .filter(|rewritten| rewritten != link))
    }

    fn host(&self, parts: Parts<'_>) -> Host {
        let authority = parts.authority;
        if authority.is_empty() {
            return Host::Unnamed;
        }
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        if self
            .client_host
            .as_ref()
            .is_some_and(|client| client.eq_ignore_ascii_case(host))
        {
            return Host::Client;
        }
        let scheme = parts.scheme.map_or(Some(self.scheme), |scheme| {
            let known = [Scheme::Http, Scheme::Https].into_iter();
            known
                .into_iter()
                .find(|known| known.as_str().eq_ignore_ascii_case(scheme))
        });
        let Some((name, port)) = split_port(host) else {
            return Host::Other;
        };
        let Some(port) = port.or(scheme.map(Scheme::default_port)) else {
            return Host::Other;
        };
        let address = name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>();
        let ours = match address {
            Ok(address) => SocketAddr::new(address, port) == self.endpoint,
            Err(_) => self
                .service
                .as_ref()
                .is_some_and(|service| service.port == port && self.names(service, name)),
        };
        if ours { Host::Target } else { Host::Other }
    }

    /// `svc`, `svc.ns`, `svc.ns.svc` and the same with the cluster's domain.
    fn names(&self, service: &ServiceAddress, host: &str) -> bool {
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

    /// The target knows the prefix by `X-Forwarded-Uri` and set it itself.
    fn is_prefixed(&self, path: &str) -> bool {
        let decoded: Cow<'_, [u8]> = percent_decode_str(path).into();
        decoded.starts_with(self.prefix.as_bytes())
    }
}

impl<'a> Parts<'a> {
    fn parse(link: &'a str) -> Option<Self> {
        if link.bytes().any(|byte| byte.is_ascii_control()) {
            return None;
        }
        let (url, fragment) = link.split_at(link.find('#').unwrap_or(link.len()));
        let (scheme, url) = split_scheme(url)?;
        let (hierarchy, query) = url.split_at(url.find('?').unwrap_or(url.len()));
        let rest = &link[link.len() - query.len() - fragment.len()..];
        if !escapes_are_good(fragment) {
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
            // `a:b/c` could be a scheme, and is a relative path only as `./a:b/c`.
            let first = hierarchy.split('/').next().unwrap_or_default();
            return (!first.contains(':') && escapes_are_good(hierarchy)).then_some(Self {
                scheme,
                authority: "",
                path: hierarchy,
                rest,
            });
        }
        // `///x` has no authority but a path that begins with an empty segment; with a scheme it is
        // an empty authority.
        let has_authority =
            hierarchy.starts_with("//") && (scheme.is_some() || !hierarchy.starts_with("///"));
        let (authority, path) = if has_authority {
            let after = &hierarchy[2..];
            after.split_at(after.find('/').unwrap_or(after.len()))
        } else {
            ("", hierarchy)
        };
        let good = authority_is_good(authority) && escapes_are_good(path);
        good.then_some(Self {
            scheme,
            authority,
            path,
            rest,
        })
    }
}

/// The scheme of RFC 3986 section 3.1, where there is one. None for a colon without a scheme before
/// it.
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

fn authority_is_good(authority: &str) -> bool {
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let forbidden = |c: char| {
        matches!(
            c,
            ' ' | '<' | '>' | '"' | '\\' | '^' | '`' | '{' | '|' | '}'
        )
    };
    !authority.contains(forbidden) && escapes_are_good(authority) && split_port(host).is_some()
}

/// Host and port. None where the port is no number or a bracket has no other; an empty port counts
/// as none.
fn split_port(host: &str) -> Option<(&str, Option<u16>)> {
    let after_brackets = match (host.starts_with('['), host.rfind(']')) {
        (true, Some(end)) => end + 1,
        (false, None) if !host.contains('[') => 0,
        _ => return None,
    };
    match host[after_brackets..].find(':') {
        None => Some((host, None)),
        Some(colon) => {
            let (name, port) = host.split_at(after_brackets + colon);
            match &port[1..] {
                "" => Some((name, None)),
                port if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                    Some((name, port.parse().ok()))
                }
                _ => None,
            }
        }
    }
}

fn escapes_are_good(text: &str) -> bool {
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
    fn links_to_the_target_go_through_the_bastion() {
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
        ] {
            assert_eq!(
                links().rewrite(link),
                Ok(Some(format!("{PREFIX}{rewritten}"))),
                "{link}"
            );
        }
        let same_origin = "https://bastion.example:8443/x";
        let rewritten = format!("https://bastion.example:8443{PREFIX}/x");
        assert_eq!(links().rewrite(same_origin), Ok(Some(rewritten)));
        let prefixed = format!("http://10.0.0.1:8080{PREFIX}/x");
        assert_eq!(
            links().rewrite(&prefixed),
            Ok(Some(format!("{PREFIX}/x"))),
            "the prefix is not doubled"
        );
    }

    #[test]
    fn other_links_stay_as_they_are() {
        for link in [
            "",
            "x",
            "./x",
            "../x",
            "?q",
            "#f",
            "mailto:a@b",
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
            "https://bastion.example:8443",
            &format!("{PREFIX}/x"),
        ] {
            assert_eq!(links().rewrite(link), Ok(None), "{link}");
        }
    }

    #[test]
    fn what_is_no_url_is_told() {
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
            let no_url = links().rewrite(link).is_err();
            // With a scheme and no slash a URL is opaque, and nothing of it is looked at.
            assert_eq!(no_url, link != "a:b%zz/%zz", "{link:?}");
        }
    }

    #[test]
    fn ipv6_and_default_ports_are_understood() {
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
