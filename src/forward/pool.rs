//! Connection pool, per endpoint and worker. It holds the idle HTTP/1.1 connections, used last in,
//! first out, so that surplus ones reach their idle timeout; and all HTTP/2 connections, each
//! shared by many requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Connection, Sender, Shared, start_http1, start_http2};
use super::dial::{DialError, Dialer, Protocol, Stream};
use super::outstanding::Outstanding;
use super::request::RequestBody;
use crate::balance::{EndpointKey, LoadBalancer};
use crate::resolve::Transport;

/// Interval between calls of [`Pool::detect_stalls`]. A fraction of the shortest useful limit; a
/// call visits each endpoint to which the worker has connections.
pub const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Idle HTTP/1.1 connection.
#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
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
    dialer: Arc<Dialer>,
    balance: Arc<LoadBalancer>,
    endpoints: RefCell<HashMap<EndpointKey, EndpointConnections>>,
    /// Time of the last stall check.
    checked: Cell<Instant>,
}

impl Pool {
    pub fn new(dialer: Arc<Dialer>, balance: Arc<LoadBalancer>) -> Self {
        Self {
            dialer,
            balance,
            endpoints: RefCell::default(),
            checked: Cell::new(Instant::now()),
        }
    }

    /// Takes a connection that is ready for a request: a shared one with room, else the idle one
    /// used last. `None` if a new connection is needed.
    pub(super) fn take(&self, key: EndpointKey, now: Instant) -> Option<Connection> {
        let mut endpoints = self.endpoints.borrow_mut();
        let EndpointConnections {
            outstanding,
            idle,
            shared,
        } = endpoints.get_mut(&key)?;
        let sender = if let Some(shared) = shared.iter().find(|shared| shared.has_room()) {
            shared.open_stream()
        } else {
            // A connection that is not ready is still sending the body of a request that got an
            // early response; it may become usable. Skipped connections are left to `sweep`, so
            // that a request does not pay for closing them.
            let index = idle
                .iter()
                .rposition(|idle| idle.sender.is_ready() && self.is_worth_keeping(idle, now))?;
            Sender::Http1(idle.remove(index).sender)
        };
        Some(Connection {
            key,
            sender,
            outstanding: Rc::clone(outstanding),
        })
    }

    /// Returns a connection to the pool after its response was read to the end. Shared connections
    /// never left it.
    pub(super) fn keep(&self, connection: Connection) {
        let Connection {
            key,
            sender: Sender::Http1(sender),
            outstanding,
        } = connection
        else {
            return;
        };
        // hyper closed it: the response had `Connection: close`, or the endpoint disconnected.
        if sender.is_closed() {
            return;
        }
        let mut endpoints = self.endpoints.borrow_mut();
        let idle = &mut endpoints
            .entry(key)
            .or_insert_with(|| EndpointConnections::new(outstanding))
            .idle;
        // Beyond the limit the sender is dropped, which closes the connection.
        if idle.len() < self.dialer.settings.max_idle_per_endpoint {
            idle.push(Idle {
                sender,
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
            idle.retain(|idle| self.is_worth_keeping(idle, now));
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
                .check(self.dialer.settings.slow_endpoint_timeout, now);
            if stalled && !late {
                self.balance.record_stall(*key, now);
            }
        }
    }

    /// Opens a connection: TCP, TLS if the transport uses it, and HTTP. An HTTP/2 connection is
    /// added to the pool.
    pub(super) async fn dial(
        &self,
        key: EndpointKey,
        protocol: Protocol,
        limit: Duration,
    ) -> Result<Connection, DialError> {
        let stream = self
            .dialer
            .dial(key.address, key.transport, protocol, limit)
            .await?;
        let started = match stream {
            // Without TLS there is no ALPN: cleartext HTTP/2 is used with prior knowledge.
            Stream::Plain(stream)
                if key.transport == Transport::H2c && protocol == Protocol::Any =>
            {
                self.dial_http2(key, stream).await
            }
            Stream::Plain(stream) => start_http1(stream).await.map(Sender::Http1),
            Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                self.dial_http2(key, stream).await
            }
            Stream::Tls(stream) => start_http1(stream).await.map(Sender::Http1),
        };
        // Neither start waits for the endpoint, so none needs a timeout: it fails only if the
        // connection is already broken.
        let sender = started.map_err(|source| DialError::Closed {
            address: key.address,
            source,
        })?;
        let outstanding = self
            .entry(&mut self.endpoints.borrow_mut(), key)
            .outstanding
            .clone();
        Ok(Connection {
            key,
            sender,
            outstanding,
        })
    }

    pub(super) fn sends_kubelet_token(&self) -> bool {
        self.dialer.sends_kubelet_token()
    }

    /// Starts HTTP/2, adds the connection to the pool, and opens its first stream.
    ///
    /// Concurrent requests that find no connection each dial one: the endpoint's protocol is known
    /// only after its handshake, and waiting for another request's handshake would couple their
    /// latencies. Surplus connections expire.
    async fn dial_http2<I>(&self, key: EndpointKey, stream: I) -> hyper::Result<Sender>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let shared = start_http2(stream).await?;
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

    fn is_worth_keeping(&self, idle: &Idle, now: Instant) -> bool {
        !idle.sender.is_closed() && !self.is_expired(idle.since, now)
    }

    fn is_expired(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= self.dialer.settings.idle_timeout
    }
}
