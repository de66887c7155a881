//! Open connections, per endpoint and worker. Of HTTP/1.1 the idle ones, last in, first out, so that those not needed
//! grow old and go; of HTTP/2 all, each shared by many requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::{Authority, Uri};
use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::dial::{DialError, Dialer, Protocol, Stream};
use super::executor::LocalExecutor;
use super::request::RequestBody;
use crate::resolve::Transport;

/// Requests on one HTTP/2 connection at once, where its endpoint does not set a lower limit; more open another. It is
/// the usual limit of servers.
const STREAMS: usize = 100;
/// What one stream may have in flight, and a connection, so that slow streams do not hold up the others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 100;
/// A silent HTTP/2 connection is asked whether it is there, and given this long to say so (CONFORMANCE C53).
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);

/// What a connection can be used again for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub address: SocketAddr,
    pub transport: Transport,
}

/// A connection to an endpoint, ready for a request. Its I/O runs in a task of its own, which ends with it.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    /// This request has it for itself.
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>, #[expect(dead_code, reason = "counts while it lives")] Stream2),
}

/// A request on a shared connection, counted as long as it lives.
#[derive(Debug)]
struct Stream2(Rc<Streams>);

/// The requests on a shared connection.
#[derive(Debug)]
struct Streams {
    open: Cell<usize>,
    /// How many the endpoint takes at once, as it last said.
    limit: Cell<usize>,
    /// When the last one ended.
    ended: Cell<Instant>,
}

impl Stream2 {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        Self(Rc::clone(streams))
    }
}

impl Drop for Stream2 {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.ended.set(Instant::now());
    }
}

impl Connection {
    /// Whether the endpoint can refuse a request without a look at it.
    pub(super) fn can_refuse(&self) -> bool {
        matches!(self.sender, Sender::Http2(..))
    }

    /// Sends a request, in the form that the connection's protocol wants.
    pub(super) async fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                as_http1(&mut request);
                sender.try_send_request(request).await
            }
            Sender::Http2(sender, _) => {
                as_http2(&mut request, self.key);
                sender.try_send_request(request).await
            }
        }
    }
}

/// A URI in origin form, and `Host`. The pipeline makes requests so; only one that an HTTP/2 connection gave back is not.
fn as_http1<B>(request: &mut Request<B>) {
    if request.version() == Version::HTTP_2 {
        let parts = std::mem::take(request.uri_mut()).into_parts();
        let host = parts.authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        request.headers_mut().extend(host.map(|host| (header::HOST, host)));
        *request.uri_mut() = parts.path_and_query.map(Uri::from).unwrap_or_default();
        *request.version_mut() = Version::HTTP_11;
    }
}

/// A URI with scheme and authority instead of `Host` (RFC 9113 section 8.3.1).
fn as_http2<B>(request: &mut Request<B>, key: Key) {
    let headers = request.headers_mut();
    // A stream frames itself.
    headers.remove(header::TRANSFER_ENCODING);
    let host = headers.remove(header::HOST);
    if request.version() == Version::HTTP_2 {
        return;
    }
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = key.transport.scheme().as_str().parse().ok();
    parts.authority = authority.or_else(|| key.address.to_string().parse().ok());
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Rc<Streams>,
}

impl Shared {
    fn has_room(&self) -> bool {
        !self.sender.is_closed() && self.streams.open.get() < self.streams.limit.get().min(STREAMS)
    }
}

/// What is open to one endpoint.
#[derive(Debug, Default)]
struct Open {
    idle: Vec<Idle>,
    shared: Vec<Shared>,
}

/// The connections of one worker. Nothing here is shared with another: no lock, no wake-up of another thread.
#[derive(Debug)]
pub struct Pool {
    dialer: Arc<Dialer>,
    open: RefCell<HashMap<Key, Open>>,
}

impl Pool {
    pub fn new(dialer: Arc<Dialer>) -> Self {
        Self { dialer, open: RefCell::default() }
    }

    /// A connection that can take a request now: a shared one with room, else the youngest idle one.
    pub(super) fn take(&self, key: Key) -> Option<Connection> {
        let mut open = self.open.borrow_mut();
        let Open { idle, shared } = open.get_mut(&key)?;
        let now = Instant::now();
        if let Some(shared) = shared.iter_mut().find(|shared| shared.has_room()) {
            let sender = Sender::Http2(shared.sender.clone(), Stream2::new(&shared.streams));
            return Some(Connection { key, sender });
        }
        // One that is not ready yet still sends the body of a request that was answered early. The rest is for `sweep`.
        let ready = idle.iter().rposition(|idle| idle.sender.is_ready() && self.is_worth_keeping(idle, now))?;
        Some(Connection { key, sender: Sender::Http1(idle.remove(ready).sender) })
    }

    /// Keeps a connection whose answer has been read to its end. A shared one is kept already.
    pub(super) fn keep(&self, connection: Connection) {
        let Connection { key, sender: Sender::Http1(sender) } = connection else { return };
        if sender.is_closed() {
            return;
        }
        let mut open = self.open.borrow_mut();
        let idle = &mut open.entry(key).or_default().idle;
        if idle.len() < self.dialer.settings.max_idle_per_endpoint {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    /// Drops what is closed or has been idle too long. Each worker calls it every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.open.borrow_mut().retain(|_, Open { idle, shared }| {
            idle.retain(|idle| self.is_worth_keeping(idle, now));
            shared.retain(|shared| {
                let Streams { open, ended, .. } = &*shared.streams;
                let idle = open.get() == 0 && self.is_old(ended.get(), now);
                !shared.sender.is_closed() && !idle
            });
            !(idle.is_empty() && shared.is_empty())
        });
    }

    /// Connects and shakes hands.
    pub(super) async fn dial(&self, key: Key, protocol: Protocol, others: bool) -> Result<Connection, DialError> {
        let stream = self.dialer.dial(key.address, key.transport, protocol, others).await?;
        let handshake = match stream {
            Stream::Plain(stream) if key.transport == Transport::H2c && protocol == Protocol::Any => {
                self.http2(key, stream).await
            }
            Stream::Plain(stream) => serve(stream).await.map(Sender::Http1),
            Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => self.http2(key, stream).await,
            Stream::Tls(stream) => serve(stream).await.map(Sender::Http1),
        };
        // Nothing is waited for in a handshake of HTTP: it fails only where the connection broke at once.
        let sender = handshake
            .map_err(|error| DialError::Connect { address: key.address, source: std::io::Error::other(error) })?;
        Ok(Connection { key, sender })
    }

    pub(super) fn shows_token_to_kubelets(&self) -> bool {
        self.dialer.shows_token_to_kubelets()
    }

    /// Makes a shared connection of a stream, and takes the first place on it.
    async fn http2<I>(&self, key: Key, stream: I) -> hyper::Result<Sender>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_BYTES)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .handshake(TokioIo::new(stream))
            .await?;
        let streams =
            Rc::new(Streams { open: Cell::new(0), limit: Cell::new(STREAMS), ended: Cell::new(Instant::now()) });
        let told = Rc::clone(&streams);
        tokio::task::spawn_local(async move {
            let mut connection = pin!(connection);
            let ended = poll_fn(|context| {
                let polled = connection.as_mut().poll(context);
                told.limit.set(connection.current_max_send_streams());
                polled
            });
            if let Err(error) = ended.await {
                tracing::debug!(%error, "a connection to an endpoint ended with an error");
            }
        });
        let stream = Stream2::new(&streams);
        let shared = Shared { sender: sender.clone(), streams };
        self.open.borrow_mut().entry(key).or_default().shared.push(shared);
        Ok(Sender::Http2(sender, stream))
    }

    fn is_worth_keeping(&self, idle: &Idle, now: Instant) -> bool {
        !idle.sender.is_closed() && !self.is_old(idle.since, now)
    }

    fn is_old(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= self.dialer.settings.idle_timeout
    }
}

/// Bytes of the head of a message, as Go allows them (CONFORMANCE C102). Their number stays at hyper's 100, which is
/// Envoy's and HAProxy's too: a higher one makes hyper set up a list of that length for every message, which at 256 was
/// measured as an eighth of all instructions of a request.
pub const MAX_HEADER_BYTES: u32 = 1024 * 1024;

async fn serve<I>(stream: I) -> hyper::Result<http1::SendRequest<RequestBody>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        // As Go writes them; there are backends that look for `Host` to the letter.
        .title_case_headers(true)
        .max_header_size(MAX_HEADER_BYTES as usize)
        .max_buf_size(MAX_HEADER_BYTES as usize)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an endpoint ended with an error");
        }
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_the_form_of_its_connection_and_back() {
        let key = Key { address: "10.0.0.1:80".parse().unwrap(), transport: Transport::H2c };
        let mut request = Request::get("/a?b").header("host", "bastion.example").body(()).unwrap();
        as_http2(&mut request, key);
        assert_eq!(
            (request.uri(), request.version()),
            (&"http://bastion.example/a?b".parse().unwrap(), Version::HTTP_2)
        );
        assert!(request.headers().is_empty());
        as_http1(&mut request);
        assert_eq!((request.uri().to_string(), request.version()), ("/a?b".into(), Version::HTTP_11));
        assert_eq!(request.headers()["host"], "bastion.example");
        let mut request = Request::get("/").body(()).unwrap();
        as_http2(&mut request, Key { transport: Transport::Https, ..key });
        assert_eq!(request.uri(), "https://10.0.0.1:80/");
    }
}
