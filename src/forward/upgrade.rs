//! Upgrades: WebSocket, SPDY, anything that HTTP/1.1 can switch to (CONFORMANCE chapter 9).

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use super::list::{is, tokens};
use super::response::Upstream;
use super::{Answer, ForwardError};
use crate::model::Endpoint;

const WEBSOCKET: &str = "websocket";

/// How a client asks to leave HTTP.
#[derive(Clone, Debug)]
pub enum Upgrade {
    /// By `Connection: Upgrade` (RFC 9110 section 7.8), for WebSocket, SPDY, or anything.
    Http1,
    /// For a WebSocket by extended CONNECT (RFC 8441). The endpoint is asked by HTTP/1.1, with this key.
    Connect { key: HeaderValue },
}

impl Upgrade {
    /// None where the request asks for no upgrade, or by a CONNECT that opens no WebSocket.
    pub fn asked<B>(request: &Request<B>) -> Option<Self> {
        if request.version() == Version::HTTP_11 {
            let headers = request.headers();
            // The tokens are matched whole (C83).
            let upgrade = headers.get(header::UPGRADE).is_some_and(|to| !is_h2c(to))
                && headers.get_all(header::CONNECTION).iter().any(|value| tokens(value).any(|it| is(it, "upgrade")));
            upgrade.then_some(Self::Http1)
        } else {
            let protocol = request.extensions().get::<Protocol>()?;
            let websocket = request.method() == Method::CONNECT && protocol.as_str() == WEBSOCKET;
            websocket.then(|| Self::Connect { key: new_key() })
        }
    }

    /// What is to be opened is a WebSocket.
    pub fn is_websocket(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Http1 => {
                headers.get(header::UPGRADE).is_some_and(|to| is(to.to_str().unwrap_or_default(), WEBSOCKET))
            }
            Self::Connect { .. } => true,
        }
    }

    /// Makes an extended CONNECT the request that an HTTP/1.1 endpoint knows (RFC 6455 section 4.1).
    pub(super) fn ask_by_http1(&self, parts: &mut request::Parts) {
        let Self::Connect { key } = self else { return };
        parts.method = Method::GET;
        let headers = &mut parts.headers;
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
        headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
        headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    }

    /// Makes a 101 the answer that the client waits for.
    fn answer(&self, response: &mut Response<()>) -> Result<(), ForwardError> {
        let Self::Connect { key } = self else { return Ok(()) };
        let headers = response.headers_mut();
        let accept = headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        if accept.is_none_or(|accept| accept != accept_of(key)) {
            return Err(ForwardError::InvalidAccept);
        }
        for name in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
            headers.remove(name);
        }
        *response.status_mut() = StatusCode::OK;
        Ok(())
    }
}

/// HTTP/2 is no other protocol: behind an upgrade to it any request could follow, for the right to one. The request is
/// served as it is (RFC 7540 section 3.2 lets a server ignore the offer; RFC 9113 has dropped it).
fn is_h2c(to: &HeaderValue) -> bool {
    let mut protocols = tokens(to).peekable();
    protocols.peek().is_some() && protocols.all(|protocol| is(protocol, "h2c"))
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
    Switched { response: Response<()>, tunnel: Tunnel, endpoint: Endpoint },
    /// An error, to be passed on; the connection ends with it, so that nothing that the client sends behind the
    /// request reaches the endpoint (C87, CVE-2018-1002105).
    Refused(Answer),
}

impl Upgraded {
    pub(super) fn of(
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
                Ok(Self::Switched { response, tunnel: Tunnel { client, upstream }, endpoint })
            }
            status if status.is_client_error() || status.is_server_error() => {
                Ok(Self::Refused(Answer { response: response.map(Upstream::closing), endpoint }))
            }
            // A success or a redirect in answer to an upgrade would leave the client talking to nobody knows whom
            // (C88, CVE-2020-8559).
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
    /// Copies both ways until both sides are done; when one side ends its sending, the other is told and may go on
    /// (half-close). `received` and `sent` count the bytes from and to the client.
    ///
    /// # Errors
    /// Where either side breaks.
    pub async fn run(self, received: &Cell<u64>, sent: &Cell<u64>) -> Result<(), TunnelError> {
        // What either side sent right behind its head is in the buffers that hyper hands over (C90).
        let (client, upstream) = tokio::try_join!(self.client, self.upstream)?;
        let mut client = Counted { io: TokioIo::new(client), read: received };
        let mut upstream = Counted { io: TokioIo::new(upstream), read: sent };
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
        self.read.set(self.read.get() + (buffer.filled().len() - before) as u64);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_are_told_by_whole_tokens() {
        for (connection, upgrade, expected) in [
            (Some("Upgrade"), Some("websocket"), true),
            (Some("keep-alive, uPgRaDe"), Some("SPDY/3.1"), true),
            (Some("upgraded"), Some("websocket"), false),
            (Some("upgrade"), None, false),
            (Some("Upgrade, HTTP2-Settings"), Some("h2c"), false),
            (Some("Upgrade"), Some("H2C, h2c"), false),
            (None, Some("websocket"), false),
        ] {
            let mut request = Request::get("/");
            request = connection.into_iter().fold(request, |request, value| request.header("connection", value));
            request = upgrade.into_iter().fold(request, |request, value| request.header("upgrade", value));
            let asked = Upgrade::asked(&request.body(()).unwrap());
            assert_eq!(asked.is_some(), expected, "{connection:?} {upgrade:?}");
        }
    }

    #[test]
    fn over_http2_only_websockets_are_opened() {
        for (method, protocol, expected) in [
            (Method::CONNECT, Some("websocket"), true),
            (Method::CONNECT, Some("connect-udp"), false),
            (Method::CONNECT, None, false),
            (Method::GET, None, false),
        ] {
            let request = Request::builder().method(&method).uri("https://b/").version(Version::HTTP_2);
            let mut request = request.header("connection", "upgrade").header("upgrade", "x").body(()).unwrap();
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
            assert_eq!(Upgrade::asked(&request).is_some(), expected, "{method} {protocol:?}");
        }
    }

    #[test]
    fn an_endpoint_must_prove_that_it_understood() {
        // The example of RFC 6455 section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let asked = Upgrade::Connect { key };
        for (accept, good) in
            [(Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), true), (Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOO="), false), (None, false)]
        {
            let mut response = Response::builder().status(101).header("upgrade", "websocket").body(()).unwrap();
            response
                .headers_mut()
                .extend(accept.map(|it| (header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(it))));
            assert_eq!(asked.answer(&mut response).is_ok(), good, "{accept:?}");
            if good {
                assert!(response.status() == 200 && response.headers().is_empty(), "{response:?}");
            }
        }
    }
}
