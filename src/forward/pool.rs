//! Connection pool, per endpoint and worker. It holds the idle HTTP/1.1 connections, used last in,
//! first out, so that surplus ones reach their idle timeout; and all HTTP/2 connections, each
//! shared by many requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{self, Connection, Sender, Shared};
use super::outstanding::Outstanding;
use super::server_name::ServerName;
use crate::balance::{EndpointKey, LoadBalancer};
use crate::config;
use crate::http::Stream;
use crate::http::h1::ClientConnection;

/// Interval between calls of [`Pool::detect_stalls`]. A fraction of the shortest useful limit; a
/// call visits each endpoint to which the worker has connections.
pub const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(200);

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
    endpoints: RefCell<HashMap<EndpointKey, EndpointConnections>>,
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
        key: EndpointKey,
        name: ServerName<'_>,
        now: Instant,
    ) -> Option<Connection> {
        let mut endpoints = self.endpoints.borrow_mut();
        let EndpointConnections {
            outstanding,
            idle,
            shared,
        } = endpoints.get_mut(&key)?;
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
                if self.is_worth_keeping(&mut last, now) {
                    break (Sender::Http1(last.connection), last.name);
                }
            }
        };
        Some(Connection {
            key,
            name,
            sender,
            outstanding: Rc::clone(outstanding),
        })
    }

    /// Returns a connection to the pool after its response was read to the end. Shared connections
    /// never left it.
    pub(super) fn keep(&self, connection: Connection) {
        let Connection {
            key,
            name,
            sender: Sender::Http1(mut connection),
            outstanding,
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
            .entry(key)
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
        self.endpoints.borrow_mut().retain(|_, connections| {
            let EndpointConnections {
                outstanding,
                idle,
                shared,
            } = connections;
            idle.retain_mut(|idle| self.is_worth_keeping(idle, now));
            shared.retain(|shared| {
                let expired = shared
                    .idle_since()
                    .is_some_and(|since| self.is_expired(since, now));
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
        for (key, connections) in &*self.endpoints.borrow() {
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
        key: EndpointKey,
        mut name: Option<Box<str>>,
        stream: Stream,
        http2: bool,
    ) -> hyper::Result<Connection> {
        let sender = if http2 {
            self.start_http2(key, name.take(), stream).await?
        } else {
            Sender::Http1(Box::new(ClientConnection::new(stream)))
        };
        let outstanding = self
            .entry(&mut self.endpoints.borrow_mut(), key)
            .outstanding
            .clone();
        Ok(Connection {
            key,
            name,
            sender,
            outstanding,
        })
    }

    /// Drops the HTTP/2 connections to an endpoint. Their requests go on.
    pub(super) fn forget_http2(&self, key: EndpointKey) {
        if let Some(connections) = self.endpoints.borrow_mut().get_mut(&key) {
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
        key: EndpointKey,
        name: Option<Box<str>>,
        stream: Stream,
    ) -> hyper::Result<Sender> {
        let shared = connection::start_http2(stream, name).await?;
        // Opened before the connection is visible to others, so that the first stream is ours.
        let sender = shared.open_stream();
        self.entry(&mut self.endpoints.borrow_mut(), key)
            .shared
            .push(shared);
        Ok(sender)
    }

    fn entry<'e>(
        &self,
        endpoints: &'e mut HashMap<EndpointKey, EndpointConnections>,
        key: EndpointKey,
    ) -> &'e mut EndpointConnections {
        endpoints.entry(key).or_insert_with(|| {
            let last_response = self.balance.last_response(key);
            EndpointConnections::new(Rc::new(Outstanding::new(last_response, Instant::now())))
        })
    }

    fn is_worth_keeping(&self, idle: &mut Idle, now: Instant) -> bool {
        !self.is_expired(idle.since, now) && idle.connection.is_open()
    }

    fn is_expired(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= self.settings.idle_timeout
    }
}
