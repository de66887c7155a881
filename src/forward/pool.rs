//! Idle connections, per endpoint and worker: last in, first out, so that those not needed grow old and go.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::dial::{DialError, Dialer, Stream};
use super::request::RequestBody;
use crate::resolve::Transport;

/// What a connection can be used again for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub address: SocketAddr,
    pub transport: Transport,
}

/// A connection to an endpoint, ready for a request. Its I/O runs in a task of its own, which ends with it.
#[derive(Debug)]
pub struct Connection {
    pub(super) key: Key,
    pub(super) sender: http1::SendRequest<RequestBody>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// The idle connections of one worker. Nothing here is shared: no lock, no wake-up of another thread.
#[derive(Debug)]
pub struct Pool {
    dialer: Arc<Dialer>,
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
}

impl Pool {
    pub fn new(dialer: Arc<Dialer>) -> Self {
        Self { dialer, idle: RefCell::default() }
    }

    /// The youngest idle connection that can take a request now.
    pub(super) fn take(&self, key: Key) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&key)?;
        let now = Instant::now();
        connections.retain(|idle| self.is_worth_keeping(idle, now));
        // One that is not ready yet still sends the body of a request that was answered early.
        let ready = connections.iter().rposition(|idle| idle.connection.sender.is_ready())?;
        Some(connections.remove(ready).connection)
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(super) fn keep(&self, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(connection.key).or_default();
        if connections.len() < self.dialer.settings.max_idle_per_endpoint {
            connections.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Drops what is closed or has been idle too long. Each worker calls it every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|idle| self.is_worth_keeping(idle, now));
            !connections.is_empty()
        });
    }

    /// Connects and shakes hands, for a request or an upgrade.
    pub(super) async fn dial(&self, key: Key, others: bool) -> Result<Connection, DialError> {
        let stream = self.dialer.dial(key.address, key.transport, others).await?;
        let handshake = match stream {
            Stream::Plain(stream) => serve(stream).await,
            Stream::Tls(stream) => serve(stream).await,
        };
        // Nothing is read or written in a handshake of HTTP/1.1: it fails only where the runtime is ending.
        let sender = handshake
            .map_err(|error| DialError::Connect { address: key.address, source: std::io::Error::other(error) })?;
        Ok(Connection { key, sender })
    }

    pub(super) fn shows_token_to_kubelets(&self) -> bool {
        self.dialer.shows_token_to_kubelets()
    }

    fn is_worth_keeping(&self, idle: &Idle, now: Instant) -> bool {
        !idle.connection.sender.is_closed()
            && now.saturating_duration_since(idle.since) < self.dialer.settings.idle_timeout
    }
}

/// Bytes of the head of a message, as Go allows them (CONFORMANCE C102). Their number stays at hyper's 100, which is
/// Envoy's and HAProxy's too: a higher one makes hyper set up a list of that length for every message, which at 256 was
/// measured as an eighth of all instructions of a request.
pub const MAX_HEADER_BYTES: u32 = 1024 * 1024;

async fn serve<I>(stream: I) -> hyper::Result<http1::SendRequest<RequestBody>>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        // As Go writes them; there are backends that look for `Host` to the letter.
        .title_case_headers(true)
        .max_header_size(MAX_HEADER_BYTES as usize)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an endpoint ended with an error");
        }
    });
    Ok(sender)
}
