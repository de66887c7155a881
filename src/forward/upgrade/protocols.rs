//! Protocols that a client offers for an upgrade, and the filter for those that must not be
//! forwarded.

use http::{HeaderMap, HeaderValue, header};

use crate::http::tokens;

pub(super) const WEBSOCKET: &str = "websocket";
pub(super) const SPDY: &str = "spdy";
/// Maximum number of protocols that one request may offer; further ones are dropped. Clients offer
/// one or two.
const MAX_PROTOCOLS: usize = 8;

/// Protocols offered to an endpoint: the value of the single `Upgrade` header, never empty.
#[derive(Clone, Debug)]
pub struct Protocols(pub(super) HeaderValue);

impl Protocols {
    /// Parses the offers of all `Upgrade` headers and drops those that must not be forwarded.
    /// `None` if no offer remains: the request is then served as a plain one, because an offer may
    /// be ignored (RFC 9110 section 7.8).
    ///
    /// Offers are compared as bytes. If values that are not text were skipped, an offer beside them
    /// would go unfiltered to a backend that parses bytes.
    pub(super) fn parse(headers: &HeaderMap) -> Option<Self> {
        let offers: Vec<&[u8]> = headers
            .get_all(header::UPGRADE)
            .iter()
            .flat_map(tokens)
            // Filtered before the header is rebuilt: the endpoint gets nothing of a dropped offer.
            .filter(|offer| is_protocol(offer) && !is_http(offer))
            // After the filter, so that dropped offers do not use up the limit.
            .take(MAX_PROTOCOLS)
            .collect();
        if offers.is_empty() {
            return None;
        }
        HeaderValue::from_bytes(&offers.join(&b", "[..]))
            // The offers consist of token characters, so the conversion does not fail.
            .ok()
            .map(Self)
    }

    pub(super) fn websocket() -> Self {
        Self(HeaderValue::from_static(WEBSOCKET))
    }

    /// Returns true if `protocol` was offered, version included.
    pub(super) fn contains(&self, protocol: &[u8]) -> bool {
        // RFC 9110 section 7.8 recommends to ignore the case of names.
        tokens(&self.0).any(|offered| offered.eq_ignore_ascii_case(protocol))
    }

    /// Returns true if an offer has this name, in any version.
    pub(super) fn contains_name(&self, name: &str) -> bool {
        tokens(&self.0).any(|offered| name_of(offered).eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// Returns true for `name` and `name/version`, both tokens (RFC 9110 section 7.8). Other offers are
/// dropped, because parsers disagree about them.
fn is_protocol(offer: &[u8]) -> bool {
    let is_token = |part: &[u8]| !part.is_empty() && part.iter().all(|byte| is_token_byte(*byte));
    offer.split(|byte| *byte == b'/').count() <= 2
        && offer.split(|byte| *byte == b'/').all(is_token)
}

/// Returns true for a `tchar` of RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns true for HTTP in any version (`h2c`, `h2`, `HTTP/2.0`, drafts such as `h2c-14`) and TLS.
///
/// A tunnel that carries HTTP would let the caller send further requests that are neither
/// authorized nor logged (h2c smuggling). The match is deliberately broad, because backends compare
/// tokens loosely. TLS (RFC 2817) carries HTTP again, and a server may ignore the offer (RFC 9110
/// section 7.8).
fn is_http(offer: &[u8]) -> bool {
    let name = name_of(offer).to_ascii_lowercase();
    let starts_with = |prefix: &[u8]| name.starts_with(prefix);
    starts_with(b"http")
        || starts_with(b"tls")
        || starts_with(b"h2")
        || starts_with(b"h3")
        // Anywhere in the name, for backends that search for the substring.
        || name.windows(3).any(|part| part == b"h2c")
}

fn name_of(protocol: &[u8]) -> &[u8] {
    protocol
        .iter()
        // RFC 9110 section 7.8: `protocol-name ["/" protocol-version]`.
        .position(|byte| *byte == b'/')
        .map_or(protocol, |slash| &protocol[..slash])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_offers_of_http_and_tls_and_malformed_offers() {
        let cases: [(&[&'static [u8]], Option<&str>); 19] = [
            (&[b"websocket"], Some("websocket")),
            (&[b"websocket, h2c"], Some("websocket")),
            (&[b"websocket", b"h2c"], Some("websocket")),
            (&[b"h2c", b"websocket"], Some("websocket")),
            (&[b"h2c, \xff"], None),
            (&[b"\xff, websocket"], Some("websocket")),
            (&[b"H2C,h2c"], None),
            (&[b"h2"], None),
            (&[b"h2c-14, h2-16, h2c/1"], None),
            (&[b"HTTP/2.0, http/1.1, HTTP"], None),
            (&[b"TLS/1.2"], None),
            (&[b"tls/1.3, TLS"], None),
            (&[b"h2c.x, h2c_14, h2c+x, 'h2c', h2c|, HTTPS/2, h3"], None),
            (&[b"SPDY/3.1 , odd/9"], Some("SPDY/3.1, odd/9")),
            (&[b"\"h2c, websocket\""], None),
            (&[b"web socket, a/b/c, /x, x/"], None),
            (&[b", ,"], None),
            (&[b"h2c\twebsocket"], None),
            (&[b"a,b,c,d,e,f,g,h,i,j"], Some("a, b, c, d, e, f, g, h")),
        ];
        for (upgrades, expected) in cases {
            let mut headers = HeaderMap::new();
            for upgrade in upgrades {
                headers.append(header::UPGRADE, HeaderValue::from_bytes(upgrade).unwrap());
            }
            let offers = Protocols::parse(&headers);
            assert_eq!(
                offers.as_ref().map(|offers| offers.0.to_str().unwrap()),
                expected,
                "{upgrades:?}"
            );
        }
    }

    #[test]
    fn compares_names_without_version_and_case() {
        let offers = Protocols(HeaderValue::from_static("WebSocket/13, odd"));
        assert!(offers.contains_name("websocket") && offers.contains_name("odd"));
        assert!(!offers.contains(b"websocket") && offers.contains(b"websocket/13"));
    }
}
