//! Upgrades: WebSocket, SPDY, anything that HTTP/1.1 can switch to (CONFORMANCE chapter 9).

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request,
};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use super::response::UpstreamBody;
use super::{ForwardError, UpstreamResponse};
use crate::http::{MAX_HEADERS, remove_hop_by_hop, tokens};
use crate::model::Endpoint;

const WEBSOCKET: &str = "websocket";
const SPDY: &str = "spdy";
/// Protocols that one request may offer; further ones are dropped. Clients offer one or two.
const MAX_PROTOCOLS: usize = 8;

/// How a client asks to leave HTTP.
#[derive(Clone, Debug)]
pub enum Upgrade {
    /// By `Connection: Upgrade` (RFC 9110 section 7.8), for WebSocket, SPDY, or anything.
    Http1(Protocols),
    /// For a WebSocket by extended CONNECT (RFC 8441). The endpoint is asked by HTTP/1.1, with this
    /// key.
    Connect { key: HeaderValue },
}

/// The protocols that an endpoint is offered: the value of its one `Upgrade` line, never empty.
#[derive(Clone, Debug)]
pub struct Protocols(HeaderValue);

impl Protocols {
    /// Reads the offers of all `Upgrade` lines, as bytes, and drops those that an endpoint must not
    /// see. None where nothing remains: the request is then served as a plain one (RFC 9110 section
    /// 7.8: an offer may be ignored).
    fn parse(headers: &HeaderMap) -> Option<Self> {
        let offers = headers.get_all(header::UPGRADE).iter().flat_map(tokens);
        let offers: Vec<&[u8]> = offers
            .filter(|offer| is_protocol(offer) && !is_http(offer))
            .take(MAX_PROTOCOLS)
            .collect();
        if offers.is_empty() {
            return None;
        }
        HeaderValue::from_bytes(&offers.join(&b", "[..]))
            .ok()
            .map(Self)
    }

    fn contains(&self, protocol: &[u8]) -> bool {
        tokens(&self.0).any(|offered| offered.eq_ignore_ascii_case(protocol))
    }

    /// Whether one of them has this name, in any version.
    fn names(&self, name: &str) -> bool {
        tokens(&self.0).any(|offered| name_of(offered).eq_ignore_ascii_case(name.as_bytes()))
    }
}

impl Upgrade {
    /// None where the request asks for no upgrade that may be passed on, or by a CONNECT that opens
    /// no WebSocket.
    pub fn asked<B>(request: &Request<B>) -> Option<Self> {
        if request.version() == Version::HTTP_11 {
            let headers = request.headers();
            // Most requests end here.
            if !headers.contains_key(header::UPGRADE) {
                return None;
            }
            // The tokens are matched whole (C83).
            let named = headers
                .get_all(header::CONNECTION)
                .iter()
                .flat_map(tokens)
                .any(|token| token.eq_ignore_ascii_case(b"upgrade"));
            Protocols::parse(headers).filter(|_| named).map(Self::Http1)
        } else {
            let protocol = request.extensions().get::<Protocol>()?;
            let websocket = request.method() == Method::CONNECT && protocol.as_str() == WEBSOCKET;
            websocket.then(|| Self::Connect { key: new_key() })
        }
    }

    /// What is to be opened is a WebSocket.
    pub fn is_websocket(&self) -> bool {
        self.protocols().names(WEBSOCKET)
    }

    /// Whether the client can do without: a WebSocket or a SPDY connection is of no use as anything
    /// else, other offers may be ignored by the endpoint (CONFORMANCE C88).
    fn is_optional(&self) -> bool {
        let protocols = self.protocols();
        !protocols.names(WEBSOCKET) && !protocols.names(SPDY)
    }

    fn protocols(&self) -> Protocols {
        match self {
            Self::Http1(protocols) => protocols.clone(),
            Self::Connect { .. } => Protocols(HeaderValue::from_static(WEBSOCKET)),
        }
    }

    /// Writes the one `Connection` and the one `Upgrade` that the endpoint sees (C84), and makes an
    /// extended CONNECT the request that HTTP/1.1 knows (RFC 6455 section 4.1). The client's
    /// hop-by-hop headers are removed before.
    pub(super) fn ask(&self, parts: &mut request::Parts) {
        let headers = &mut parts.headers;
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, self.protocols().0);
        if let Self::Connect { key } = self {
            parts.method = Method::GET;
            headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
            headers
                .entry(header::SEC_WEBSOCKET_VERSION)
                .or_insert(HeaderValue::from_static("13"));
        }
    }

    /// Makes a 101 of the endpoint the answer that the client waits for.
    ///
    /// # Errors
    /// [`ForwardError`] where the endpoint switches to a protocol that it was not offered: whatever
    /// that is, the client did not ask for it and the caller was not authorized for it.
    fn answer(&self, response: &mut Response<()>) -> Result<(), ForwardError> {
        let headers = response.headers_mut();
        if headers.len() > MAX_HEADERS {
            return Err(ForwardError::TooManyHeaders);
        }
        let chosen = self.chosen(headers)?;
        remove_hop_by_hop(headers, |_| false);
        // A 101 has no content (RFC 9110 section 8.6).
        headers.remove(header::CONTENT_LENGTH);
        match self {
            Self::Http1(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(header::UPGRADE, chosen);
            }
            Self::Connect { key } => {
                let accept = headers.remove(header::SEC_WEBSOCKET_ACCEPT);
                if accept.is_none_or(|accept| accept != accept_of(key)) {
                    return Err(ForwardError::InvalidAccept);
                }
                *response.status_mut() = StatusCode::OK;
            }
        }
        Ok(())
    }

    /// The protocol that a 101 names, in the endpoint's spelling; several where they are layered.
    fn chosen(&self, headers: &HeaderMap) -> Result<HeaderValue, ForwardError> {
        let offered = self.protocols();
        let chosen: Vec<&[u8]> = headers
            .get_all(header::UPGRADE)
            .iter()
            .flat_map(tokens)
            .collect();
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

/// `name` or `name/version`, both tokens (RFC 9110 section 7.8). What is none is dropped: no two
/// parsers agree on it.
fn is_protocol(offer: &[u8]) -> bool {
    let is_token = |part: &[u8]| !part.is_empty() && part.iter().all(|byte| is_token_byte(*byte));
    offer.split(|byte| *byte == b'/').count() <= 2
        && offer.split(|byte| *byte == b'/').all(is_token)
}

/// RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// HTTP in any version (`h2c`, `h2`, `HTTP/2.0`, drafts as `h2c-14`) is not a different protocol:
/// behind an upgrade to it any request could follow, unauthorized and unlogged, for the right to
/// one (h2c smuggling). Matched generously, because backends match tokens loosely. TLS (RFC 2817)
/// is HTTP again within, and clients that offer it do without (R14).
fn is_http(offer: &[u8]) -> bool {
    let name = name_of(offer).to_ascii_lowercase();
    let begins = |prefix: &[u8]| name.starts_with(prefix);
    begins(b"http")
        || begins(b"tls")
        || begins(b"h2")
        || begins(b"h3")
        || name.windows(3).any(|part| part == b"h2c")
}

fn name_of(protocol: &[u8]) -> &[u8] {
    protocol
        .iter()
        .position(|byte| *byte == b'/')
        .map_or(protocol, |slash| &protocol[..slash])
}

/// A nonce (RFC 6455 section 4.1). It only has to differ from what caches may hold.
fn new_key() -> HeaderValue {
    let key = STANDARD.encode(fastrand::u128(..).to_le_bytes());
    HeaderValue::try_from(key).expect("base64 makes a header value")
}

/// What proves that an endpoint understood the key (RFC 6455 section 4.2.2).
fn accept_of(key: &HeaderValue) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finish())
}

/// What an endpoint answered to an upgrade.
#[derive(Debug)]
pub enum Upgraded {
    /// The head for the client, and the tunnel that opens behind it.
    Switched {
        response: Response<()>,
        tunnel: Tunnel,
    },
    /// The endpoint ignored an offer that was optional: the answer is that to a plain request.
    Ignored(UpstreamResponse),
    /// An error, to be passed on; the connection ends with it, so that nothing that the client
    /// sends behind the request reaches the endpoint (C87, CVE-2018-1002105).
    Refused(UpstreamResponse),
}

impl Upgraded {
    pub(super) fn from_response(
        mut response: Response<Incoming>,
        endpoint: Endpoint,
        client: OnUpgrade,
        asked: &Upgrade,
    ) -> Result<Self, ForwardError> {
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let upstream = hyper::upgrade::on(&mut response);
                let mut response = response.map(|_| ());
                asked.answer(&mut response)?;
                Ok(Self::Switched {
                    response,
                    tunnel: Tunnel { client, upstream },
                })
            }
            status if status.is_client_error() || status.is_server_error() => {
                Ok(Self::Refused(UpstreamResponse {
                    response: response.map(UpstreamBody::closing),
                    endpoint,
                }))
            }
            // The client reads it as the answer to a plain request, so it is one (C88).
            status if asked.is_optional() && !status.is_informational() => {
                Ok(Self::Ignored(UpstreamResponse {
                    response: response.map(UpstreamBody::closing),
                    endpoint,
                }))
            }
            // A client of WebSocket or SPDY could take what follows a success or a redirect for its
            // tunnel, and follow a redirect with its credentials (C88, CVE-2020-8559).
            status => Err(ForwardError::InvalidUpgrade(status)),
        }
    }
}

/// Two connections about to be joined.
#[derive(Debug)]
pub struct Tunnel {
    client: OnUpgrade,
    upstream: OnUpgrade,
}

impl Tunnel {
    /// Copies both ways until both sides are done; when one side ends its sending, the other is
    /// told and may go on (half-close). `received` and `sent` count the bytes from and to the
    /// client.
    ///
    /// # Errors
    /// Where either side breaks.
    pub async fn run(self, received: &Cell<u64>, sent: &Cell<u64>) -> Result<(), TunnelError> {
        // What either side sent right behind its head is in the buffers that hyper hands over
        // (C90).
        let (client, upstream) = tokio::try_join!(self.client, self.upstream)?;
        let mut client = Counted {
            io: TokioIo::new(client),
            read: received,
        };
        let mut upstream = Counted {
            io: TokioIo::new(upstream),
            read: sent,
        };
        copy_bidirectional(&mut client, &mut upstream).await?;
        Ok(())
    }
}

/// Why a tunnel ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("the upgrade did not come about: {0}")]
    Upgrade(#[from] hyper::Error),
    #[error("the tunnel broke: {0}")]
    Broken(#[from] std::io::Error),
}

/// Counts what is read, as it is read: a tunnel that is cut has moved bytes too.
struct Counted<'a, T> {
    io: T,
    read: &'a Cell<u64>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        self.read
            .set(self.read.get() + (buffer.filled().len() - before) as u64);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<'_, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(connection: Option<&'static str>, upgrades: &[&'static [u8]]) -> Option<Upgrade> {
        let mut request = Request::get("/").body(()).unwrap();
        let headers = request.headers_mut();
        headers
            .extend(connection.map(|value| (header::CONNECTION, HeaderValue::from_static(value))));
        for upgrade in upgrades {
            headers.append(header::UPGRADE, HeaderValue::from_bytes(upgrade).unwrap());
        }
        Upgrade::asked(&request)
    }

    #[test]
    fn an_upgrade_needs_a_whole_token_and_a_protocol() {
        for (connection, upgrade, expected) in [
            (Some("Upgrade"), Some(&b"websocket"[..]), true),
            (Some("keep-alive, uPgRaDe"), Some(b"SPDY/3.1"), true),
            (Some("upgraded"), Some(b"websocket"), false),
            (Some("upgrade"), None, false),
            (None, Some(b"websocket"), false),
        ] {
            let upgrades: Vec<_> = upgrade.into_iter().collect();
            assert_eq!(
                asked(connection, &upgrades).is_some(),
                expected,
                "{connection:?} {upgrade:?}"
            );
        }
    }

    #[test]
    fn drops_offers_of_http_and_tls_and_malformed_ones() {
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
            let asked = asked(Some("Upgrade, HTTP2-Settings"), upgrades);
            let sent = asked.map(|asked| asked.protocols().0);
            assert_eq!(
                sent.as_ref().map(|sent| sent.to_str().unwrap()),
                expected,
                "{upgrades:?}"
            );
        }
    }

    #[test]
    fn only_offers_without_websocket_and_spdy_are_optional() {
        for (upgrade, websocket, optional) in [
            (&b"odd/9"[..], false, true),
            (b"WebSocket", true, false),
            (b"odd/9, websocket", true, false),
            (b"websocket/13", true, false),
            (b"spdy/3.1", false, false),
        ] {
            let asked = asked(Some("upgrade"), &[upgrade]).unwrap();
            assert_eq!(
                (asked.is_websocket(), asked.is_optional()),
                (websocket, optional),
                "{upgrade:?}"
            );
        }
    }

    #[test]
    fn a_101_names_a_protocol_that_was_offered() {
        let asked = asked(Some("upgrade"), &[b"websocket, odd/9"]).unwrap();
        for (chosen, good) in [
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
            let answered = asked.answer(&mut response);
            assert_eq!(answered.is_ok(), good, "{chosen:?}: {answered:?}");
            if good {
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
        let error = asked
            .answer(
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
    fn over_http2_only_websockets_are_opened() {
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
            let mut request = request
                .header("connection", "upgrade")
                .header("upgrade", "x")
                .body(())
                .unwrap();
            request.extensions_mut().extend(
                protocol
                    .map(Protocol::from_static)
                    .map(|it| {
                        let mut extensions = http::Extensions::new();
                        extensions.insert(it);
                        extensions
                    })
                    .unwrap_or_default(),
            );
            assert_eq!(
                Upgrade::asked(&request).is_some(),
                expected,
                "{method} {protocol:?}"
            );
        }
    }

    #[test]
    fn an_endpoint_must_prove_that_it_understood() {
        // The example of RFC 6455 section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let asked = Upgrade::Connect { key };
        for (accept, good) in [
            (Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), true),
            (Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOO="), false),
            (None, false),
        ] {
            let mut response = Response::builder()
                .status(101)
                .header("upgrade", "websocket")
                .body(())
                .unwrap();
            response.headers_mut().extend(
                accept.map(|it| (header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(it))),
            );
            assert_eq!(asked.answer(&mut response).is_ok(), good, "{accept:?}");
            if good {
                assert!(
                    response.status() == 200 && response.headers().is_empty(),
                    "{response:?}"
                );
            }
        }
    }
}
