//! Upstream side of the proxy: sends a request to the endpoints of its route in the order of the
//! load balancer, retries within the retry policy, streams bodies in both directions, and carries
//! upgrades.

mod api;
mod classify;
mod connect;
mod connection;
mod dial;
mod error;
mod headers;
mod http1_endpoints;
mod http1_signal;
mod outstanding;
mod pool;
mod request;
mod response;
mod retry;
mod server_name;
mod tls_error;
mod tunnel;
mod upgrade;
mod uri;

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use prometheus_client::metrics::counter::Counter;

pub use api::{ApiError, ApiForwarder, ApiRequest, ApiResponse};
pub use dial::{DialError, Dialer, OwnAddresses, is_local_address};
pub use error::{Blame, ConnectionError, ForwardError};
pub use headers::{RequestHeaderRewriter, sanitize_request_trailers, sanitize_response_headers};
pub use http1_endpoints::Http1Endpoints;
pub use pool::{Pool, STALL_CHECK_INTERVAL};
pub use request::{BodyError, TrailerFilter};
pub use response::{UpstreamBody, UpstreamError};
pub use retry::{RetryPolicy, RetrySafety};
pub use tunnel::Tunnel;
pub use upgrade::{Upgrade, UpgradeOutcome, new_websocket_key, websocket_accept};
pub use uri::InvalidRequestUri;

use crate::authorize::Permit;
use crate::balance::{EndpointKey, LoadBalancer};
use crate::http::h1::ParsedResponse;
use crate::http::{Interim, RequestBody, RequestHead};
use crate::model::Endpoint;
use crate::resolve::{Route, Transport};
use classify::classify;
use connection::Connection;
use dial::Protocol;
use pool::Destination;
use request::{MAX_REPLAY_BYTES, Pending, ReplayBody};
use response::Incoming;
use retry::{Attempts, Decision, Failure};
use server_name::ServerName;

/// Pipeline stage that sends requests to endpoints. One per worker; state that workers share is
/// behind `Arc`s.
#[derive(Debug)]
pub struct Forwarder {
    pub dialer: Arc<Dialer>,
    pub pool: Rc<Pool>,
    pub balance: Arc<LoadBalancer>,
    pub retry: RetryPolicy,
    /// `Bearer …` of the bastion's own account, sent to kubelets with a verified certificate if no
    /// client certificate is configured (CONFORMANCE C32). Replaced when the token rotates.
    pub kubelet_token: Arc<ArcSwapOption<HeaderValue>>,
    /// Counts header lines of responses without a valid name.
    pub dropped_lines: Counter,
}

/// Request ready to be sent: headers rewritten, target of the endpoint.
#[derive(Debug)]
pub struct UpstreamRequest<'a> {
    pub head: &'a mut RequestHead,
    pub body: Option<OutgoingBody>,
    /// Receives interim responses. `None` if the client cannot receive them.
    pub interim: Option<InterimReceiver<'a>>,
}

/// Receiver of interim responses.
pub struct InterimReceiver<'a> {
    pub client: Interim,
    /// Rewrites the headers of a response, the last argument, to a request with the given headers,
    /// from an address. Returns false if the response must not be forwarded.
    pub rewrite: &'a dyn Fn(&HeaderMap, SocketAddr, &mut HeaderMap) -> bool,
}

impl std::fmt::Debug for InterimReceiver<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InterimReceiver").finish_non_exhaustive()
    }
}

/// Body of a request that is forwarded.
#[derive(Debug)]
pub struct OutgoingBody {
    pub body: RequestBody,
    /// Counts the bytes of the body as they pass.
    pub received: Rc<Cell<u64>>,
    pub trailers: TrailerFilter,
}

/// Response of an endpoint, and the endpoint that sent it.
#[derive(Debug)]
pub struct UpstreamResponse {
    pub response: Response<UpstreamBody>,
    pub endpoint: Endpoint,
}

/// Parameters of one attempt to send a request.
#[derive(Clone, Copy, Debug)]
struct Attempt<'a> {
    key: EndpointKey,
    protocol: Protocol,
    name: ServerName<'a>,
    /// A pooled connection may be used.
    reuse: bool,
    /// The route has several endpoints.
    choice: bool,
    /// Endpoints remain after this one.
    others: bool,
    interim: Option<&'a InterimReceiver<'a>>,
}

/// Error of one attempt.
struct FailedAttempt {
    error: ForwardError,
    /// The connection had served a request before.
    reused: bool,
}

/// Returns the error for a 101 to a request without an upgrade. The bytes after it are not HTTP, and
/// the caller is authorized for one request only: dropping the connection keeps them from being read
/// as the next response (CVE-2018-1002105).
fn unrequested_upgrade(response: &Response<Incoming>) -> ForwardError {
    let protocol = response
        .headers()
        .get(header::UPGRADE)
        .and_then(|protocol| protocol.to_str().ok())
        .unwrap_or_default();
    ForwardError::UnrequestedUpgrade(protocol.to_owned())
}

impl Forwarder {
    /// Sends the request to the endpoints in turn until one responds. The permit proves that the
    /// caller is authorized. `dialed` is set to each endpoint before it is tried, so that the
    /// access log names it even if the request fails or is cancelled.
    ///
    /// # Errors
    /// [`ForwardError`] if no endpoint responded, or the response must not be forwarded.
    pub async fn send(
        &self,
        permit: &Permit<'_>,
        route: &Route,
        mut outgoing: UpstreamRequest<'_>,
        client: IpAddr,
        dialed: &mut Option<Endpoint>,
    ) -> Result<UpstreamResponse, ForwardError> {
        let (response, connection, endpoint) = self
            .exchange(permit, route, &mut outgoing, client, Protocol::Any, dialed)
            .await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(unrequested_upgrade(&response));
        }
        let response = response.map(|body| UpstreamBody::pooled(body, connection, &self.pool));
        Ok(UpstreamResponse { response, endpoint })
    }

    /// Sends an upgrade request on a new connection; `dialed` as in [`Self::send`].
    ///
    /// # Errors
    /// [`ForwardError`] if no endpoint responded, or the response to the upgrade is invalid.
    pub async fn upgrade(
        &self,
        permit: &Permit<'_>,
        route: &Route,
        mut outgoing: UpstreamRequest<'_>,
        client: IpAddr,
        upgrade: &Upgrade,
        dialed: &mut Option<Endpoint>,
    ) -> Result<UpgradeOutcome, ForwardError> {
        let (response, connection, endpoint) = self
            .exchange(
                permit,
                route,
                &mut outgoing,
                client,
                Protocol::Http1,
                dialed,
            )
            .await?;
        let outcome = UpgradeOutcome::new(response, connection, upgrade)?;
        Ok(outcome.map(|response| UpstreamResponse { response, endpoint }))
    }

    /// Tries the endpoints in turn, as often as the retry policy allows. With `Protocol::Http1` all
    /// connections are new and do not return to the pool.
    async fn exchange(
        &self,
        permit: &Permit<'_>,
        route: &Route,
        outgoing: &mut UpstreamRequest<'_>,
        client: IpAddr,
        mut protocol: Protocol,
        dialed: &mut Option<Endpoint>,
    ) -> Result<(Response<Incoming>, Connection, Endpoint), ForwardError> {
        let mut now = Instant::now();
        let UpstreamRequest {
            head,
            body,
            interim,
        } = outgoing;
        let mut reuse = protocol == Protocol::Any;
        // Only HTTP/2 endpoints can reject a request unprocessed, so the body is buffered only if
        // the connection may turn out to be HTTP/2.
        let can_refuse = reuse && self.dialer.may_use_http2(route.transport);
        let body = body.take().map(|outgoing| {
            let OutgoingBody {
                body,
                received,
                trailers,
            } = outgoing;
            let limit = if can_refuse { MAX_REPLAY_BYTES } else { 0 };
            ReplayBody::new(body, received, trailers, limit)
        });
        let mut pending = Pending::new(head, body);
        let mut order = self
            .balance
            .select(&route.candidates, route.transport, client);
        let choice = order.len() > 1;
        let mut attempts =
            self.retry
                .begin(route.candidates.retries(), choice, pending.is_safe(), now);
        let name = ServerName::new(permit.target(), route);
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
                name,
                reuse,
                choice,
                others: order.len() > 0,
                interim: interim.as_ref(),
            };
            let FailedAttempt { error, reused } = match self
                .attempt(&attempt, &mut attempts, &mut pending, now)
                .await
            {
                Ok((response, connection)) => {
                    return Ok((response, connection, endpoint.clone()));
                }
                Err(failed) => failed,
            };
            let requires_http1 = error.requires_http1();
            if requires_http1 {
                self.dialer.require_http1(attempt.key);
                self.pool.forget_http2(attempt.key);
                protocol = Protocol::Http1;
            }
            let mut safety = error.retry_safety();
            // The endpoint allows a retry, but it is possible only if the body was buffered from
            // its first byte.
            if safety == RetrySafety::Unprocessed && !pending.rewind() {
                safety = RetrySafety::Never;
            }
            now = Instant::now();
            let failure = Failure {
                safety,
                reused,
                requires_http1,
            };
            match attempts.after(failure, order.len() > 0, now) {
                // `next` stays the same endpoint.
                Decision::Reconnect => {}
                Decision::NextEndpoint => next = order.next(),
                Decision::GiveUp => return Err(error.after(failed_dials)),
            }
            match error {
                ForwardError::Dial(errors) => failed_dials.extend(errors),
                // After one pooled connection failed, the others are likely stale too. Using only
                // new ones from here on bounds the number of attempts.
                _ => reuse = false,
            }
        }
        Err(ForwardError::Dial(failed_dials))
    }

    /// Sends the request to one endpoint, on a pooled connection or a new one.
    async fn attempt(
        &self,
        attempt: &Attempt<'_>,
        attempts: &mut Attempts<'_>,
        pending: &mut Pending<'_>,
        now: Instant,
    ) -> Result<(Response<Incoming>, Connection), FailedAttempt> {
        let key = attempt.key;
        let (mut connection, reused) = match attempt
            .reuse
            .then(|| {
                self.pool
                    .take(Destination::Endpoint(key), attempt.name, now)
            })
            .flatten()
        {
            Some(connection) => (connection, true),
            // Boxed, because most requests find a connection, and a TLS handshake is large.
            None => match Box::pin(self.dial(attempt, attempts)).await {
                Ok(connection) => (connection, false),
                Err(error) => {
                    return Err(FailedAttempt {
                        error: ForwardError::Dial(vec![error]),
                        reused: false,
                    });
                }
            },
        };
        let failed = |error| FailedAttempt { error, reused };
        self.insert_kubelet_token(pending.head, key.transport);
        let request = &*pending;
        let on_interim = |response: ParsedResponse| {
            if let Some(interim) = attempt.interim {
                let ParsedResponse {
                    status,
                    mut headers,
                    names,
                    ..
                } = response;
                headers::sanitize_interim_headers(&mut headers);
                // A flood of them must cost little.
                if interim.client.has_room(&headers)
                    && (interim.rewrite)(&request.head.headers, key.address, &mut headers)
                {
                    interim.client.send(status, headers, names.as_ref());
                }
            }
        };
        // Response times are tracked only if another endpoint could serve instead: without a
        // choice, an ejection has no effect. `now` is stale after a connect.
        let waiting = attempt.choice.then(|| {
            let sent = if reused { now } else { Instant::now() };
            connection
                .outstanding()
                .begin(sent, pending.body().cloned())
        });
        match connection.send(request, on_interim).await {
            Ok((response, dropped)) => {
                if dropped > 0 {
                    self.dropped_lines.inc_by(dropped);
                }
                if let Some(waiting) = waiting {
                    waiting.finish(Instant::now());
                    self.balance.record_response(key);
                }
                // A response was received, so the request is not sent again.
                if let Some(body) = pending.body() {
                    body.stop_buffering();
                }
                Ok((response, connection))
            }
            Err(error) => Err(failed(classify(error, pending).at(key.address))),
        }
    }

    /// Connects to an endpoint. If the route has several endpoints, the result is reported to the
    /// load balancer.
    async fn dial(
        &self,
        attempt: &Attempt<'_>,
        attempts: &mut Attempts<'_>,
    ) -> Result<Connection, DialError> {
        let Attempt {
            key,
            protocol,
            name,
            choice,
            others,
            ..
        } = *attempt;
        let started = Instant::now();
        let limit = attempts.connect_timeout(others);
        let dialed = self.connect(key, protocol, name, limit).await;
        attempts.spent_connecting(started.elapsed());
        match &dialed {
            Ok(_) if choice => self.balance.record_connect(key),
            Err(error) if choice && error.is_unreachable() => {
                self.balance.record_connect_failure(key);
            }
            _ => {}
        }
        dialed
    }

    /// Opens a connection: TCP, TLS with the server name if the transport uses it, and HTTP.
    async fn connect(
        &self,
        key: EndpointKey,
        protocol: Protocol,
        name: ServerName<'_>,
        limit: Duration,
    ) -> Result<Connection, DialError> {
        let name = name.to_text();
        let protocol = match protocol {
            Protocol::Any => self.dialer.protocol(key),
            Protocol::Http1 => Protocol::Http1,
        };
        let stream = self
            .dialer
            .dial(key, protocol, name.as_deref(), limit)
            .await?;
        let http2 = match stream.alpn_protocol() {
            Some(selected) => selected == b"h2",
            // Without TLS there is no ALPN: cleartext HTTP/2 is used with prior knowledge.
            None => key.transport == Transport::H2c && protocol == Protocol::Any,
        };
        let destination = Destination::Endpoint(key);
        let started = self.pool.start(destination, name, stream, http2).await;
        started.map_err(|source| DialError::Closed {
            address: key.address,
            source,
        })
    }

    fn insert_kubelet_token(&self, head: &mut RequestHead, transport: Transport) {
        if transport == Transport::Kubelet
            && self.dialer.sends_kubelet_token()
            && let Some(token) = &*self.kubelet_token.load()
        {
            let token = HeaderValue::clone(token);
            head.headers.insert(header::AUTHORIZATION, token);
        }
    }
}
