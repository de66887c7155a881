//! The upstream side: sends a request to the endpoints of its route in the order of the balancer,
//! as often as the retry policy allows, streams bodies both ways, and carries upgrades.

mod dial;
mod headers;
mod outstanding;
mod pool;
mod request;
mod response;
mod retry;
mod upgrade;

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

pub use dial::{DialError, Dialer, OwnAddresses};
pub use headers::{RequestHeaderRewriter, sanitize_response_headers};
pub use pool::{InvalidForm, Pool, STALL_CHECK};
pub use response::{UpstreamBody, UpstreamError};
pub use retry::{RetryPolicy, RetrySafety};
pub use upgrade::{Tunnel, Upgrade, Upgraded};

use crate::authorize::Permit;
use crate::balance::{EndpointKey, LoadBalancer};
use crate::http::{Interim, MAX_HEADERS};
use crate::model::Endpoint;
use crate::resolve::{Route, Transport};
use dial::Protocol;
use pool::{Connection, SendError};
use request::{Pending, ReplayBody};
use retry::{Attempts, Decision, Failure};

/// The stage. One per worker; what workers share of it stands behind `Arc`s.
#[derive(Debug)]
pub struct Forwarder {
    pub pool: Rc<Pool>,
    pub balance: Arc<LoadBalancer>,
    pub retry: RetryPolicy,
    /// `Bearer …` of the bastion's own account, shown to kubelets whose certificate was verified,
    /// where no client certificate is configured (CONFORMANCE C32). Replaced when the token
    /// rotates.
    pub kubelet_token: Arc<ArcSwapOption<HeaderValue>>,
}

/// A request ready to be sent: headers rewritten, the URI in origin form.
#[derive(Debug)]
pub struct UpstreamRequest {
    pub parts: Parts,
    pub body: Incoming,
    /// Counts the bytes of the body as they pass. None where there is no body.
    pub received: Option<Rc<Cell<u64>>>,
    /// Takes interim answers. None where the client cannot have them.
    pub interim: Option<Interim>,
}

/// The party to blame for an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client left, or sent what it may not.
    Client,
    /// The endpoint is not there, broke off, or answered what it may not.
    UpstreamBody,
    /// A fault of this program.
    Bastion,
}

/// A failure to get a response from any endpoint. [`Self::blame`] says whose fault it is,
/// [`Self::retry_safety`] whether the request may be sent again.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No endpoint could be dialled; in the order in which they were tried.
    #[error("{}", join(.0))]
    Dial(Vec<DialError>),
    /// The endpoint broke off before it answered, or its answer was not HTTP. `safety` says how
    /// much of the request may have reached it.
    #[error("{address}: {source}")]
    Broken {
        address: std::net::SocketAddr,
        source: hyper::Error,
        safety: RetrySafety,
    },
    /// The request cannot be written in the protocol of its connection.
    #[error("the request has no form in the protocol of the endpoint: {0}")]
    OutputFormat(#[from] InvalidForm),
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

impl ForwardError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Client(_) => Blame::Client,
            Self::OutputFormat(_) => Blame::Bastion,
            Self::Dial(_)
            | Self::Broken { .. }
            | Self::InvalidUpgrade(_)
            | Self::UnaskedUpgrade(_)
            | Self::UnofferedUpgrade { .. }
            | Self::TooManyHeaders
            | Self::InvalidAccept => Blame::UpstreamBody,
        }
    }

    pub fn retry_safety(&self) -> RetrySafety {
        match self {
            Self::Dial(_) => RetrySafety::Unsent,
            Self::Broken { safety, .. } => *safety,
            // The client is gone; what cannot be written once cannot be written again; an answer is
            // an answer, also one that must not be passed on.
            Self::Client(_)
            | Self::OutputFormat(_)
            | Self::InvalidUpgrade(_)
            | Self::UnaskedUpgrade(_)
            | Self::UnofferedUpgrade { .. }
            | Self::TooManyHeaders
            | Self::InvalidAccept => RetrySafety::Never,
        }
    }

    /// The error for the access log: with the party to blame, and whether the request may have
    /// taken effect.
    pub fn log_text(&self) -> String {
        let blame = match self.blame() {
            Blame::Client => "client",
            Blame::UpstreamBody => "upstream",
            Blame::Bastion => "bastion",
        };
        let effect = match self.retry_safety() {
            RetrySafety::Unsent => "nothing was sent",
            RetrySafety::Unprocessed => "it was not processed",
            RetrySafety::IfSafe | RetrySafety::Never => "it may have been processed",
        };
        format!("{self} (fault of the {blame}; of the request: {effect})")
    }

    /// Adds the dials that failed before the last one.
    fn after(self, mut earlier: Vec<DialError>) -> Self {
        match self {
            Self::Dial(last) => {
                earlier.extend(last);
                Self::Dial(earlier)
            }
            error => error,
        }
    }
}

fn join(errors: &[DialError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// One request and its answer, as they went over the connection.
struct Exchange {
    response: Response<Incoming>,
    connection: Connection,
    endpoint: Endpoint,
}

/// One attempt at a request.
#[derive(Clone, Copy, Debug)]
struct Attempt<'a> {
    key: EndpointKey,
    protocol: Protocol,
    /// An open connection will do.
    reuse: bool,
    /// The route has several endpoints.
    choice: bool,
    /// Some of them are left behind this one.
    others: bool,
    interim: Option<&'a Interim>,
}

/// What an endpoint answered, and which it was.
#[derive(Debug)]
pub struct UpstreamResponse {
    pub response: Response<UpstreamBody>,
    pub endpoint: Endpoint,
}

impl Forwarder {
    /// Sends the request to the first endpoint that takes it. The permit proves that the caller
    /// may. `dialed` is set to each endpoint as it is tried, so that it is known whatever becomes
    /// of the request.
    ///
    /// # Errors
    /// [`ForwardError`] where no endpoint answered.
    pub async fn send(
        &self,
        _: &Permit<'_>,
        route: &Route,
        outgoing: UpstreamRequest,
        client: IpAddr,
        dialed: &mut Option<Endpoint>,
    ) -> Result<UpstreamResponse, ForwardError> {
        let exchanged = self
            .exchange(route, outgoing, client, Protocol::Any, dialed)
            .await?;
        let Exchange {
            response,
            connection,
            endpoint,
        } = exchanged;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // What follows is no HTTP, and nobody asked for it: the connection ends here
            // (CVE-2018-1002105).
            let to = response
                .headers()
                .get(header::UPGRADE)
                .and_then(|to| to.to_str().ok())
                .unwrap_or_default();
            return Err(ForwardError::UnaskedUpgrade(to.to_owned()));
        }
        let response = response.map(|body| UpstreamBody::pooled(body, connection, &self.pool));
        Ok(UpstreamResponse { response, endpoint })
    }

    /// Asks an endpoint to upgrade, on a connection of its own. `on_client` is the upgrade of the
    /// client's connection; `dialed` as in [`Self::send`].
    ///
    /// # Errors
    /// [`ForwardError`] where no endpoint answered, or not as it should.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a product of another stage"
    )]
    pub async fn upgrade(
        &self,
        _: &Permit<'_>,
        route: &Route,
        outgoing: UpstreamRequest,
        client: IpAddr,
        on_client: OnUpgrade,
        asked: &Upgrade,
        dialed: &mut Option<Endpoint>,
    ) -> Result<Upgraded, ForwardError> {
        let exchanged = self
            .exchange(route, outgoing, client, Protocol::Http1, dialed)
            .await?;
        let Exchange {
            response, endpoint, ..
        } = exchanged;
        Upgraded::from_response(response, endpoint, on_client, asked)
    }

    /// Tries the endpoints in turn, for as long as the retry policy allows. Where `protocol` is not
    /// any, each connection is a new one: it will not come back.
    async fn exchange(
        &self,
        route: &Route,
        outgoing: UpstreamRequest,
        client: IpAddr,
        protocol: Protocol,
        dialed: &mut Option<Endpoint>,
    ) -> Result<Exchange, ForwardError> {
        let mut now = Instant::now();
        let UpstreamRequest {
            parts,
            body,
            received,
            interim,
        } = outgoing;
        let mut reuse = protocol == Protocol::Any;
        let can_refuse = reuse && route.transport.may_be_http2();
        let body = received.map(|received| ReplayBody::new(body, received, can_refuse));
        let mut pending = Pending::new(parts, body, can_refuse);
        let mut order = self
            .balance
            .select(&route.candidates, route.transport, client);
        let choice = order.len() > 1;
        let mut attempts =
            self.retry
                .begin(route.candidates.retries(), choice, pending.is_safe(), now);
        let mut failed_dials = Vec::new();
        let mut next = order.next();
        while let Some(endpoint) = next {
            *dialed = Some(endpoint.clone());
            let attempt = Attempt {
                key: EndpointKey {
                    address: endpoint.address,
                    transport: route.transport,
                },
                protocol,
                reuse,
                choice,
                others: order.len() > 0,
                interim: interim.as_ref(),
            };
            let (error, reused) = match self
                .attempt(&attempt, &mut attempts, &mut pending, now)
                .await
            {
                Ok((response, connection)) => {
                    return Ok(Exchange {
                        response,
                        connection,
                        endpoint: endpoint.clone(),
                    });
                }
                Err(failed) => failed,
            };
            let mut safety = error.retry_safety();
            if safety == RetrySafety::Unprocessed && !pending.rewind() {
                safety = RetrySafety::Never;
            }
            now = Instant::now();
            match attempts.after(Failure { safety, reused }, order.len() > 0, now) {
                Decision::Reconnect => {}
                Decision::NextEndpoint => next = order.next(),
                Decision::GiveUp => return Err(error.after(failed_dials)),
            }
            match error {
                ForwardError::Dial(errors) => failed_dials.extend(errors),
                // Where one connection broke in use, the idle ones are as old: all further ones are
                // new.
                _ => reuse = false,
            }
        }
        Err(ForwardError::Dial(failed_dials))
    }

    /// Sends the request to one endpoint, on an open connection or a new one. The flag beside an
    /// error is whether the connection was an open one.
    async fn attempt(
        &self,
        attempt: &Attempt<'_>,
        attempts: &mut Attempts<'_>,
        pending: &mut Pending,
        now: Instant,
    ) -> Result<(Response<Incoming>, Connection), (ForwardError, bool)> {
        let Attempt {
            key,
            reuse,
            choice,
            interim,
            ..
        } = *attempt;
        let pooled = reuse.then(|| self.pool.take(key, now)).flatten();
        let reused = pooled.is_some();
        let mut connection = match pooled {
            Some(connection) => connection,
            None => self
                .dial(attempt, attempts)
                .await
                .map_err(|error| (ForwardError::Dial(vec![error]), false))?,
        };
        let mut request = pending
            .take(connection.can_refuse())
            .expect("the policy repeats only what is kept");
        self.insert_kubelet_token(&mut request, key.transport);
        if let Some(interim) = interim {
            interim.listen(&mut request, headers::stays_on_hop);
        }
        let waiting = choice.then(|| {
            let begun = if reused { now } else { Instant::now() };
            connection
                .outstanding()
                .begin(begun, pending.body().cloned())
        });
        let mut error = match connection.send(request).await {
            Ok(response) => {
                if let Some(waiting) = waiting {
                    waiting.answered(Instant::now());
                    self.balance.answered(key);
                }
                if let Some(body) = pending.body() {
                    body.stop_buffering();
                }
                return Ok((response, connection));
            }
            Err(SendError::OutputFormat(error)) => return Err((error.into(), reused)),
            Err(SendError::Broken(error)) => error,
        };
        let unsent = error.take_message();
        let error = error.into_error();
        if pending.body().is_some_and(ReplayBody::is_broken) {
            return Err((ForwardError::Client(error), reused));
        }
        let safety = match unsent {
            Some(unsent) => {
                pending.put_back(unsent);
                RetrySafety::Unsent
            }
            None if is_refused(&error) => RetrySafety::Unprocessed,
            // A malformed answer is one all the same: the endpoint processed the request.
            None if error.is_parse() => RetrySafety::Never,
            None => RetrySafety::IfSafe,
        };
        Err((
            ForwardError::Broken {
                address: key.address,
                source: error,
                safety,
            },
            reused,
        ))
    }

    /// Connects to an endpoint. What the outcome says about the endpoint is recorded where another
    /// could be chosen.
    async fn dial(
        &self,
        attempt: &Attempt<'_>,
        attempts: &mut Attempts<'_>,
    ) -> Result<Connection, DialError> {
        let Attempt {
            key,
            protocol,
            choice,
            others,
            ..
        } = *attempt;
        let started = Instant::now();
        let dialed = self
            .pool
            .dial(key, protocol, attempts.connect_timeout(others))
            .await;
        attempts.spent_connecting(started.elapsed());
        match &dialed {
            Ok(_) if choice => self.balance.connected(key),
            Err(error) if choice && error.is_unreachable() => self.balance.connect_failed(key),
            _ => {}
        }
        dialed
    }

    fn insert_kubelet_token<B>(&self, request: &mut Request<B>, transport: Transport) {
        if transport == Transport::Kubelet
            && self.pool.shows_token_to_kubelets()
            && let Some(token) = &*self.kubelet_token.load()
        {
            request
                .headers_mut()
                .insert(header::AUTHORIZATION, HeaderValue::clone(token));
        }
    }
}

/// Whether the endpoint says that it did not look at the request (RFC 9113 section 8.7): it refused
/// the stream, or went away before it.
fn is_refused(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_remote()
                && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_who_is_to_blame_and_whether_a_retry_is_safe() {
        let address = "10.0.0.1:80".parse().unwrap();
        let dial = ForwardError::Dial(vec![DialError::Timeout { address }]);
        let upgrade = ForwardError::InvalidUpgrade(StatusCode::OK);
        for (error, blame, safety) in [
            (dial, Blame::UpstreamBody, RetrySafety::Unsent),
            (
                InvalidForm::NoPath.into(),
                Blame::Bastion,
                RetrySafety::Never,
            ),
            (upgrade, Blame::UpstreamBody, RetrySafety::Never),
            (
                ForwardError::UnaskedUpgrade("x".into()),
                Blame::UpstreamBody,
                RetrySafety::Never,
            ),
            (
                ForwardError::InvalidAccept,
                Blame::UpstreamBody,
                RetrySafety::Never,
            ),
        ] {
            assert_eq!(
                (error.blame(), error.retry_safety()),
                (blame, safety),
                "{error}"
            );
        }
        let dial = ForwardError::Dial(vec![DialError::Timeout { address }]);
        let logged = "dial tcp 10.0.0.1:80: i/o timeout (fault of the upstream; of the request: nothing was sent)";
        assert_eq!(dial.log_text(), logged);
    }

    #[test]
    fn the_last_failed_dial_is_told_last() {
        let failed = |last: u8| DialError::Timeout {
            address: ([10, 0, 0, last], 80).into(),
        };
        let error = ForwardError::Dial(vec![failed(3)]).after(vec![failed(1), failed(2)]);
        let told = "dial tcp 10.0.0.1:80: i/o timeout; dial tcp 10.0.0.2:80: i/o timeout; dial tcp 10.0.0.3:80: i/o timeout";
        assert_eq!(error.to_string(), told);
    }
}
