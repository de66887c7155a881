//! Requests to API servers: the server with the fewest outstanding requests gets a request, and
//! another one gets it again if that has no effect but its response.

mod error;
mod frozen;
mod repeat;
mod shutdown;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Response, StatusCode, header};
use tokio::time::timeout;

use super::classify::{Classified, classify};
use super::connection::Connection;
use super::dial::{Protocol, lacks_resources};
use super::pool::{Destination, Pool};
use super::request::Pending;
use super::response::{Incoming, UpstreamBody};
use super::retry::RetrySafety;
use super::server_name::ServerName;
use super::{OutgoingBody, Upgrade, UpgradeOutcome, unrequested_upgrade};
pub use error::ApiError;
use frozen::{frozen, no_response};
use repeat::{is_apply, is_repeatable, replayable};
use shutdown::announces_shutdown;

use crate::apiservers::{
    ApiServer, ApiServers, Credential, Health, Lifetime, RequestGuard, is_long,
};
use crate::balance::LoadBalancer;
use crate::config;
use crate::http::h1::ParsedResponse;
use crate::http::{Interim, RequestHead, RequestTarget};
use crate::metrics::EjectionMetrics;
use crate::model::error_chain;

/// Maximum time of a dial, with and without another server that can be tried next.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const FAILOVER_DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of attempts of one request.
const MAX_ATTEMPTS: usize = 10;

/// Sends requests to API servers. One per thread.
#[derive(Clone, Debug)]
pub struct ApiForwarder {
    pub servers: ApiServers,
    pub pool: Rc<Pool>,
}

/// Request to an API server.
#[derive(Debug)]
pub struct ApiRequest<'a> {
    /// Its `Host` and path are those for a server whose [`ServerConfig`] sets none. A target from
    /// [`RequestTarget::to_absolute_form`] and its `Host` reach a server unchanged, which is a
    /// proxy.
    ///
    /// [`ServerConfig`]: crate::apiservers::ServerConfig
    pub head: &'a mut RequestHead,
    pub body: Option<OutgoingBody>,
    pub credential: Credential,
    /// Receives interim responses. `None` if the client cannot receive them.
    pub interim: Option<Interim>,
}

/// Response of an API server.
#[derive(Debug)]
pub struct ApiResponse<T = Response<UpstreamBody>> {
    pub response: T,
    pub server: Arc<ApiServer>,
}

/// Parameters of one attempt.
struct Attempt<'a> {
    credential: Credential,
    protocol: Protocol,
    interim: Option<&'a Interim>,
    dial_timeout: Duration,
    /// A response over HTTP/1.1 must begin within 75 s, however healthy the server is.
    limits_response: bool,
}

impl Attempt<'_> {
    fn destination(&self, server: &ApiServer) -> Destination {
        Destination::ApiServer(server.id, self.credential)
    }

    /// Sends the request on a connection. Over HTTP/1.1, a server that is frozen fails it.
    async fn send(
        &self,
        connection: Connection,
        server: &ApiServer,
        pending: &Pending<'_>,
    ) -> Result<(Response<Incoming>, Connection), Classified> {
        // HTTP/2 has its own keepalive.
        let is_http2 = connection.can_refuse();
        let sent = send(connection, pending, self.interim);
        if is_http2 {
            return sent.await;
        }
        tokio::select! {
            biased;
            sent = sent => sent,
            () = frozen(server, pending, self.limits_response) => Err(no_response()),
        }
    }
}

/// Response to one attempt.
enum Answer {
    Response(Response<UpstreamBody>),
    Switched(Response<Incoming>, Connection),
}

/// Failure of one attempt.
enum Failed {
    /// Nothing was sent.
    Dial(io::Error),
    Connection(Classified),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Dial(error)
    }
}

impl From<Classified> for Failed {
    fn from(error: Classified) -> Self {
        Self::Connection(error)
    }
}

impl ApiForwarder {
    /// Creates a forwarder with connections of its own, for a process without endpoints.
    pub fn new(servers: ApiServers) -> Self {
        Self::with_settings(servers, config::Upstream::default())
    }

    /// Creates a forwarder as [`Self::new`], whose servers keep idle connections for at least this
    /// time.
    pub fn with_idle_timeout(servers: ApiServers, idle_timeout: Duration) -> Self {
        let settings = config::Upstream {
            idle_timeout,
            ..config::Upstream::default()
        };
        Self::with_settings(servers, settings)
    }

    fn with_settings(servers: ApiServers, settings: config::Upstream) -> Self {
        let balance = Arc::new(LoadBalancer::new(EjectionMetrics::default()));
        Self {
            servers,
            pool: Rc::new(Pool::new(settings, balance)),
        }
    }

    /// Sends a request and streams the response.
    ///
    /// # Errors
    /// [`ApiError`] if no server responded.
    pub async fn send(&self, request: ApiRequest<'_>) -> Result<ApiResponse, ApiError> {
        let (answer, server) = self.exchange(request, Protocol::Any).await?;
        let response = match answer {
            Answer::Response(response) => response,
            Answer::Switched(response, _) => {
                return Err(ApiError::Response(unrequested_upgrade(&response)));
            }
        };
        Ok(ApiResponse { response, server })
    }

    /// Sends an upgrade on a connection of its own. All responses but 101 are refusals, which are
    /// forwarded.
    ///
    /// # Errors
    /// [`ApiError`] if no server responded, or switched to a protocol that was not offered.
    pub async fn upgrade(
        &self,
        request: ApiRequest<'_>,
        upgrade: &Upgrade,
    ) -> Result<ApiResponse<UpgradeOutcome<Response<UpstreamBody>>>, ApiError> {
        upgrade.write_request(request.head);
        let (answer, server) = self.exchange(request, Protocol::Http1).await?;
        let response = match answer {
            Answer::Response(response) => UpgradeOutcome::Refused(response),
            Answer::Switched(response, connection) => {
                UpgradeOutcome::new(response, connection, upgrade)?
            }
        };
        Ok(ApiResponse { response, server })
    }

    /// Closes idle connections with another client certificate than that of the generation.
    pub fn retire_other_generations(&self, current: u32) {
        self.pool.retire_other_generations(current);
    }

    /// Tries the servers in turn until one responds. With `Protocol::Http1` all connections are new
    /// and serve one request.
    async fn exchange(
        &self,
        request: ApiRequest<'_>,
        protocol: Protocol,
    ) -> Result<(Answer, Arc<ApiServer>), ApiError> {
        let ApiRequest {
            head,
            body,
            credential,
            interim,
        } = request;
        let target = head.target.clone();
        let is_long =
            protocol == Protocol::Http1 || is_long(&head.method, target.path(), target.query());
        let lifetime = if is_long {
            Lifetime::Long
        } else {
            Lifetime::Short
        };
        let is_apply = is_apply(&head.method, &head.headers);
        let mut pending = Pending::new(
            head,
            body.map(|body| replayable(body, credential, is_apply)),
        );
        if is_apply {
            pending = pending.idempotent();
        }
        if protocol == Protocol::Http1 {
            // An upgrade may run a command.
            pending = pending.with_effect();
        }
        let mut tried = Vec::new();
        let mut failure = None;
        for _ in 0..MAX_ATTEMPTS {
            let Some(guard) = self.servers.select(&tried, lifetime) else {
                break;
            };
            let server = Arc::clone(guard.server());
            readdress(&mut pending, &server, &target);
            let next = self.servers.next_health(&tried, server.id);
            let others = next.is_some();
            let attempt = Attempt {
                credential,
                protocol,
                interim: interim.as_ref(),
                dial_timeout: if others {
                    FAILOVER_DIAL_TIMEOUT
                } else {
                    DIAL_TIMEOUT
                },
                // A client may take its time to send a body.
                limits_response: !credential.may_use_http2() && pending.body().is_none(),
            };
            match self.attempt(&attempt, guard, &mut pending).await {
                Ok(answer) => {
                    server.responded();
                    let answer = match announces_shutdown(answer).await {
                        (answer, false) => answer,
                        (answer, true) => {
                            server.set_aside(Health::NotReady, "it is shutting down");
                            tried.push(server.id);
                            if others && pending.rewind() {
                                continue;
                            }
                            answer
                        }
                    };
                    if let Some(body) = pending.body() {
                        body.stop_buffering();
                    }
                    return Ok((answer, server));
                }
                Err(Failed::Dial(error)) => {
                    if !is_own_failure(&error) {
                        server.set_aside(Health::Unreachable, &error_chain(&error));
                    }
                    tried.push(server.id);
                }
                Err(Failed::Connection(Classified::Client(source))) => {
                    return Err(ApiError::Client(source));
                }
                Err(Failed::Connection(Classified::InvalidRequestUri(error))) => {
                    return Err(error.into());
                }
                Err(Failed::Connection(Classified::Broken { source, safety, .. })) => {
                    if safety != RetrySafety::Never {
                        server.connection_broke();
                    }
                    let name = server.config.name.clone();
                    if !is_repeatable(safety, &mut pending) {
                        return Err(match safety {
                            // Its body is too long to be kept: the client has it.
                            RetrySafety::Unprocessed => ApiError::Failed {
                                server: name,
                                source,
                            },
                            _ => ApiError::Interrupted {
                                server: name,
                                source,
                            },
                        });
                    }
                    // A server that refuses a request on a new connection is alive, and may be the
                    // only one that is ready.
                    if safety != RetrySafety::Unprocessed || next == Some(Health::Ready) {
                        tried.push(server.id);
                    }
                    failure = Some(ApiError::Failed {
                        server: name,
                        source,
                    });
                }
            }
        }
        Err(failure.unwrap_or_else(|| ApiError::Unreachable(self.servers.failures())))
    }

    /// Sends the request to one server: on a pooled connection, and if that turns out to be closed,
    /// on a new one.
    async fn attempt(
        &self,
        attempt: &Attempt<'_>,
        guard: RequestGuard,
        pending: &mut Pending<'_>,
    ) -> Result<Answer, Failed> {
        let destination = attempt.destination(guard.server());
        if attempt.protocol == Protocol::Any
            && let Some(connection) = self
                .pool
                .take(destination, ServerName::None, Instant::now())
        {
            match attempt.send(connection, guard.server(), pending).await {
                Ok((response, connection)) => {
                    return Ok(self.answer(attempt, guard, response, connection));
                }
                Err(Classified::Broken { safety, .. }) if is_repeatable(safety, pending) => {}
                Err(failed) => return Err(Failed::Connection(failed)),
            }
        }
        // Boxed, because most requests find a connection.
        let connection = Box::pin(self.dial(attempt, guard.server())).await?;
        let sent = attempt.send(connection, guard.server(), pending);
        let (response, connection) = sent.await?;
        Ok(self.answer(attempt, guard, response, connection))
    }

    async fn dial(&self, attempt: &Attempt<'_>, server: &ApiServer) -> io::Result<Connection> {
        let Attempt {
            credential,
            protocol,
            dial_timeout,
            ..
        } = *attempt;
        let http2 = protocol == Protocol::Any && credential.may_use_http2();
        let connecting = server.config.connector.connect(credential, http2);
        let stream = timeout(dial_timeout, connecting)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))??;
        let http2 = stream.alpn_protocol() == Some(b"h2");
        let destination = attempt.destination(server);
        let started = self.pool.start(destination, None, stream, http2).await;
        started.map_err(io::Error::other)
    }

    fn answer(
        &self,
        attempt: &Attempt<'_>,
        guard: RequestGuard,
        response: Response<Incoming>,
        mut connection: Connection,
    ) -> Answer {
        connection.guard = Some(Box::new(guard));
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Answer::Switched(response, connection);
        }
        Answer::Response(response.map(|body| match attempt.protocol {
            Protocol::Any => UpstreamBody::pooled(body, connection, &self.pool),
            Protocol::Http1 => UpstreamBody::closing(body, connection),
        }))
    }
}

/// Sets the `Host` and the path that the URL of a server requires, also after an attempt with
/// another server. A request for a proxy names another host.
fn readdress(pending: &mut Pending<'_>, server: &ApiServer, target: &RequestTarget) {
    if target.proxied().is_some() {
        return;
    }
    let config = &server.config;
    if let Some(host) = &config.host {
        pending.head.headers.insert(header::HOST, host.clone());
    }
    pending.head.target = if config.path.is_empty() {
        target.clone()
    } else {
        target.with_path(&[&*config.path, target.path()].concat())
    };
}

/// Returns true for failures of this process, which say nothing about the server.
fn is_own_failure(error: &io::Error) -> bool {
    let no_port_is_left = error.kind() == io::ErrorKind::AddrNotAvailable;
    no_port_is_left || lacks_resources(error)
}

/// Sends the request on a connection.
async fn send(
    mut connection: Connection,
    pending: &Pending<'_>,
    interim: Option<&Interim>,
) -> Result<(Response<Incoming>, Connection), Classified> {
    let on_interim = |response: ParsedResponse| {
        let ParsedResponse {
            status,
            mut headers,
            names,
            ..
        } = response;
        super::headers::sanitize_interim_headers(&mut headers);
        if let Some(interim) = interim
            && interim.has_room(&headers)
        {
            interim.send(status, headers, names.as_ref());
        }
    };
    match connection.send(pending, on_interim).await {
        Ok((response, _)) => Ok((response, connection)),
        Err(error) => Err(classify(error, pending)),
    }
}

#[cfg(test)]
mod tests;
