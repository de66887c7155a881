//! Connections of HTTP/2 clients (RFC 9113), on the crate h2.
//!
//! One task drives a connection, and one task each of its streams, all on the same worker. hyper's
//! server is not used: it sends no interim responses, and has no timeout for a client that does not
//! read.

mod body;
mod burst;
mod byte_stream;
mod heads;
mod keepalive;
mod meter;
mod response;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Response, StatusCode, Version, header};

use super::h1::{RejectedLine, RequestError, Timeouts};
use super::handler::{self, Handler, Reply};
use super::head_memory::HeadMemory;
use super::{MAX_HEADER_BYTES, ObservedStream, Request, RequestBody, Stream};
use crate::drain::{Drain, DrainWatch};

pub use body::Incoming;
pub use byte_stream::{ByteStream, Reset};

use burst::Burst;
use heads::{Blocks, Heads, fields_length};
use keepalive::Keepalive;
use meter::Meter;
use response::ResponseWriter;

/// Stream that became a tunnel.
pub type UpgradedStream = ByteStream<Box<dyn Any>>;

/// Maximum number of concurrent streams of a connection, as kube-apiserver (CONFORMANCE C102).
const MAX_STREAMS: u32 = 100;
/// Flow-control windows in bytes: that of a stream as kube-apiserver's, that of the connection with
/// room for all streams, so that slow uploads do not block the others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS;
/// Number of streams that a connection remembers after their reset, and for how long. Frames of a
/// client that does not know of the reset yet are ignored then. Those of other ended streams count
/// as errors, and too many errors close the connection.
const MAX_RESET_STREAMS: usize = 10 * MAX_STREAMS as usize;
const RESET_STREAM_DURATION: Duration = Duration::from_secs(10);
/// Maximum number of bytes that wait in h2 for a client that does not read, per stream.
const MAX_SEND_BUFFER: usize = 64 * 1024;

/// Maximum number of bytes of interim responses to one request; further ones are dropped. They are
/// not under flow control, so an endpoint could fill the memory if its client does not read.
const MAX_INTERIM: usize = 16 * 1024;

/// Sender of interim responses to one request.
#[derive(Clone, Debug)]
pub struct Interim(Rc<Responder>);

/// Response side of a stream.
#[derive(Debug)]
struct Responder {
    respond: RefCell<SendResponse<Bytes>>,
    /// Bytes of interim responses so far.
    interim: Cell<usize>,
}

impl Interim {
    /// Returns false if a response with these headers would be dropped.
    pub fn has_room(&self, headers: &HeaderMap) -> bool {
        self.length_with(headers) <= MAX_INTERIM
    }

    /// Sends an interim response. Dropped if the stream has ended, or beyond 16 KiB of them.
    pub fn send(&self, status: StatusCode, headers: HeaderMap) {
        let length = self.length_with(&headers);
        if length > MAX_INTERIM {
            return;
        }
        self.0.interim.set(length);
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        // Fails after the final response.
        let _ = self.0.respond.borrow_mut().send_informational(response);
    }

    fn length_with(&self, headers: &HeaderMap) -> usize {
        // A head without fields takes memory, too.
        self.0.interim.get() + 32 + fields_length(headers)
    }
}

/// State that the streams of a connection share.
struct Shared<H> {
    handler: Rc<H>,
    timeouts: Timeouts,
}

/// Result of polling a connection.
enum Event<T> {
    /// A request, or an error of the connection.
    Accepted(T),
    /// The memory or the timeout for heads is exceeded.
    HeadsExceeded,
    Ended,
}

/// Serves requests until the connection ends. When the drain begins, or `idle` returns, no further
/// streams are accepted (GOAWAY), and the connection ends after the open ones.
///
/// # Errors
/// A protocol or I/O error of the connection, unfinished heads or trailers that exceed `memory`, or
/// a head that is unfinished for the head timeout.
pub async fn serve<H, I>(
    stream: Stream,
    handler: Rc<H>,
    timeouts: Timeouts,
    memory: HeadMemory,
    drain: &Drain,
    idle: impl Fn() -> I,
) -> Result<(), h2::Error>
where
    H: Handler + 'static,
    I: Future<Output = ()>,
{
    let meter = Rc::<RefCell<Meter>>::default();
    let (stream, burst) = Burst::new(ObservedStream::new(stream, Rc::clone(&meter)));
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .reset_stream_duration(RESET_STREAM_DURATION)
        // WebSockets over HTTP/2 (RFC 8441).
        .enable_connect_protocol()
        .handshake(stream);
    let mut connection = match tokio::time::timeout(timeouts.head, handshake).await {
        Ok(connection) => connection?,
        // The client has not sent its preface.
        Err(_) => return Ok(()),
    };
    let mut keepalive = Keepalive::new(connection.ping_pong());
    let shared = Rc::new(Shared { handler, timeouts });
    let heads = Heads::new(memory);
    let mut blocks = Blocks::new(Rc::clone(&meter), Rc::clone(&heads));
    let mut begun = pin!(drain.begun());
    let mut drained = DrainWatch::new(drain, begun.as_mut());
    let mut idling = pin!(idle());
    let mut finishing = false;
    loop {
        let event = poll_fn(|context| {
            let accepted = connection.poll_accept(context);
            burst.end();
            if let Poll::Ready(accepted) = accepted {
                return Poll::Ready(accepted.map_or(Event::Ended, Event::Accepted));
            }
            if !blocks.account() || blocks.poll_timeout(context, timeouts.head).is_ready() {
                return Poll::Ready(Event::HeadsExceeded);
            }
            if blocks.resume() {
                context.waker().wake_by_ref();
            }
            let has_received = || meter.borrow_mut().take_received();
            if keepalive.poll_dead(context, has_received).is_ready() {
                return Poll::Ready(Event::Ended);
            }
            if !finishing && drained.has_begun(context) {
                finishing = true;
                connection.graceful_shutdown();
                context.waker().wake_by_ref();
            }
            if idling.as_mut().poll(context).is_ready() {
                if finishing {
                    // The client did not react to GOAWAY: dropping the connection closes it.
                    return Poll::Ready(Event::Ended);
                }
                finishing = true;
                connection.graceful_shutdown();
                idling.set(idle());
                context.waker().wake_by_ref();
            }
            Poll::Pending
        });
        match event.await {
            Event::Accepted(Ok((request, respond))) => {
                // Boxed, because tokio moves the future of a task several times.
                let stream = serve_stream(request, respond, &heads, Rc::clone(&shared));
                tokio::task::spawn_local(Box::pin(stream));
            }
            Event::Accepted(Err(error)) => return Err(error),
            Event::HeadsExceeded => {
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                // Writes GOAWAY, unless the client does not read. The memory is released now.
                let _ = poll_fn(|context| Poll::Ready(connection.poll_closed(context))).await;
                burst.end();
                return Err(Reason::ENHANCE_YOUR_CALM.into());
            }
            Event::Ended => return Ok(()),
        }
    }
}

/// Returns the future that responds to a request. It is no `async fn`: its future would keep the
/// request in each of its forms, and it would run later, with the memory of a head that does not
/// fit.
fn serve_stream<H: Handler>(
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
    heads: &Rc<Heads>,
    shared: Rc<Shared<H>>,
) -> impl Future<Output = ()> + use<H> {
    let (open, fits) = heads.open(respond.stream_id().as_u32(), &request);
    let responder = Rc::new(Responder {
        respond: RefCell::new(respond),
        interim: Cell::new(0),
    });
    let method = request.method().clone();
    let mut converted = if fits {
        Request::from_http2(request)
    } else {
        Err(RequestError::HeadMemory)
    };
    async move {
        let respond = &responder.respond;
        let (reply, stream) = match &mut converted {
            Ok((request, stream)) => {
                let interim = Interim(Rc::clone(&responder));
                if request.head.headers.contains_key(header::EXPECT)
                    && let RequestBody::Http2(body) = &mut request.body
                {
                    body.expect_continue(interim.clone());
                }
                let interim = handler::Interim::Http2(interim);
                let reply = {
                    // Boxed, so that it takes no memory while the response is sent.
                    let mut handling = Box::pin(shared.handler.handle(request, Some(interim)));
                    poll_fn(|context| {
                        if let Poll::Ready(reply) = handling.as_mut().poll(context) {
                            return Poll::Ready(Some(reply));
                        }
                        // The client reset the stream or left: the handler is dropped.
                        respond.borrow_mut().poll_reset(context).map(|_| None)
                    })
                    .await
                };
                let Some(reply) = reply else {
                    return;
                };
                request.release();
                (reply, stream.take())
            }
            Err(error) => {
                let line = RejectedLine {
                    method: Some(method.clone()),
                    target: None,
                    version: Some(Version::HTTP_2),
                };
                let reply = Reply {
                    response: shared.handler.reject(error.clone(), line),
                    upgrade: None,
                };
                (reply, None)
            }
        };
        open.release_fields();
        let Reply { response, upgrade } = reply;
        let writer = ResponseWriter {
            method,
            timeouts: shared.timeouts,
        };
        match (upgrade, stream) {
            (Some(upgrade), Some(stream)) => {
                if let Ok(send) = ResponseWriter::begin(respond, response, false) {
                    open.release_head();
                    // Holds the share of the trailers, which are not read.
                    let stream = ByteStream::new(send, stream, open);
                    // Fails if the tunnel was closed before it opened.
                    let _ = upgrade.send(stream.into());
                }
            }
            _ => {
                if let Err(error) = writer.write(respond, response).await {
                    tracing::debug!(%error, "stream failed");
                    respond.borrow_mut().send_reset(Reason::INTERNAL_ERROR);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::Body;

    struct Pending;

    impl Handler for Pending {
        type Body = Body;

        fn handle(
            &self,
            _: &mut Request,
            _: Option<handler::Interim>,
        ) -> impl Future<Output = Reply<Body>> {
            std::future::pending()
        }

        fn reject(&self, _: RequestError, _: RejectedLine) -> Response<Body> {
            Response::new(Body::empty())
        }
    }

    /// Returns the size of the future that a function returns, without calling it.
    fn size_of_future<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// The future of the handler is boxed in it; a test beside `Proxy` limits its size.
    #[test]
    fn future_of_a_stream_is_small() {
        type Arguments = (
            http::Request<RecvStream>,
            SendResponse<Bytes>,
            &'static Rc<Heads>,
            Rc<Shared<Pending>>,
        );
        let size = size_of_future(|(request, respond, heads, shared): Arguments| {
            serve_stream(request, respond, heads, shared)
        });
        assert!(size <= 1024, "{size} bytes");
    }
}
