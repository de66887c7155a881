//! Open connections, per endpoint and worker. Of HTTP/1.1 the idle ones, last in, first out, so
//! that those not needed grow old and go; of HTTP/2 all, each shared by many requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::{Authority, InvalidUriParts, Scheme, Uri};
use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::dial::{DialError, Dialer, Protocol, Stream};
use super::outstanding::Outstanding;
use super::request::RequestBody;
use crate::balance::{EndpointKey, LoadBalancer};
use crate::http::{LocalExecutor, MAX_HEADER_BYTES};
use crate::model::Scheme as ModelScheme;
use crate::resolve::Transport;

/// Requests on one HTTP/2 connection at once, where its endpoint does not set a lower limit; more
/// open another. It is the usual limit of servers.
const STREAMS: usize = 100;
/// What one stream may have in flight, and a connection, so that slow streams do not hold up the
/// others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 100;
/// A silent HTTP/2 connection is asked whether it is there, and given this long to say so
/// (CONFORMANCE C53).
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);

/// Interval between calls of [`Pool::detect_stalls`]. A fraction of the shortest useful limit; a
/// call costs a look at each endpoint that the worker has connections to.
pub const STALL_CHECK: Duration = Duration::from_millis(200);

/// A connection to an endpoint, ready for a request. Its I/O runs in a task of its own, which ends
/// with it.
#[derive(Debug)]
pub struct Connection {
    key: EndpointKey,
    sender: Sender,
    outstanding: Rc<Outstanding>,
}

/// Why a request got no response on a connection.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large variant is the common one, and lives for some lines"
)]
pub(super) enum SendError {
    /// The request has no form in the connection's protocol.
    OutputFormat(InvalidForm),
    Broken(TrySendError<Request<RequestBody>>),
}

/// The URI of a request cannot be put into the form of HTTP/1.1 or HTTP/2. The request must not go
/// out: with another URI it would be another request.
#[derive(Debug, thiserror::Error)]
pub enum InvalidForm {
    #[error("no path")]
    NoPath,
    #[error(transparent)]
    Parts(#[from] InvalidUriParts),
    #[error("{0:?} is not a header value")]
    Host(Authority),
}

#[derive(Debug)]
enum Sender {
    /// This request has it for itself.
    Http1(http1::SendRequest<RequestBody>),
    Http2(
        http2::SendRequest<RequestBody>,
        #[expect(dead_code, reason = "counts while it lives")] StreamGuard,
    ),
}

/// A request on a shared connection, counted as long as it lives.
#[derive(Debug)]
struct StreamGuard(Rc<Streams>);

/// The requests on a shared connection.
#[derive(Debug)]
struct Streams {
    open: Cell<usize>,
    /// How many the endpoint takes at once, as it last said.
    limit: Cell<usize>,
    /// When the last one ended.
    ended: Cell<Instant>,
}

impl StreamGuard {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        Self(Rc::clone(streams))
    }
}

impl Drop for StreamGuard {
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

    pub(super) fn outstanding(&self) -> &Rc<Outstanding> {
        &self.outstanding
    }

    /// Sends a request, in the form that the connection's protocol wants.
    pub(super) async fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        let sent = match &mut self.sender {
            Sender::Http1(sender) => {
                as_http1(&mut request).map_err(SendError::OutputFormat)?;
                sender.try_send_request(request).await
            }
            Sender::Http2(sender, _) => {
                as_http2(&mut request, self.key).map_err(SendError::OutputFormat)?;
                sender.try_send_request(request).await
            }
        };
        sent.map_err(SendError::Broken)
    }
}

/// A URI in origin form, and `Host`. The pipeline makes requests so; only one that an HTTP/2
/// connection gave back is not.
fn as_http1<B>(request: &mut Request<B>) -> Result<(), InvalidForm> {
    if request.version() != Version::HTTP_2 {
        return Ok(());
    }
    let parts = request.uri().clone().into_parts();
    *request.uri_mut() = Uri::from(parts.path_and_query.ok_or(InvalidForm::NoPath)?);
    if let Some(authority) = parts.authority {
        let host =
            HeaderValue::from_str(authority.as_str()).map_err(|_| InvalidForm::Host(authority))?;
        request.headers_mut().insert(header::HOST, host);
    }
    *request.version_mut() = Version::HTTP_11;
    Ok(())
}

/// A URI with scheme and authority instead of `Host` (RFC 9113 section 8.3.1).
fn as_http2<B>(request: &mut Request<B>, key: EndpointKey) -> Result<(), InvalidForm> {
    let headers = request.headers_mut();
    // A stream frames itself.
    headers.remove(header::TRANSFER_ENCODING);
    let host = headers.remove(header::HOST);
    if request.version() == Version::HTTP_2 {
        return Ok(());
    }
    // A `Host` that names no authority, as an empty one (RFC 9110 section 7.2), has no form in
    // HTTP/2: the endpoint is named by its address.
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(match key.transport.scheme() {
        ModelScheme::Http => Scheme::HTTP,
        ModelScheme::Https => Scheme::HTTPS,
    });
    parts.authority = authority.or_else(|| key.address.to_string().parse().ok());
    *request.uri_mut() = Uri::from_parts(parts)?;
    *request.version_mut() = Version::HTTP_2;
    Ok(())
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
#[derive(Debug)]
struct Open {
    outstanding: Rc<Outstanding>,
    idle: Vec<Idle>,
    shared: Vec<Shared>,
}

impl Open {
    fn new(outstanding: Rc<Outstanding>) -> Self {
        Self {
            outstanding,
            idle: Vec::new(),
            shared: Vec::new(),
        }
    }
}

/// The connections of one worker. Nothing here is shared with another: no lock, no wake-up of
/// another thread.
#[derive(Debug)]
pub struct Pool {
    dialer: Arc<Dialer>,
    balance: Arc<LoadBalancer>,
    open: RefCell<HashMap<EndpointKey, Open>>,
    /// The time of the last search for stalls.
    checked: Cell<Instant>,
}

impl Pool {
    pub fn new(dialer: Arc<Dialer>, balance: Arc<LoadBalancer>) -> Self {
        Self {
            dialer,
            balance,
            open: RefCell::default(),
            checked: Cell::new(Instant::now()),
        }
    }

    /// A connection that can take a request now: a shared one with room, else the youngest idle
    /// one.
    pub(super) fn take(&self, key: EndpointKey, now: Instant) -> Option<Connection> {
        let mut open = self.open.borrow_mut();
        let Open {
            outstanding,
            idle,
            shared,
        } = open.get_mut(&key)?;
        if let Some(shared) = shared.iter_mut().find(|shared| shared.has_room()) {
            let sender = Sender::Http2(shared.sender.clone(), StreamGuard::new(&shared.streams));
            return Some(Connection {
                key,
                sender,
                outstanding: Rc::clone(outstanding),
            });
        }
        // One that is not ready yet still sends the body of a request that was answered early. The
        // rest is for `sweep`.
        let ready = idle
            .iter()
            .rposition(|idle| idle.sender.is_ready() && self.is_worth_keeping(idle, now))?;
        let sender = Sender::Http1(idle.remove(ready).sender);
        Some(Connection {
            key,
            sender,
            outstanding: Rc::clone(outstanding),
        })
    }

    /// Keeps a connection whose answer has been read to its end. A shared one is kept already.
    pub(super) fn keep(&self, connection: Connection) {
        let Connection {
            key,
            sender: Sender::Http1(sender),
            outstanding,
        } = connection
        else {
            return;
        };
        if sender.is_closed() {
            return;
        }
        let mut open = self.open.borrow_mut();
        let idle = &mut open
            .entry(key)
            .or_insert_with(|| Open::new(outstanding))
            .idle;
        if idle.len() < self.dialer.settings.max_idle_per_endpoint {
            idle.push(Idle {
                sender,
                since: Instant::now(),
            });
        }
    }

    /// Drops what is closed or has been idle too long. Each worker calls it every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.open.borrow_mut().retain(
            |_,
             Open {
                 outstanding,
                 idle,
                 shared,
             }| {
                idle.retain(|idle| self.is_worth_keeping(idle, now));
                shared.retain(|shared| {
                    let Streams { open, ended, .. } = &*shared.streams;
                    let idle = open.get() == 0 && self.is_old(ended.get(), now);
                    !shared.sender.is_closed() && !idle
                });
                // Connections in use hold a share of it, and are to find the same one when they
                // come back.
                let in_use = Rc::strong_count(outstanding) > 1 || outstanding.is_in_use();
                in_use || !(idle.is_empty() && shared.is_empty())
            },
        );
    }

    /// Has endpoints ejected on which requests wait and that answer nothing. Each worker calls it
    /// every [`STALL_CHECK`].
    pub fn detect_stalls(&self) {
        let now = Instant::now();
        // A worker that was held up itself has not read yet what was answered meanwhile: it must
        // not blame endpoints.
        let late = now.saturating_duration_since(self.checked.replace(now)) >= 2 * STALL_CHECK;
        for (key, open) in &*self.open.borrow() {
            let stalled = open
                .outstanding
                .check(self.dialer.settings.slow_endpoint_timeout, now);
            if stalled && !late {
                self.balance.stalled(*key, now);
            }
        }
    }

    /// Connects and shakes hands.
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
        let handshake = match stream {
            Stream::Plain(stream)
                if key.transport == Transport::H2c && protocol == Protocol::Any =>
            {
                self.http2(key, stream).await
            }
            Stream::Plain(stream) => serve(stream).await.map(Sender::Http1),
            Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                self.http2(key, stream).await
            }
            Stream::Tls(stream) => serve(stream).await.map(Sender::Http1),
        };
        // Nothing is waited for in a handshake of HTTP: it fails only where the connection broke at
        // once.
        let sender = handshake.map_err(|source| DialError::Closed {
            address: key.address,
            source,
        })?;
        let outstanding = self
            .opened(&mut self.open.borrow_mut(), key)
            .outstanding
            .clone();
        Ok(Connection {
            key,
            sender,
            outstanding,
        })
    }

    fn opened<'o>(
        &self,
        open: &'o mut HashMap<EndpointKey, Open>,
        key: EndpointKey,
    ) -> &'o mut Open {
        let outstanding = || Rc::new(Outstanding::new(self.balance.health(key), Instant::now()));
        open.entry(key).or_insert_with(|| Open::new(outstanding()))
    }

    pub(super) fn shows_token_to_kubelets(&self) -> bool {
        self.dialer.shows_token_to_kubelets()
    }

    /// Makes a shared connection of a stream, and takes the first place on it.
    async fn http2<I>(&self, key: EndpointKey, stream: I) -> hyper::Result<Sender>
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
        let streams = Rc::new(Streams {
            open: Cell::new(0),
            limit: Cell::new(STREAMS),
            ended: Cell::new(Instant::now()),
        });
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
        let stream = StreamGuard::new(&streams);
        let shared = Shared {
            sender: sender.clone(),
            streams,
        };
        self.opened(&mut self.open.borrow_mut(), key)
            .shared
            .push(shared);
        Ok(Sender::Http2(sender, stream))
    }

    fn is_worth_keeping(&self, idle: &Idle, now: Instant) -> bool {
        !idle.sender.is_closed() && !self.is_old(idle.since, now)
    }

    fn is_old(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= self.dialer.settings.idle_timeout
    }
}

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
        let key = EndpointKey {
            address: "10.0.0.1:80".parse().unwrap(),
            transport: Transport::H2c,
        };
        let mut request = Request::get("/a?b")
            .header("host", "bastion.example")
            .body(())
            .unwrap();
        as_http2(&mut request, key).unwrap();
        assert_eq!(
            (request.uri(), request.version()),
            (
                &"http://bastion.example/a?b".parse().unwrap(),
                Version::HTTP_2
            )
        );
        assert!(request.headers().is_empty());
        as_http1(&mut request).unwrap();
        assert_eq!(
            (request.uri().to_string(), request.version()),
            ("/a?b".into(), Version::HTTP_11)
        );
        assert_eq!(request.headers()["host"], "bastion.example");
        let mut request = Request::get("/").body(()).unwrap();
        as_http2(
            &mut request,
            EndpointKey {
                transport: Transport::Https,
                ..key
            },
        )
        .unwrap();
        assert_eq!(request.uri(), "https://10.0.0.1:80/");
    }

    #[test]
    fn a_request_without_a_path_is_an_error_and_not_a_request_for_the_root() {
        let key = EndpointKey {
            address: "10.0.0.1:80".parse().unwrap(),
            transport: Transport::H2c,
        };
        let mut request = Request::get("example.com:80").body(()).unwrap();
        assert!(matches!(
            as_http2(&mut request, key),
            Err(InvalidForm::Parts(_))
        ));
        assert_eq!(request.uri(), "example.com:80");
        *request.version_mut() = Version::HTTP_2;
        assert!(matches!(as_http1(&mut request), Err(InvalidForm::NoPath)));
        assert_eq!(request.uri(), "example.com:80");
    }
}
