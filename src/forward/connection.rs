//! One connection to an endpoint, over HTTP/1.1 or HTTP/2.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Response, header};
use http_body::Body;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::http1_signal::{Http1Detector, Http1Reason, Http1Signal};
use super::outstanding::Outstanding;
use super::pool::Destination;
use super::request::{BodyError, Pending, RequestBody};
use super::response::Incoming;
use super::uri::{InvalidRequestUri, to_http2};
use crate::apiservers::RequestGuard;
use crate::http::h1::{BodyLength, ClientConnection, ExchangeError, ParsedResponse, Upload};
use crate::http::{LocalExecutor, MAX_HEADER_BYTES, ObservedStream, Stream};

/// Maximum number of concurrent requests on one HTTP/2 connection, unless its endpoint sets a lower
/// limit; more requests open another connection. It is the usual limit of servers.
const MAX_STREAMS: usize = 100;
/// HTTP/2 flow-control windows in bytes. The connection has room for all its streams, so that slow
/// clients of some streams do not block the others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 100;

/// HTTP/2 keepalive: interval of PINGs on a silent connection with requests, and timeout of their
/// acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keepalive {
    interval: Duration,
    timeout: Duration,
}

impl Keepalive {
    /// CONFORMANCE C53.
    pub const ENDPOINT: Self = Self {
        interval: Duration::from_secs(30),
        timeout: Duration::from_secs(15),
    };
    /// A frozen API server has to be noticed earlier: nothing else ends its watches.
    pub const API_SERVER: Self = Self {
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(10),
    };
}

/// Connection to an endpoint, ready for one request. A separate task runs the I/O of HTTP/2 and ends
/// when the connection is closed or all its senders are dropped.
#[derive(Debug)]
pub struct Connection {
    pub(super) destination: Destination,
    /// Server name of the handshake of an HTTP/1.1 connection.
    pub(super) name: Option<Box<str>>,
    pub(super) sender: Sender,
    pub(super) outstanding: Rc<Outstanding>,
    /// Request on an API server, which lasts until the connection has no more use for it.
    pub(super) guard: Option<Box<RequestGuard>>,
}

#[derive(Debug)]
pub(super) enum Sender {
    /// Exclusive to one request at a time.
    Http1(Box<ClientConnection>),
    /// Shared by many requests.
    Http2(http2::SendRequest<RequestBody>, StreamGuard),
}

/// Error of sending a request on a connection.
#[derive(Debug)]
pub(super) enum SendError {
    /// The URI has no form in the protocol of the connection.
    InvalidRequestUri(InvalidRequestUri),
    Http1(ExchangeError<BodyError>),
    /// `sent` tells if the connection took the request, `http1` whether the endpoint requires
    /// HTTP/1.1.
    Http2 {
        source: hyper::Error,
        sent: bool,
        http1: Option<Http1Reason>,
    },
    /// The endpoint requires HTTP/1.1, and has not answered a request that may be sent again.
    Http1Required,
}

impl Connection {
    /// Returns true if the endpoint can refuse a request without processing it, which only HTTP/2
    /// can express.
    pub(super) fn can_refuse(&self) -> bool {
        matches!(self.sender, Sender::Http2(..))
    }

    pub(super) fn outstanding(&self) -> &Rc<Outstanding> {
        &self.outstanding
    }

    /// Sends a request in the form of the connection's protocol. Returns the response head, and the
    /// number of its header lines that were dropped for their invalid name. Interim responses of
    /// HTTP/1.1 are given to `on_interim`.
    pub(super) async fn send(
        &mut self,
        pending: &Pending<'_>,
        on_interim: impl FnMut(ParsedResponse),
    ) -> Result<(Response<Incoming>, u64), SendError> {
        let body = pending.attempt_body(self.can_refuse());
        match &mut self.sender {
            Sender::Http1(connection) => {
                let mut upload = pending.body().is_some().then(|| {
                    let length = match body.size_hint().exact() {
                        Some(length) => BodyLength::Known(length),
                        None => BodyLength::Chunked,
                    };
                    Box::new(Upload::new(body, length, pending.expects_continue()))
                });
                let address = self.destination.default_host();
                let parsed = connection
                    .exchange(pending.head, address, &mut upload, on_interim)
                    .await
                    .map_err(SendError::Http1)?;
                let ParsedResponse {
                    status,
                    reason,
                    headers,
                    names,
                    dropped,
                    ..
                } = parsed;
                let mut response = Response::new(Incoming::Http1(upload));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                // Both are rare: extensions allocate.
                if let Some(names) = names {
                    response.extensions_mut().insert(names);
                }
                if let Some(reason) = reason {
                    response.extensions_mut().insert(reason);
                }
                Ok((response, dropped))
            }
            Sender::Http2(sender, StreamGuard(streams)) => {
                let request = to_http2(pending.head, self.destination)
                    .map_err(SendError::InvalidRequestUri)?;
                // `try_send_request` returns the request if none of it was written, so that it can
                // be sent elsewhere whatever its method.
                let sent = sender.try_send_request(request.map(|()| body));
                let sent = Box::pin(async {
                    tokio::select! {
                        biased;
                        sent = sent => Some(sent),
                        // A GOAWAY lets requests finish that the endpoint may have processed. One
                        // that requires HTTP/1.1 may leave them without an answer, though, so that
                        // safe ones do not wait for it.
                        () = streams.http1.raised(), if pending.is_safe() => None,
                    }
                });
                match sent.await {
                    Some(Ok(mut response)) => {
                        keep_first_length(response.headers_mut());
                        Ok((response.map(Incoming::Http2), 0))
                    }
                    Some(Err(mut error)) => Err(SendError::Http2 {
                        sent: error.take_message().is_none(),
                        source: error.into_error(),
                        http1: streams.http1.reason(),
                    }),
                    None => Err(SendError::Http1Required),
                }
            }
        }
    }
}

/// Removes all lengths but the first, which h2 compares with the body. Two equal ones would be
/// invalid for many clients.
fn keep_first_length(headers: &mut HeaderMap) {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let (Some(first), Some(_)) = (lengths.next(), lengths.next()) {
        let first = first.clone();
        headers.insert(header::CONTENT_LENGTH, first);
    }
}

/// Request on a shared connection, counted until it is dropped.
#[derive(Debug)]
pub(super) struct StreamGuard(Rc<Streams>);

/// Number of requests on a shared connection.
#[derive(Debug)]
struct Streams {
    open: Cell<usize>,
    /// Latest `SETTINGS_MAX_CONCURRENT_STREAMS` of the endpoint.
    limit: Cell<usize>,
    /// Time when the last request ended.
    ended: Cell<Instant>,
    /// Raised once the endpoint requires HTTP/1.1.
    http1: Rc<Http1Signal>,
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

/// HTTP/2 connection that many requests share.
#[derive(Debug)]
pub(super) struct Shared {
    sender: http2::SendRequest<RequestBody>,
    /// Server name of the handshake.
    name: Option<Box<str>>,
    streams: Rc<Streams>,
}

impl Shared {
    pub(super) fn has_room(&self) -> bool {
        !self.is_closed()
            && self.streams.http1.reason().is_none()
            && self.streams.open.get() < self.streams.limit.get().min(MAX_STREAMS)
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Returns the time when the last request ended. `None` while a request is open.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.streams.open.get() == 0).then(|| self.streams.ended.get())
    }

    /// Reserves a stream for one request.
    pub(super) fn open_stream(&self) -> Sender {
        Sender::Http2(self.sender.clone(), StreamGuard::new(&self.streams))
    }
}

/// Starts HTTP/2 on a stream with a server name.
pub(super) async fn start_http2(
    stream: Stream,
    name: Option<Box<str>>,
    keepalive: Keepalive,
) -> hyper::Result<Shared> {
    let http1 = Rc::<Http1Signal>::default();
    let stream = ObservedStream::new(stream, Http1Detector::new(Rc::clone(&http1)));
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(keepalive.interval)
        .keep_alive_timeout(keepalive.timeout)
        .handshake(TokioIo::new(stream))
        .await?;
    let streams = Rc::new(Streams {
        open: Cell::new(0),
        limit: Cell::new(MAX_STREAMS),
        ended: Cell::new(Instant::now()),
        http1,
    });
    let observed = Rc::clone(&streams);
    tokio::task::spawn_local(async move {
        let mut connection = pin!(connection);
        // hyper queues requests beyond the endpoint's limit instead of rejecting them. Reading the
        // limit after every poll, the only time when it can change, lets the pool open another
        // connection instead.
        let ended = poll_fn(|context| {
            let polled = connection.as_mut().poll(context);
            observed.limit.set(connection.current_max_send_streams());
            polled
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "connection to an endpoint failed");
        }
    });
    Ok(Shared {
        sender,
        name,
        streams,
    })
}
