//! The proxy variables of the environment, with the rules of Go's `httpproxy`.

use std::net::IpAddr;

use crate::model::Network;
use crate::model::network::NetworkError;

/// `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, in upper or else lower case.
#[derive(Clone, Debug, Default)]
pub struct ProxyEnvironment {
    /// Proxy for `https://` servers.
    pub https: Option<String>,
    /// Proxy for `http://` servers.
    pub http: Option<String>,
    /// Hosts that are reached directly.
    pub no_proxy: Option<String>,
}

impl ProxyEnvironment {
    pub fn of_process() -> Self {
        let variable = |upper: &str| {
            let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            value(upper).or_else(|| value(&upper.to_lowercase()))
        };
        Self {
            https: variable("HTTPS_PROXY"),
            http: variable("HTTP_PROXY"),
            no_proxy: variable("NO_PROXY"),
        }
    }
}

/// Hosts that are reached directly.
#[derive(Clone, Debug, Default)]
pub(super) struct NoProxy {
    /// `*`
    all: bool,
    networks: Vec<Network>,
    /// Addresses with the port, if the entry has one.
    addresses: Vec<(IpAddr, Option<u16>)>,
    domains: Vec<Domain>,
}

#[derive(Clone, Debug)]
struct Domain {
    /// With a dot in front.
    suffix: String,
    port: Option<u16>,
    /// The domain itself matches as well as its subdomains.
    itself: bool,
}

impl NoProxy {
    /// Parses a list. Malformed entries match nothing.
    pub fn parse(list: &str) -> Self {
        let mut rules = Self::default();
        for entry in list.split(',') {
            rules.add(&entry.trim().to_lowercase());
        }
        rules
    }

    fn add(&mut self, entry: &str) {
        if entry == "*" {
            self.all = true;
        } else if entry.contains('/') {
            self.networks.extend(match entry.parse() {
                // As in Go, bits behind the prefix do not count.
                Ok(network) | Err(NetworkError::HostBits(network, _)) => Some(network),
                Err(NetworkError::Syntax) => None,
            });
        } else if let Some((host, port)) = split_port(entry) {
            let host = host.trim_matches(['[', ']']);
            if let Ok(address) = host.parse::<IpAddr>() {
                self.addresses.push((address, port));
                return;
            }
            let host = host
                .strip_prefix('*')
                .filter(|rest| rest.starts_with('.'))
                .unwrap_or(host);
            let itself = !host.starts_with('.');
            if host.is_empty() {
                return;
            }
            self.domains.push(Domain {
                suffix: if itself {
                    format!(".{host}")
                } else {
                    host.to_owned()
                },
                port,
                itself,
            });
        }
    }

    /// Returns true if a host, without brackets, is reached directly.
    pub fn matches(&self, host: &str, port: u16) -> bool {
        let host = host.to_lowercase();
        if host == "localhost" {
            return true;
        }
        let has_port = |rule: Option<u16>| rule.is_none_or(|rule| rule == port);
        if let Ok(address) = host.parse::<IpAddr>() {
            let address = address.to_canonical();
            return address.is_loopback()
                || self.all
                || self
                    .networks
                    .iter()
                    .any(|network| network.contains(address))
                || self
                    .addresses
                    .iter()
                    .any(|(rule, port)| rule.to_canonical() == address && has_port(*port));
        }
        self.all
            || self.domains.iter().any(|domain| {
                let suffix = &domain.suffix;
                (host.ends_with(suffix) || domain.itself && host == suffix[1..])
                    && has_port(domain.port)
            })
    }
}

/// Splits an entry into host and port. `None` if it has no host or a malformed port.
fn split_port(entry: &str) -> Option<(&str, Option<u16>)> {
    let split = match entry.rsplit_once(':') {
        // An IPv6 address without brackets has no port.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, Some(port.parse().ok()?))
        }
        _ => (entry, None),
    };
    Some(split).filter(|(host, _)| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_hosts_as_go_does() {
        for (list, host, port, expected) in [
            ("", "api.example", 443, false),
            ("*", "api.example", 443, true),
            ("x, *", "192.0.2.1", 443, true),
            ("api.example", "api.example", 443, true),
            ("api.example", "API.Example", 443, true),
            ("api.example", "b.api.example", 443, true),
            ("api.example", "xapi.example", 443, false),
            (".example", "api.example", 443, true),
            (".example", "example", 443, false),
            ("*.example", "api.example", 443, true),
            ("*.example", "example", 443, false),
            (" a.example , b.example ", "b.example", 443, true),
            ("api.example:6443", "api.example", 6443, true),
            ("api.example:6443", "api.example", 443, false),
            ("192.0.2.1", "192.0.2.1", 6443, true),
            ("192.0.2.1:6443", "192.0.2.1", 6443, true),
            ("192.0.2.1:6443", "192.0.2.1", 443, false),
            ("192.0.2.0/24", "192.0.2.77", 6443, true),
            ("192.0.2.9/24", "192.0.2.77", 6443, true),
            ("192.0.2.0/24", "192.0.3.1", 6443, false),
            ("192.0.2.0/24", "host.example", 6443, false),
            ("2001:db8::1", "2001:db8::1", 6443, true),
            ("[2001:db8::1]:6443", "2001:db8::1", 6443, true),
            ("[2001:db8::1]:6443", "2001:db8::1", 443, false),
            ("2001:db8::/32", "2001:db8:1::1", 443, true),
            ("2.1", "192.0.2.1", 443, false),
            (":443", "api.example", 443, false),
            ("/24", "api.example", 443, false),
            ("", "localhost", 443, true),
            ("", "127.0.0.1", 443, true),
            ("", "127.8.9.1", 443, true),
            ("", "::1", 443, true),
        ] {
            assert_eq!(
                NoProxy::parse(list).matches(host, port),
                expected,
                "{list:?} {host} {port}"
            );
        }
    }
}
