//! Connection pool, per endpoint and worker. It holds the idle HTTP/1.1 connections, used last in,
//! first out, so that surplus ones reach their idle timeout; and all HTTP/2 connections, each
//! shared by many requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{self, Connection, Keepalive, Sender, Shared};
use super::outstanding::Outstanding;
use super::server_name::ServerName;
use crate::apiservers::{Credential, ServerId};
use crate::balance::{EndpointKey, LastResponse, LoadBalancer};
use crate::config;
use crate::http::Stream;
use crate::http::h1::ClientConnection;
use crate::model::Scheme;

/// Interval between calls of [`Pool::detect_stalls`]. A fraction of the shortest useful limit; a
/// call visits each endpoint to which the worker has connections.
pub const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Destination of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Destination {
    Endpoint(EndpointKey),
    ApiServer(ServerId, Credential),
}

impl Destination {
    /// Returns the address for requests without a `Host`, which those to API servers always have.
    pub fn default_host(self) -> SocketAddr {
        match self {
            Self::Endpoint(key) => key.address,
            Self::ApiServer(..) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 443)),
        }
    }

    pub fn scheme(self) -> Scheme {
        match self {
            Self::Endpoint(key) => key.transport.scheme(),
            // HTTP/2, for which the scheme is needed, is negotiated by ALPN.
            Self::ApiServer(..) => Scheme::Https,
        }
    }

    /// Limits the time for which an idle connection is kept: API servers close theirs after 90 s,
    /// which must not cross a request.
    fn max_idle_time(self) -> Duration {
        match self {
            Self::Endpoint(_) => Duration::MAX,
            Self::ApiServer(..) => Duration::from_mins(1),
        }
    }

    fn keepalive(self) -> Keepalive {
        match self {
            Self::Endpoint(_) => Keepalive::ENDPOINT,
            Self::ApiServer(..) => Keepalive::API_SERVER,
        }
    }
}

/// Idle HTTP/1.1 connection.
#[derive(Debug)]
struct Idle {
    connection: Box<ClientConnection>,
    /// Server name of its handshake.
    name: Option<Box<str>>,
    since: Instant,
}

/// Connections to one endpoint.
#[derive(Debug)]
struct EndpointConnections {
    outstanding: Rc<Outstanding>,
    idle: Vec<Idle>,
    shared: Vec<Shared>,
}

impl EndpointConnections {
    fn new(outstanding: Rc<Outstanding>) -> Self {
        Self {
            outstanding,
            idle: Vec::new(),
            shared: Vec::new(),
        }
    }
}

/// Connections of one worker. Workers share none of them, so that a request takes no lock and wakes
/// no other thread.
#[derive(Debug)]
pub struct Pool {
    settings: config::Upstream,
    balance: Arc<LoadBalancer>,
    endpoints: RefCell<HashMap<Destination, EndpointConnections>>,
    /// Time of the last stall check.
    checked: Cell<Instant>,
}

impl Pool {
    pub fn new(settings: config::Upstream, balance: Arc<LoadBalancer>) -> Self {
        Self {
            settings,
            balance,
            endpoints: RefCell::default(),
            checked: Cell::new(Instant::now()),
        }
    }

    /// Takes a connection with the server name that is ready for a request: a shared one with room,
    /// else the idle one used last. `None` if a new connection is needed.
    pub(super) fn take(
        &self,
        destination: Destination,
        name: ServerName<'_>,
        now: Instant,
    ) -> Option<Connection> {
        let mut endpoints = self.endpoints.borrow_mut();
        let EndpointConnections {
            outstanding,
            idle,
            shared,
        } = endpoints.get_mut(&destination)?;
        let ready = |shared: &&Shared| shared.has_room() && name.is(shared.name());
        let (sender, name) = if let Some(shared) = shared.iter().find(ready) {
            (shared.open_stream(), None)
        } else {
            // Connections that the endpoint has closed are dropped on the way.
            loop {
                let last = idle
                    .iter()
                    .rposition(|idle| name.is(idle.name.as_deref()))?;
                let mut last = idle.remove(last);
                if self.is_worth_keeping(destination, &mut last, now) {
                    break (Sender::Http1(last.connection), last.name);
                }
            }
        };
        Some(Connection {
            destination,
            name,
            sender,
            outstanding: Rc::clone(outstanding),
            guard: None,
        })
    }

    /// Returns a connection to the pool after its response was read to the end. Shared connections
    /// never left it.
    pub(super) fn keep(&self, connection: Connection) {
        let Connection {
            destination,
            name,
            sender: Sender::Http1(mut connection),
            outstanding,
            ..
        } = connection
        else {
            return;
        };
        if !connection.is_reusable() {
            return;
        }
        connection.release_buffers();
        let mut endpoints = self.endpoints.borrow_mut();
        let idle = &mut endpoints
            .entry(destination)
            .or_insert_with(|| EndpointConnections::new(outstanding))
            .idle;
        // Beyond the limit the connection is dropped, which closes it.
        if idle.len() < self.settings.max_idle_per_endpoint {
            idle.push(Idle {
                connection,
                name,
                since: Instant::now(),
            });
        }
    }

    /// Drops closed connections and those past the idle timeout. Each worker calls it every few
    /// seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.endpoints
            .borrow_mut()
            .retain(|destination, connections| {
                let EndpointConnections {
                    outstanding,
                    idle,
                    shared,
                } = connections;
                idle.retain_mut(|idle| self.is_worth_keeping(*destination, idle, now));
                shared.retain(|shared| {
                    let expired = shared
                        .idle_since()
                        .is_some_and(|since| self.is_expired(*destination, since, now));
                    !shared.is_closed() && !expired
                });
                // Connections in use hold clones of `outstanding`. Dropping the entry would give the
                // endpoint a second one, and split its response times between the two.
                let in_use = Rc::strong_count(outstanding) > 1 || outstanding.is_in_use();
                in_use || !(idle.is_empty() && shared.is_empty())
            });
    }

    /// Ejects endpoints that stopped responding while requests wait. Each worker calls it every
    /// [`STALL_CHECK_INTERVAL`].
    pub fn detect_stalls(&self) {
        let now = Instant::now();
        // If this worker was blocked, responses may be in its socket buffers, unread: the delay is
        // its own, and must not eject endpoints.
        let late =
            now.saturating_duration_since(self.checked.replace(now)) >= 2 * STALL_CHECK_INTERVAL;
        for (destination, connections) in &*self.endpoints.borrow() {
            let Destination::Endpoint(key) = destination else {
                continue;
            };
            let stalled = connections
                .outstanding
                .check(self.settings.slow_endpoint_timeout, now);
            if stalled && !late {
                self.balance.record_stall(*key, now);
            }
        }
    }

    /// Starts HTTP on a new connection with a server name. One over HTTP/2 is added to the pool.
    ///
    /// # Errors
    /// The connection is already broken. The start does not wait for the endpoint, so it needs no
    /// timeout.
    pub(super) async fn start(
        &self,
        destination: Destination,
        mut name: Option<Box<str>>,
        stream: Stream,
        http2: bool,
    ) -> hyper::Result<Connection> {
        let sender = if http2 {
            self.start_http2(destination, name.take(), stream).await?
        } else {
            Sender::Http1(Box::new(ClientConnection::new(stream)))
        };
        let outstanding = self
            .entry(&mut self.endpoints.borrow_mut(), destination)
            .outstanding
            .clone();
        Ok(Connection {
            destination,
            name,
            sender,
            outstanding,
            guard: None,
        })
    }

    /// Drops the connections to API servers with credentials of `Own` generations other than the
    /// current one. Their requests go on.
    pub(super) fn retire_other_generations(&self, current: u32) {
        self.endpoints
            .borrow_mut()
            .retain(|destination, _| match destination {
                Destination::ApiServer(_, Credential::Own { generation }) => *generation == current,
                _ => true,
            });
    }

    /// Drops the HTTP/2 connections to an endpoint. Their requests go on.
    pub(super) fn forget_http2(&self, key: EndpointKey) {
        let destination = Destination::Endpoint(key);
        if let Some(connections) = self.endpoints.borrow_mut().get_mut(&destination) {
            connections.shared.clear();
        }
    }

    /// Starts HTTP/2, adds the connection to the pool, and opens its first stream.
    ///
    /// Concurrent requests that find no connection each dial one: the endpoint's protocol is known
    /// only after its handshake, and waiting for another request's handshake would couple their
    /// latencies. Surplus connections expire.
    async fn start_http2(
        &self,
        destination: Destination,
        name: Option<Box<str>>,
        stream: Stream,
    ) -> hyper::Result<Sender> {
        let keepalive = destination.keepalive();
        let shared = connection::start_http2(stream, name, keepalive).await?;
        // Opened before the connection is visible to others, so that the first stream is ours.
        let sender = shared.open_stream();
        self.entry(&mut self.endpoints.borrow_mut(), destination)
            .shared
            .push(shared);
        Ok(sender)
    }

    fn entry<'e>(
        &self,
        endpoints: &'e mut HashMap<Destination, EndpointConnections>,
        destination: Destination,
    ) -> &'e mut EndpointConnections {
        endpoints.entry(destination).or_insert_with(|| {
            let last_response = match destination {
                Destination::Endpoint(key) => self.balance.last_response(key),
                Destination::ApiServer(..) => Arc::new(LastResponse::new(Instant::now())),
            };
            EndpointConnections::new(Rc::new(Outstanding::new(last_response, Instant::now())))
        })
    }

    fn is_worth_keeping(&self, destination: Destination, idle: &mut Idle, now: Instant) -> bool {
        !self.is_expired(destination, idle.since, now) && idle.connection.is_open()
    }

    fn is_expired(&self, destination: Destination, since: Instant, now: Instant) -> bool {
        let limit = self.settings.idle_timeout.min(destination.max_idle_time());
        now.saturating_duration_since(since) >= limit
    }
}
