//! Headers in which front proxies report the client of a request: `X-Forwarded-For`,
//! `X-Forwarded-Host` and `X-Forwarded-Proto`. `Forwarded` (RFC 7239) is not read: few proxies send
//! it, and two sources could contradict each other.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderValue;
use http::header::{HeaderMap, HeaderName};

use super::authority::is_authority;
use crate::model::Networks;

pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Maximum number of proxies that a request is followed through, more than any chain has.
const MAX_HOPS: usize = 32;

/// Client of a request as trusted front proxies report it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The rightmost address of `X-Forwarded-For` that is not a trusted proxy's.
    pub client: IpAddr,
    /// True if the client used TLS. `None` if it is not reported.
    pub secure: Option<bool>,
    /// Host that the client requested. `None` if no valid one is reported.
    pub host: Option<HeaderValue>,
}

impl Forwarded {
    /// Reads the headers of a request from `proxy`, which is one of the `trusted` ones.
    ///
    /// Each proxy appends the address that it accepted the request from. So addresses count from
    /// the right, and those left of the first one that is not trusted may be forged. If an element
    /// is not an address, the proxy that appended it is the client.
    pub fn read(headers: &HeaderMap, proxy: IpAddr, trusted: &Networks) -> Self {
        let mut client = proxy;
        let mut hops = 0;
        for element in elements(headers, &FORWARDED_FOR).take(MAX_HOPS) {
            let Some(address) = parse_address(element) else {
                break;
            };
            client = address;
            hops += 1;
            if !trusted.contains(address) {
                break;
            }
        }
        // Proxies that append to these headers as well leave one value for each hop; those that
        // replace them leave one value.
        let reported = |name| elements(headers, name).take(hops.max(1)).last();
        Self {
            client,
            secure: reported(&FORWARDED_PROTO).and_then(parse_scheme),
            host: reported(&FORWARDED_HOST)
                .filter(|host| !host.is_empty() && is_authority(host))
                .and_then(|host| HeaderValue::from_bytes(host).ok()),
        }
    }
}

/// Returns the non-empty elements of a list header, last element first.
fn elements<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    let values = headers.get_all(name).into_iter().rev();
    values
        .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Parses an address; some proxies append the port, or put IPv6 addresses in brackets.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']');
    let address = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()
        .or_else(|| Some(bracketed()?.parse::<Ipv6Addr>().ok()?.into()))?;
    Some(address.to_canonical())
}

/// Returns true for a scheme with TLS. Some proxies report `ws` and `wss`.
fn parse_scheme(text: &[u8]) -> Option<bool> {
    let is_one_of = |schemes: [&str; 2]| {
        schemes
            .iter()
            .any(|scheme| text.eq_ignore_ascii_case(scheme.as_bytes()))
    };
    if is_one_of(["https", "wss"]) {
        Some(true)
    } else if is_one_of(["http", "ws"]) {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.9";

    /// Reads header lines of a request from a proxy in `10.0.0.0/8`; `fd00::/8` is trusted as well.
    fn read(lines: &[(&'static str, &str)]) -> Forwarded {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        Forwarded::read(
            &headers,
            PROXY.parse().unwrap(),
            &networks.into_iter().collect(),
        )
    }

    fn client(lines: &[&str]) -> String {
        let lines: Vec<_> = lines
            .iter()
            .map(|value| ("x-forwarded-for", *value))
            .collect();
        read(&lines).client.to_string()
    }

    #[test]
    fn client_is_the_rightmost_address_that_is_not_trusted() {
        for (lines, expected) in [
            (&[][..], PROXY),
            (&["203.0.113.7"], "203.0.113.7"),
            (&["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
            (&["198.51.100.1, 203.0.113.7, 10.1.1.1"], "203.0.113.7"),
            (
                &["198.51.100.1,203.0.113.7,10.1.1.1,fd00::1"],
                "203.0.113.7",
            ),
            (&["198.51.100.1", "203.0.113.7", "10.1.1.1"], "203.0.113.7"),
            (&["203.0.113.7, 10.1.1.1", "198.51.100.1"], "198.51.100.1"),
            (&["10.3.3.3, 203.0.113.7"], "203.0.113.7"),
            (&["2001:db8::7, fd00::1"], "2001:db8::7"),
            (&["::ffff:203.0.113.7"], "203.0.113.7"),
            (&["203.0.113.7, ::ffff:10.1.1.1"], "203.0.113.7"),
            // All are trusted: the first one sent the request.
            (&["10.3.3.3, 10.2.2.2, 10.1.1.1"], "10.3.3.3"),
            // With a port, as some load balancers append it.
            (&["203.0.113.7:4711"], "203.0.113.7"),
            (&["[2001:db8::7]:4711"], "2001:db8::7"),
            (&["[2001:db8::7]"], "2001:db8::7"),
            // Empty elements are not addresses (RFC 9110 section 5.6.1).
            (&["203.0.113.7, , 10.1.1.1,", ""], "203.0.113.7"),
        ] {
            assert_eq!(client(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn element_that_is_not_an_address_ends_the_chain_at_its_proxy() {
        for (line, expected) in [
            ("unknown", PROXY),
            ("203.0.113.7, unknown", PROXY),
            ("203.0.113.7, _hidden, 10.1.1.1", "10.1.1.1"),
            ("203.0.113.7;10.1.1.1", PROXY),
            ("203.0.113.7 10.1.1.1", PROXY),
            ("203.0.113.007", PROXY),
            ("203.0.113.7:port, 10.1.1.1", "10.1.1.1"),
            ("\"203.0.113.7\", 10.1.1.1", "10.1.1.1"),
            ("[203.0.113.7], 10.1.1.1", "10.1.1.1"),
            ("for=203.0.113.7", PROXY),
            ("203.0.113.7/32", PROXY),
            ("client.example", PROXY),
        ] {
            assert_eq!(client(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn follows_a_bounded_number_of_proxies() {
        let chain = ["203.0.113.7", &", 10.1.1.1".repeat(MAX_HOPS)].concat();
        assert_eq!(client(&[&chain]), "10.1.1.1");
        let chain = ["203.0.113.7", &", 10.1.1.1".repeat(MAX_HOPS - 1)].concat();
        assert_eq!(client(&[&chain]), "203.0.113.7");
    }

    #[test]
    fn scheme_and_host_are_those_reported_by_the_proxy_of_the_client() {
        const FOR: &str = "x-forwarded-for";
        type Case<'a> = (&'a [(&'static str, &'a str)], Option<bool>, Option<&'a str>);
        let cases: [Case<'_>; 15] = [
            (&[], None, None),
            (&[("x-forwarded-proto", "https")], Some(true), None),
            (&[("x-forwarded-proto", "HTTP")], Some(false), None),
            (&[("x-forwarded-proto", "wss")], Some(true), None),
            (&[("x-forwarded-proto", "ws")], Some(false), None),
            (&[("x-forwarded-proto", "gopher")], None, None),
            (&[("x-forwarded-proto", "")], None, None),
            (
                &[("x-forwarded-host", "a.example:8443")],
                None,
                Some("a.example:8443"),
            ),
            (
                &[("x-forwarded-host", "[2001:db8::1]")],
                None,
                Some("[2001:db8::1]"),
            ),
            (&[("x-forwarded-host", "a.example/x")], None, None),
            (&[("x-forwarded-host", "u@a.example")], None, None),
            // One hop: the value that the only proxy set or appended.
            (
                &[
                    (FOR, "203.0.113.7"),
                    ("x-forwarded-proto", "http, https"),
                    ("x-forwarded-host", "forged.example, a.example"),
                ],
                Some(true),
                Some("a.example"),
            ),
            // Two hops, of which each appended.
            (
                &[
                    (FOR, "198.51.100.1, 203.0.113.7, 10.1.1.1"),
                    ("x-forwarded-proto", "http, https, http"),
                    ("x-forwarded-host", "forged.example, a.example, inner"),
                ],
                Some(true),
                Some("a.example"),
            ),
            // Two hops, of which the last replaced.
            (
                &[
                    (FOR, "203.0.113.7, 10.1.1.1"),
                    ("x-forwarded-proto", "https"),
                    ("x-forwarded-host", "a.example"),
                ],
                Some(true),
                Some("a.example"),
            ),
            (
                &[
                    ("x-forwarded-host", "forged.example"),
                    ("x-forwarded-host", "a.example"),
                ],
                None,
                Some("a.example"),
            ),
        ];
        for (lines, secure, host) in cases {
            let forwarded = read(lines);
            assert_eq!(forwarded.secure, secure, "{lines:?}");
            let read_host = forwarded.host.as_ref().map(|host| host.to_str().unwrap());
            assert_eq!(read_host, host, "{lines:?}");
        }
    }
}
