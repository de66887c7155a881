//! Hosts of the opened targets.
//!
//! Cookies ignore ports (RFC 6265 section 8.5), so that applications on one host with several ports
//! would share them. Each target has a host of its own below `localhost` instead, which browsers
//! resolve to the loopback addresses (RFC 6761 section 6.3).

use http::header;

use crate::http::RequestHead;

/// Maximum length of a DNS label.
const MAX_LABEL_BYTES: usize = 63;
/// Names of this host, which lead to the target if there is only one.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Hosts of the targets, in their order.
#[derive(Clone, Debug)]
pub struct Hosts(Vec<String>);

/// Parts of the host of a target.
#[derive(Clone, Debug)]
pub struct HostParts<'a> {
    pub name: &'a str,
    /// `None` for a node.
    pub namespace: Option<&'a str>,
    pub kind: &'static str,
    pub port: u16,
}

impl Hosts {
    /// Returns distinct hosts: `NAME--NAMESPACE.localhost`, with the kind or the port as well if
    /// that is needed to tell two targets apart.
    pub fn new(targets: &[HostParts<'_>]) -> Self {
        let plain = |parts: &HostParts<'_>| {
            let scope = parts.namespace.unwrap_or("node");
            format!("{}--{scope}", parts.name)
        };
        let with_kind = |parts: &HostParts<'_>| format!("{}--{}", plain(parts), parts.kind);
        let with_port = |parts: &HostParts<'_>| format!("{}--{}", with_kind(parts), parts.port);
        let label = |parts: &HostParts<'_>| {
            let is_unique = |form: &dyn Fn(&HostParts<'_>) -> String| {
                let own = form(parts);
                targets.iter().filter(|other| form(other) == own).count() == 1
            };
            let text = if is_unique(&plain) {
                plain(parts)
            } else if is_unique(&with_kind) {
                with_kind(parts)
            } else {
                with_port(parts)
            };
            format!("{}.localhost", shorten(&text))
        };
        Self(targets.iter().map(label).collect())
    }

    pub fn host(&self, index: usize) -> &str {
        &self.0[index]
    }

    /// Returns the index of the target that a request is for. `None` for other hosts, such as the
    /// name of a site that resolves to this host (DNS rebinding). The port is not compared, because
    /// the listener may be reached through a forwarded one.
    pub fn find(&self, head: &RequestHead) -> Option<usize> {
        let authority = head.target.authority().or_else(|| {
            let host = head.headers.get(header::HOST)?;
            host.to_str().ok()
        })?;
        let end = match authority.rfind(':') {
            // The colons of an IPv6 address are in brackets.
            Some(colon) if !authority[colon..].contains(']') => colon,
            _ => authority.len(),
        };
        let host = authority[..end].to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let found = self.0.iter().position(|own| own == host);
        let is_only = self.0.len() == 1 && LOOPBACK.contains(&host);
        found.or_else(|| is_only.then_some(0))
    }

    /// Returns the URLs of the targets, for people.
    pub fn list(&self, port: u16) -> String {
        let urls: Vec<_> = self.0.iter().map(|host| url(host, port)).collect();
        urls.join(", ")
    }
}

/// Returns the URL of a host.
pub fn url(host: &str, port: u16) -> String {
    match port {
        80 => format!("http://{host}/"),
        port => format!("http://{host}:{port}/"),
    }
}

/// Shortens labels that are too long for DNS, and keeps them distinct.
fn shorten(text: &str) -> String {
    let labels: Vec<String> = text
        .split('.')
        .map(|label| {
            if label.len() <= MAX_LABEL_BYTES {
                return label.to_owned();
            }
            // FNV-1a. Names of objects are ASCII.
            let hash = label.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
            let end = label.floor_char_boundary(MAX_LABEL_BYTES - 9);
            format!("{}-{hash:08x}", &label[..end])
        })
        .collect();
    labels.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::head;

    fn parts<'a>(name: &'a str, kind: &'static str, port: u16) -> HostParts<'a> {
        HostParts {
            name,
            namespace: (kind != "node").then_some("shop"),
            kind,
            port,
        }
    }

    #[test]
    fn targets_have_distinct_hosts() {
        let hosts = Hosts::new(&[
            parts("web", "service", 80),
            parts("api", "service", 80),
            parts("web", "pod", 80),
            parts("api", "service", 81),
            parts("n1", "node", 10250),
            parts("a.b", "pod", 1),
        ]);
        assert_eq!(
            hosts.0,
            [
                "web--shop--service.localhost",
                "api--shop--service--80.localhost",
                "web--shop--pod.localhost",
                "api--shop--service--81.localhost",
                "n1--node.localhost",
                "a.b--shop.localhost",
            ]
        );
        assert_eq!(
            Hosts::new(&[parts("web", "service", 80)]).0,
            ["web--shop.localhost"]
        );
    }

    #[test]
    fn long_labels_are_shortened_and_distinct() {
        let (a, b) = ("x".repeat(62), "x".repeat(63));
        let hosts = Hosts::new(&[parts(&a, "service", 80), parts(&b, "service", 80)]);
        assert_ne!(hosts.0[0], hosts.0[1]);
        for host in &hosts.0 {
            let label = host.strip_suffix(".localhost").unwrap();
            assert_eq!(label.len(), MAX_LABEL_BYTES, "{host}");
        }
    }

    fn find(hosts: &Hosts, host: &str) -> Option<usize> {
        hosts.find(&head(http::Request::get("/").header("host", host)))
    }

    #[test]
    fn finds_targets_by_host_and_rejects_other_hosts() {
        let one = Hosts::new(&[parts("web", "service", 80)]);
        let two = Hosts::new(&[parts("web", "service", 80), parts("api", "service", 80)]);
        for (host, of_one, of_two) in [
            ("web--shop.localhost:8001", Some(0), Some(0)),
            ("WEB--shop.localhost.:1", Some(0), Some(0)),
            ("web--shop.localhost", Some(0), Some(0)),
            ("api--shop.localhost:8001", None, Some(1)),
            ("127.0.0.1:8001", Some(0), None),
            ("localhost", Some(0), None),
            ("[::1]:8001", Some(0), None),
            ("[::1]", Some(0), None),
            ("evil.example:8001", None, None),
            ("evil.web--shop.localhost:8001", None, None),
            ("web--shop.localhost.evil.example", None, None),
            ("127.0.0.2:8001", None, None),
            ("", None, None),
        ] {
            assert_eq!(
                (find(&one, host), find(&two, host)),
                (of_one, of_two),
                "{host}"
            );
        }
        assert_eq!(one.find(&head(http::Request::get("/"))), None);
    }

    #[test]
    fn urls_have_no_default_port() {
        assert_eq!(url("a.localhost", 80), "http://a.localhost/");
        assert_eq!(url("a.localhost", 8001), "http://a.localhost:8001/");
    }
}
