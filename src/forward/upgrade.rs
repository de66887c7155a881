//! Upgrades: WebSocket, SPDY, and any other protocol that HTTP/1.1 can switch to (CONFORMANCE
//! chapter 9).

mod protocols;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};

use super::connection::{Connection, Sender};
use super::response::{Incoming, UpstreamBody};
use super::{ForwardError, UpstreamResponse};
use crate::apiservers::RequestGuard;
use crate::http::{
    MAX_HEADERS, RequestHead, UpgradedConnection, remove_hop_by_hop, rules_origin, tokens,
};
use protocols::{Protocols, SPDY, WEBSOCKET};

/// Upgrade that a client requests.
#[derive(Clone, Debug)]
pub enum Upgrade {
    /// `Connection: Upgrade` of HTTP/1.1 (RFC 9110 section 7.8) to WebSocket, SPDY or another
    /// protocol.
    Http1(Protocols),
    /// Extended CONNECT of HTTP/2 for a WebSocket (RFC 8441). The endpoint gets an HTTP/1.1 upgrade
    /// with this key.
    Connect { key: HeaderValue },
}

impl Upgrade {
    /// Returns the upgrade that a request asks for. `None` for plain requests, for upgrades that
    /// must not be forwarded, and for CONNECT to another protocol than WebSocket. `protocol` is the
    /// `:protocol` pseudo-header of HTTP/2.
    pub fn from_request(head: &RequestHead, protocol: Option<&Protocol>) -> Option<Self> {
        if head.version == Version::HTTP_11 {
            let headers = &head.headers;
            // The common case: one lookup.
            if !headers.contains_key(header::UPGRADE) {
                return None;
            }
            // Whole tokens are compared: kube-apiserver searches for the substring (C83).
            let has_upgrade_option = headers
                .get_all(header::CONNECTION)
                .iter()
                .flat_map(tokens)
                .any(|token| token.eq_ignore_ascii_case(b"upgrade"));
            Protocols::parse(headers)
                .filter(|_| has_upgrade_option)
                .map(Self::Http1)
        } else {
            let protocol = protocol?;
            // RFC 8441 section 5 maps the handshake of WebSocket only.
            let websocket = head.method == Method::CONNECT && protocol.as_str() == WEBSOCKET;
            websocket.then(|| Self::Connect {
                key: new_websocket_key(),
            })
        }
    }

    /// Returns true if a WebSocket is offered.
    pub fn is_websocket(&self) -> bool {
        self.protocols().contains_name(WEBSOCKET)
    }

    /// Returns true if a protocol is offered.
    pub fn offers(&self, protocol: &str) -> bool {
        self.protocols().contains_name(protocol)
    }

    /// Returns true if the endpoint may ignore the offer. A client of WebSocket or SPDY cannot use
    /// a plain response; other clients can (RFC 9110 section 7.8, CONFORMANCE C88).
    fn is_optional(&self) -> bool {
        let protocols = self.protocols();
        !protocols.contains_name(WEBSOCKET) && !protocols.contains_name(SPDY)
    }

    fn protocols(&self) -> Protocols {
        match self {
            Self::Http1(protocols) => protocols.clone(),
            Self::Connect { .. } => Protocols::websocket(),
        }
    }

    /// Writes the single `Connection` and `Upgrade` header that the endpoint gets (C84), and turns
    /// an extended CONNECT into an HTTP/1.1 handshake (RFC 6455 section 4.1). The client's
    /// hop-by-hop headers must have been removed before.
    pub(super) fn write_request(&self, head: &mut RequestHead) {
        let headers = &mut head.headers;
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, self.protocols().0);
        if let Self::Connect { key } = self {
            head.method = Method::GET;
            // Replaces a key of the client: `accept` compares the response with this one.
            headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
            headers
                // The header is required, and 13 is its only version (RFC 6455 section 4.1).
                .entry(header::SEC_WEBSOCKET_VERSION)
                .or_insert(HeaderValue::from_static("13"));
        }
    }

    /// Turns the endpoint's 101 into the response for the client: 101 over HTTP/1.1, 200 over
    /// HTTP/2.
    ///
    /// # Errors
    /// [`ForwardError`] if the endpoint switched to a protocol that was not offered: the client did
    /// not request it, and the caller is not authorized for it.
    fn accept(&self, response: &mut Response<()>) -> Result<(), ForwardError> {
        let headers = response.headers_mut();
        if headers.len() > MAX_HEADERS {
            return Err(ForwardError::TooManyHeaders);
        }
        // Read before the hop-by-hop headers are removed, of which `Upgrade` is one.
        let chosen = self.chosen(headers)?;
        remove_hop_by_hop(headers, rules_origin);
        // A 101 has no content (RFC 9110 section 8.6). A client that believed the length would take
        // the first bytes of the tunnel for a body.
        headers.remove(header::CONTENT_LENGTH);
        match self {
            // The client validates `Sec-WebSocket-Accept`, because the key is its own.
            Self::Http1(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(header::UPGRADE, chosen);
            }
            // HTTP/2 has no such header (RFC 8441 section 5), so it is validated here.
            Self::Connect { key } => {
                let accept = headers.remove(header::SEC_WEBSOCKET_ACCEPT);
                if accept.is_none_or(|accept| accept != websocket_accept(key)) {
                    return Err(ForwardError::InvalidAccept);
                }
                *response.status_mut() = StatusCode::OK;
            }
        }
        Ok(())
    }

    /// Returns the protocol that a 101 names, in the endpoint's spelling; several if they are
    /// layered.
    fn chosen(&self, headers: &HeaderMap) -> Result<HeaderValue, ForwardError> {
        let offered = self.protocols();
        let chosen: Vec<&[u8]> = headers
            .get_all(header::UPGRADE)
            .iter()
            .flat_map(tokens)
            .collect();
        // Every layer of the list must have been offered, because the tunnel carries all of them.
        let was_offered =
            !chosen.is_empty() && chosen.iter().all(|protocol| offered.contains(protocol));
        let chosen = chosen.join(&b", "[..]);
        HeaderValue::from_bytes(&chosen)
            .ok()
            .filter(|_| was_offered)
            .ok_or_else(|| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                ForwardError::UnofferedUpgrade {
                    chosen: text(&chosen),
                    offered: text(offered.0.as_bytes()),
                }
            })
    }
}

/// Generates a `Sec-WebSocket-Key` (RFC 6455 section 4.1). It is not a secret: it only has to
/// differ from the keys of responses that a cache may hold, so a fast generator is enough.
pub fn new_websocket_key() -> HeaderValue {
    let key = STANDARD.encode(fastrand::u128(..).to_le_bytes());
    HeaderValue::try_from(key).expect("base64 is a valid header value")
}

/// Computes the `Sec-WebSocket-Accept` for a key (RFC 6455 section 4.2.2).
pub fn websocket_accept(key: &HeaderValue) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    // The handshake relies on no security property of SHA-1 (RFC 6455 section 10.8).
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(GUID);
    STANDARD.encode(hash.finish())
}

/// Response of an endpoint to an upgrade.
#[derive(Debug)]
pub enum UpgradeOutcome<T = UpstreamResponse> {
    /// The response head for the client, and the endpoint's side of the tunnel that follows it.
    Switched {
        response: Response<()>,
        upstream: UpgradedConnection,
        /// Request on an API server, which lasts as long as the tunnel.
        guard: Option<Box<RequestGuard>>,
    },
    /// The endpoint ignored an optional offer and responded to the plain request, with any status.
    Ignored(T),
    /// The endpoint responded to WebSocket or SPDY with an error, which is forwarded. Both
    /// connections are closed after it, so that no byte that the client sends behind the request
    /// reaches the endpoint (C87, CVE-2018-1002105).
    Refused(T),
}

impl<T> UpgradeOutcome<T> {
    pub(super) fn map<U>(self, convert: impl FnOnce(T) -> U) -> UpgradeOutcome<U> {
        match self {
            Self::Switched {
                response,
                upstream,
                guard,
            } => UpgradeOutcome::Switched {
                response,
                upstream,
                guard,
            },
            Self::Ignored(response) => UpgradeOutcome::Ignored(convert(response)),
            Self::Refused(response) => UpgradeOutcome::Refused(convert(response)),
        }
    }
}

impl UpgradeOutcome<Response<UpstreamBody>> {
    pub(super) fn new(
        response: Response<Incoming>,
        mut connection: Connection,
        upgrade: &Upgrade,
    ) -> Result<Self, ForwardError> {
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let mut response = response.map(|_| ());
            upgrade.accept(&mut response)?;
            let Sender::Http1(http1) = connection.sender else {
                // HTTP/2 has no 101, and upgrades are only sent over HTTP/1.1.
                return Err(ForwardError::InvalidUpgrade(status));
            };
            return Ok(Self::Switched {
                response,
                upstream: http1.into_upgraded(),
                guard: connection.guard.take(),
            });
        }
        let upstream = response.map(|body| UpstreamBody::closing(body, connection));
        if upgrade.is_optional() && !status.is_informational() {
            // The client treats it as the response to a plain request, and so does the proxy (C88):
            // what the client sends next is read as a request, with its own credentials.
            Ok(Self::Ignored(upstream))
        } else if status.is_client_error() || status.is_server_error() {
            Ok(Self::Refused(upstream))
        } else {
            // A client of WebSocket or SPDY could take the bytes after a success for its tunnel,
            // and follow a redirect with its credentials (C88, CVE-2020-8559).
            Err(ForwardError::InvalidUpgrade(status))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use http::Request;

    use crate::testing::head;

    fn upgrade(connection: Option<&'static str>, upgrades: &[&'static [u8]]) -> Option<Upgrade> {
        let mut head = head(Request::get("/"));
        let headers = &mut head.headers;
        headers
            .extend(connection.map(|value| (header::CONNECTION, HeaderValue::from_static(value))));
        for upgrade in upgrades {
            headers.append(header::UPGRADE, HeaderValue::from_bytes(upgrade).unwrap());
        }
        Upgrade::from_request(&head, None)
    }

    #[test]
    fn requires_upgrade_token_and_protocol() {
        for (connection, protocol, expected) in [
            (Some("Upgrade"), Some(&b"websocket"[..]), true),
            (Some("keep-alive, uPgRaDe"), Some(b"SPDY/3.1"), true),
            (Some("upgraded"), Some(b"websocket"), false),
            (Some("upgrade"), None, false),
            (None, Some(b"websocket"), false),
        ] {
            let protocols: Vec<_> = protocol.into_iter().collect();
            assert_eq!(
                upgrade(connection, &protocols).is_some(),
                expected,
                "{connection:?} {protocol:?}"
            );
        }
    }

    #[test]
    fn offers_of_websocket_and_spdy_are_not_optional() {
        for (protocol, websocket, optional) in [
            (&b"odd/9"[..], false, true),
            (b"WebSocket", true, false),
            (b"odd/9, websocket", true, false),
            (b"websocket/13", true, false),
            (b"spdy/3.1", false, false),
        ] {
            let upgrade = upgrade(Some("upgrade"), &[protocol]).unwrap();
            assert_eq!(
                (upgrade.is_websocket(), upgrade.is_optional()),
                (websocket, optional),
                "{protocol:?}"
            );
        }
    }

    #[test]
    fn rejects_101_to_protocol_that_was_not_offered() {
        let upgrade = upgrade(Some("upgrade"), &[b"websocket, odd/9"]).unwrap();
        for (chosen, valid) in [
            (Some("WebSocket"), true),
            (Some("odd/9"), true),
            (Some("odd/9, websocket"), true),
            (Some("odd"), false),
            (Some("h2c"), false),
            (Some("websocket, h2c"), false),
            (Some(","), false),
            (None, false),
        ] {
            let mut response = Response::builder()
                .status(101)
                .header("keep-alive", "1")
                .header("content-length", "0");
            response = response
                .header("connection", "upgrade, x-hop")
                .header("x-hop", "1")
                .header("x-kept", "1");
            response = chosen.into_iter().fold(response, |response, chosen| {
                response.header("upgrade", chosen)
            });
            let mut response = response.body(()).unwrap();
            let accepted = upgrade.accept(&mut response);
            assert_eq!(accepted.is_ok(), valid, "{chosen:?}: {accepted:?}");
            if valid {
                let headers = response.headers();
                assert_eq!(
                    (headers["connection"].to_str().unwrap(), headers.len()),
                    ("Upgrade", 3),
                    "{headers:?}"
                );
                assert_eq!(
                    (headers["upgrade"].to_str().ok(), &headers["x-kept"]),
                    (chosen, &"1".parse().unwrap())
                );
            }
        }
        let error = upgrade
            .accept(
                &mut Response::builder()
                    .header("upgrade", "h2c")
                    .body(())
                    .unwrap(),
            )
            .unwrap_err();
        let message =
            r#"backend tried to switch protocol "h2c" when "websocket, odd/9" was requested"#;
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn extended_connect_opens_only_websockets() {
        for (method, protocol, expected) in [
            (Method::CONNECT, Some("websocket"), true),
            (Method::CONNECT, Some("connect-udp"), false),
            (Method::CONNECT, None, false),
            (Method::GET, None, false),
        ] {
            let request = Request::builder()
                .method(&method)
                .uri("https://b/")
                .version(Version::HTTP_2);
            let head = head(
                request
                    .header("connection", "upgrade")
                    .header("upgrade", "x"),
            );
            let protocol = protocol.map(Protocol::from_static);
            assert_eq!(
                Upgrade::from_request(&head, protocol.as_ref()).is_some(),
                expected,
                "{method} {protocol:?}"
            );
        }
    }

    #[test]
    fn rejects_wrong_or_missing_websocket_accept() {
        // The example of RFC 6455 section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let upgrade = Upgrade::Connect { key };
        for (accept, valid) in [
            (Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), true),
            (Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOO="), false),
            (None, false),
        ] {
            let mut response = Response::builder()
                .status(101)
                .header("upgrade", "websocket")
                .body(())
                .unwrap();
            response.headers_mut().extend(accept.map(|accept| {
                (
                    header::SEC_WEBSOCKET_ACCEPT,
                    HeaderValue::from_static(accept),
                )
            }));
            assert_eq!(upgrade.accept(&mut response).is_ok(), valid, "{accept:?}");
            if valid {
                assert!(
                    response.status() == 200 && response.headers().is_empty(),
                    "{response:?}"
                );
            }
        }
    }

    #[test]
    fn extended_connect_becomes_http1_handshake() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let mut parts = head(Request::connect("https://b/"));
        Upgrade::Connect { key: key.clone() }.write_request(&mut parts);
        assert_eq!(parts.method, Method::GET);
        assert_eq!(parts.headers["connection"], "Upgrade");
        assert_eq!(parts.headers["upgrade"], "websocket");
        assert_eq!(parts.headers["sec-websocket-key"], key);
        assert_eq!(parts.headers["sec-websocket-version"], "13");
    }
}
