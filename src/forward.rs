//! The upstream side: sends a request to the endpoints of its route in the order of the balancer, streams bodies both
//! ways, and carries upgrades.

mod dial;
mod executor;
mod headers;
mod interim;
mod list;
mod pool;
mod request;
mod response;
mod upgrade;

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

pub use dial::{DialError, Dialer, Itself};
pub use executor::LocalExecutor;
pub use headers::{Forwarded, MAX_HEADERS, clean_answer};
pub use interim::{Interim, WithInterim};
pub use pool::{MAX_HEADER_BYTES, Pool};
pub use response::{Upstream, UpstreamError};
pub use upgrade::{Tunnel, Upgrade, Upgraded};

use crate::authorize::Permit;
use crate::balance::Balance;
use crate::model::Endpoint;
use crate::resolve::{Route, Transport};
use dial::Protocol;
use pool::{Connection, Key};
use request::{Replay, RequestBody};

/// The stage. One per worker; what workers share of it stands behind `Arc`s.
#[derive(Debug)]
pub struct Forward {
    pub pool: Rc<Pool>,
    pub balance: Arc<Balance>,
    /// `Bearer …` of the bastion's own account, shown to kubelets whose certificate was verified, where no client
    /// certificate is configured (CONFORMANCE C32). Replaced when the token rotates.
    pub kubelet_token: Arc<ArcSwapOption<HeaderValue>>,
}

/// A request ready to be sent: headers rewritten, the URI in origin form.
#[derive(Debug)]
pub struct Outgoing {
    pub parts: Parts,
    pub body: Incoming,
    /// Counts the bytes of the body as they pass. None where there is no body.
    pub received: Option<Rc<Cell<u64>>>,
    /// Takes interim answers. None where the client cannot have them.
    pub interim: Option<Interim>,
}

/// Why no endpoint answered.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No endpoint could be dialled; in the order in which they were tried.
    #[error("{}", join(.0))]
    Dial(Vec<DialError>),
    /// The endpoint broke off before it answered. Part of the request may have reached it.
    #[error("{address}: {source}")]
    Broken { address: std::net::SocketAddr, source: hyper::Error },
    /// The client broke off its request.
    #[error("the request's body broke off: {0}")]
    Client(hyper::Error),
    /// The endpoint answered an upgrade with neither 101 nor an error (C88).
    #[error("invalid upgrade response: status code {}", .0.as_u16())]
    InvalidUpgrade(StatusCode),
    /// The endpoint said 101 to a request that asked for no upgrade.
    #[error("backend tried to switch protocol {0:?} when \"\" was requested")]
    UnaskedUpgrade(String),
    /// The endpoint said 101 to an upgrade and named a protocol that it was not offered, or none.
    #[error("backend tried to switch protocol {chosen:?} when {offered:?} was requested")]
    UnofferedUpgrade { chosen: String, offered: String },
    /// The answer has more fields than are passed on; the endpoint handled the request.
    #[error("the answer has more than {} header fields", MAX_HEADERS)]
    TooManyHeaders,
    /// The endpoint said 101 and did not prove that it speaks WebSocket (RFC 6455 section 4.2.2).
    #[error("invalid upgrade response: Sec-WebSocket-Accept does not answer the key")]
    InvalidAccept,
}

fn join(errors: &[DialError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// One request and its answer, as they went over the connection.
struct Exchange {
    response: Response<Incoming>,
    connection: Connection,
    endpoint: Endpoint,
}

/// What an endpoint answered, and which it was.
#[derive(Debug)]
pub struct Answer {
    pub response: Response<Upstream>,
    pub endpoint: Endpoint,
}

impl Forward {
    /// Sends the request to the first endpoint that takes it. The permit proves that the caller may.
    ///
    /// # Errors
    /// [`ForwardError`] where no endpoint answered.
    pub async fn send(
        &self,
        _: &Permit<'_>,
        route: &Route,
        outgoing: Outgoing,
        client: IpAddr,
    ) -> Result<Answer, ForwardError> {
        let Exchange { response, connection, endpoint } = self.exchange(route, outgoing, client, Protocol::Any).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // What follows is no HTTP, and nobody asked for it: the connection ends here (CVE-2018-1002105).
            let to = response.headers().get(header::UPGRADE).and_then(|to| to.to_str().ok()).unwrap_or_default();
            return Err(ForwardError::UnaskedUpgrade(to.to_owned()));
        }
        let response = response.map(|body| Upstream::pooled(body, connection, &self.pool));
        Ok(Answer { response, endpoint })
    }

    /// Asks an endpoint to upgrade, on a connection of its own. `client` is the upgrade of the client's connection.
    ///
    /// # Errors
    /// [`ForwardError`] where no endpoint answered, or not as it should.
    pub async fn upgrade(
        &self,
        _: &Permit<'_>,
        route: &Route,
        outgoing: Outgoing,
        client: IpAddr,
        on_client: OnUpgrade,
        asked: &Upgrade,
    ) -> Result<Upgraded, ForwardError> {
        let Exchange { response, endpoint, .. } = self.exchange(route, outgoing, client, Protocol::Http1).await?;
        Upgraded::of(response, endpoint, on_client, asked)
    }

    /// Tries the endpoints in turn. A failed dial goes on to the next. A request that may be repeated is sent once
    /// more where a connection breaks before the answer begins, and any request where the endpoint says that it did
    /// not look at it; else it is not, because the endpoint may have acted on it. Where `protocol` is not any, the
    /// connection is a new one: it will not come back.
    async fn exchange(
        &self,
        route: &Route,
        outgoing: Outgoing,
        client: IpAddr,
        protocol: Protocol,
    ) -> Result<Exchange, ForwardError> {
        let Outgoing { parts, body, received, interim } = outgoing;
        let mut reuse = protocol == Protocol::Any;
        let body = received.map(|received| Replay::new(body, received, reuse && route.transport.may_be_http2()));
        let repeatable = parts.method.is_safe() && body.is_none();
        let mut again = (repeatable || body.as_ref().is_some_and(Replay::keeps)).then(|| parts.clone());
        let mut request = Request::from_parts(parts, RequestBody::new(body.clone()));
        let mut order = self.balance.order(&route.candidates, client);
        let mut failures = Vec::new();
        let mut next = order.next();
        while let Some(endpoint) = next {
            let key = Key { address: endpoint.address, transport: route.transport };
            self.show_kubelet_token(&mut request, route.transport);
            let (mut connection, reused) = match self.connect(key, protocol, reuse, order.len() > 0).await {
                Ok(connection) => connection,
                Err(error) => {
                    self.balance.failed(endpoint);
                    failures.push(error);
                    next = order.next();
                    continue;
                }
            };
            if !connection.can_refuse()
                && let Some(body) = &body
            {
                body.forget();
                again = None;
            }
            if let Some(interim) = &interim {
                interim.listen(&mut request);
            }
            let mut error = match connection.send(request).await {
                Ok(response) => {
                    self.balance.succeeded(endpoint);
                    if let Some(body) = &body {
                        body.forget();
                    }
                    return Ok(Exchange { response, connection, endpoint: endpoint.clone() });
                }
                Err(error) => error,
            };
            if body.as_ref().is_some_and(Replay::is_broken) {
                return Err(ForwardError::Client(error.into_error()));
            }
            // A connection that was open already and breaks is stale, no fault of its endpoint: a new one is tried
            // there. A new one that breaks is the endpoint's fault: the next is tried.
            let unsent = error.take_message();
            let error = error.into_error();
            let unseen = is_refused(&error);
            if !reused && !unseen {
                self.balance.failed(endpoint);
                next = order.next();
            }
            // What is no HTTP is an answer all the same: the endpoint looked at the request.
            let repeatable = repeatable && !error.is_parse();
            let broken = ForwardError::Broken { address: key.address, source: error };
            request = match (unsent, again.take()) {
                // Not a byte went out.
                (Some(unsent), parts) => {
                    again = parts;
                    unsent
                }
                (None, Some(parts)) if repeatable || unseen => {
                    // Where one connection broke in use, the others are as old: the one repetition gets a new one.
                    reuse = false;
                    match body.as_ref().map(Replay::rewind) {
                        Some(false) => return Err(broken),
                        Some(true) | None => Request::from_parts(parts, RequestBody::new(body.clone())),
                    }
                }
                (None, _) => return Err(broken),
            };
            if next.is_none() {
                return Err(broken);
            }
        }
        Err(ForwardError::Dial(failures))
    }

    /// A connection that is open, else a new one. The flag tells which.
    async fn connect(
        &self,
        key: Key,
        protocol: Protocol,
        reuse: bool,
        others: bool,
    ) -> Result<(Connection, bool), DialError> {
        match reuse.then(|| self.pool.take(key)).flatten() {
            Some(connection) => Ok((connection, true)),
            None => self.pool.dial(key, protocol, others).await.map(|connection| (connection, false)),
        }
    }

    fn show_kubelet_token<B>(&self, request: &mut Request<B>, transport: Transport) {
        if transport == Transport::Kubelet
            && self.pool.shows_token_to_kubelets()
            && let Some(token) = &*self.kubelet_token.load()
        {
            request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::clone(token));
        }
    }
}

/// Whether the endpoint says that it did not look at the request (RFC 9113 section 8.7): it refused the stream, or went
/// away before it.
fn is_refused(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        cause = error.source();
    }
    false
}
