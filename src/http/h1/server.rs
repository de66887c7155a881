//! Connections of HTTP/1.1 and HTTP/1.0 clients.
//!
//! One task serves a connection. While it runs the handler of a request, it flushes interim
//! responses and watches for the client's end; the body of the request is read by whoever forwards
//! it, on the same worker.

mod read;
mod write;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, Version};
use http_body::Frame;
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use self::write::ResponseWriter;
use super::body::{BodyError, Decoder};
use super::encode::{BodyLength, ResponseEncoder};
use super::fields::{FieldNames, Mode};
use super::framing::Framing;
use super::output::Output;
use super::request::{ParsedRequest, RejectedLine, RequestError};
use crate::drain::Drain;
use crate::http::clock::Clock;
use crate::http::handler::{self, Handler, Reply};
use crate::http::head_memory::{HeadMemory, HeadShare};
use crate::http::stream::ReadSize;
use crate::http::{Request, RequestBody, Stream, Upgraded, UpgradedConnection};

/// Maximum number of bytes of further requests that are read while a request is served. Reading
/// them shows whether the client is still there.
const MAX_PIPELINED: usize = 16 * 1024;
/// Interval at which a client is looked for if its connection cannot be read: further requests fill
/// the buffer, or a body waits for its endpoint.
const GONE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of bytes of interim responses that wait for a client; more are dropped, so that an
/// endpoint cannot fill the memory if its client does not read.
const MAX_PENDING_INTERIM: usize = 16 * 1024;
/// Maximum length of the rest of a request body that is read and discarded so that the connection
/// can be kept, in bytes. As Go's server.
const MAX_DISCARDED: usize = 256 * 1024;
/// Time for which the rest of a request body is discarded, and for which a closed connection waits
/// for its client. Closing earlier would reset the connection, and the client would lose the
/// response.
const LINGER: Duration = Duration::from_secs(2);

/// Timeouts of a client's connection.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Between requests, and without progress of a response that the bastion itself sends.
    pub idle: Duration,
    /// From the first byte of a head to its end.
    pub head: Duration,
    /// Without progress of a request body.
    pub body: Duration,
    /// Without progress of a proxied response.
    pub write: Duration,
}

/// Connection of a client. Clones share it.
#[derive(Clone, Debug)]
pub struct ServerConnection(Rc<RefCell<Connection>>);

/// Body of the current request. Reading it ends at the latest with the connection.
#[derive(Debug)]
pub struct Incoming(ServerConnection);

/// Sender of interim responses to the current request.
#[derive(Clone, Debug)]
pub struct Interim(ServerConnection);

#[derive(Debug)]
struct Connection {
    stream: Stream,
    /// Bytes that were read and not consumed.
    input: BytesMut,
    /// Bytes of an incomplete head that are known to contain no end.
    scanned: usize,
    read_size: ReadSize,
    decoder: Decoder,
    output: Output,
    /// The client waits for 100 before it sends the body.
    expects_continue: bool,
    /// The head of the final response is queued, so interim responses are too late.
    response_began: bool,
    body_clock: Clock,
    body_timeout: Duration,
    /// Share of the head memory that an incomplete head holds.
    head_share: HeadShare,
    /// Timer of the checks for the client's end, if its connection cannot be read.
    gone_check: Option<Pin<Box<Sleep>>>,
}

/// Result of waiting for a request.
#[expect(
    clippy::large_enum_variant,
    reason = "the large variant is the common one, and is moved once"
)]
enum Received {
    Request(ParsedRequest, HeadShare),
    Rejected(RequestError, Box<RejectedLine>),
    /// The connection ended, or was idle for too long, between two requests.
    Closed,
}

impl ServerConnection {
    pub fn new(stream: Stream, body_timeout: Duration) -> Self {
        Self(Rc::new(RefCell::new(Connection {
            stream,
            input: BytesMut::new(),
            scanned: 0,
            read_size: ReadSize::default(),
            decoder: Decoder::new(Framing::Empty, Mode::Strict),
            output: Output::default(),
            expects_continue: false,
            response_began: false,
            body_clock: Clock::default(),
            body_timeout,
            head_share: HeadShare::default(),
            gone_check: None,
        })))
    }

    /// Serves requests until the connection ends. When the drain begins, it ends after the request
    /// in flight.
    ///
    /// # Errors
    /// An I/O error, or a timeout of the client.
    pub async fn serve<H: Handler>(
        self,
        handler: &H,
        timeouts: Timeouts,
        memory: &HeadMemory,
        drain: &Drain,
    ) -> io::Result<()> {
        let mut begun = pin!(drain.begun());
        let mut drained = DrainWatch {
            drain,
            begun: begun.as_mut(),
            is_registered: false,
        };
        let mut clock = Clock::default();
        loop {
            let received = poll_fn(|context| {
                let mut connection = self.0.borrow_mut();
                connection.poll_head(context, &mut clock, timeouts, memory, &mut drained)
            });
            let (parsed, _share) = match received.await? {
                Received::Closed => return self.close(&mut clock).await,
                Received::Rejected(error, line) => {
                    // What follows cannot be separated into requests.
                    let version = line.version.unwrap_or(Version::HTTP_11);
                    let method = line.method.clone().unwrap_or_default();
                    let reply = handler.reject(error, *line);
                    let writer = ResponseWriter {
                        connection: &self,
                        method,
                        version,
                        keep_alive: false,
                    };
                    writer.write(reply, &mut clock, timeouts).await?;
                    return self.close(&mut clock).await;
                }
                Received::Request(parsed, share) => (parsed, share),
            };
            let ParsedRequest {
                head,
                framing,
                keep_alive,
                expects_continue,
            } = parsed;
            let body = self.begin(framing, expects_continue);
            let (method, version) = (head.method.clone(), head.version);
            // HTTP/1.0 has no interim responses (RFC 9110 section 15.2).
            let interim = (version == Version::HTTP_11)
                .then(|| handler::Interim::Http1(Interim(self.clone())));
            let request = Request {
                head,
                body: body.map_or(RequestBody::Empty, RequestBody::Http1),
                protocol: None,
            };
            let reply = {
                let mut handling = pin!(handler.handle(request, interim));
                poll_fn(|context| {
                    if let Poll::Ready(reply) = handling.as_mut().poll(context) {
                        return Poll::Ready(Ok(reply));
                    }
                    self.0.borrow_mut().poll_while_handling(context).map(Err)
                })
                .await?
            };
            let Reply { response, upgrade } = reply;
            let can_continue = self.0.borrow().can_continue();
            let writer = ResponseWriter {
                connection: &self,
                method,
                version,
                keep_alive: keep_alive && can_continue && !drain.has_begun(),
            };
            let keep_alive = writer.write(response, &mut clock, timeouts).await?;
            if let Some(upgrade) = upgrade {
                if let Some(upgraded) = self.into_upgraded() {
                    // Fails if the tunnel was closed before it opened.
                    let _ = upgrade.send(Upgraded::Http1(upgraded));
                }
                return Ok(());
            }
            if !keep_alive || !self.discard_body(&mut clock).await? {
                return self.close(&mut clock).await;
            }
        }
    }

    /// Prepares for a request. Returns its body if it has one.
    pub(crate) fn begin(&self, framing: Framing, expects_continue: bool) -> Option<Incoming> {
        let mut connection = self.0.borrow_mut();
        connection.response_began = false;
        connection.expects_continue = expects_continue;
        if framing == Framing::Empty {
            return None;
        }
        connection.decoder = Decoder::new(framing, Mode::Strict);
        connection.body_clock.stop();
        Some(Incoming(self.clone()))
    }

    /// Takes the stream for a tunnel, with the bytes that were read behind the request. `None` if
    /// the body of the request is still being read.
    fn into_upgraded(self) -> Option<UpgradedConnection> {
        let connection = Rc::into_inner(self.0)?.into_inner();
        Some(UpgradedConnection {
            stream: connection.stream,
            input: connection.input.freeze(),
        })
    }

    /// Reads and discards the rest of the request body. False if it is too long.
    async fn discard_body(&self, clock: &mut Clock) -> io::Result<bool> {
        if self.0.borrow().decoder.is_done() {
            return Ok(true);
        }
        clock.stop();
        let mut discarded = 0;
        poll_fn(|context| {
            let mut connection = self.0.borrow_mut();
            loop {
                match connection.poll_body(context) {
                    Poll::Ready(Some(Ok(frame))) => {
                        discarded += frame.data_ref().map_or(0, Bytes::len);
                        if discarded > MAX_DISCARDED {
                            return Poll::Ready(Ok(false));
                        }
                    }
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Ok(false)),
                    Poll::Ready(None) => return Poll::Ready(Ok(true)),
                    Poll::Pending => return clock.poll(context, LINGER).map(|()| Ok(false)),
                }
            }
        })
        .await
    }

    /// Closes the sending side, and waits for the client to close the other.
    async fn close(&self, clock: &mut Clock) -> io::Result<()> {
        clock.stop();
        let mut is_shut_down = false;
        let mut discarded = 0;
        poll_fn(|context| {
            let mut connection = self.0.borrow_mut();
            let connection = &mut *connection;
            if !is_shut_down {
                match Pin::new(&mut connection.stream).poll_shutdown(context) {
                    Poll::Ready(Ok(())) => is_shut_down = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return clock.poll(context, LINGER).map(Ok),
                }
            }
            // Unread bytes would make the kernel reset the connection.
            loop {
                connection.input.clear();
                let size = &mut ReadSize::default();
                match connection
                    .stream
                    .poll_fill(context, &mut connection.input, size)
                {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(length)) => discarded += length,
                    Poll::Pending => return clock.poll(context, LINGER).map(Ok),
                }
                if discarded > MAX_DISCARDED {
                    return Poll::Ready(Ok(()));
                }
            }
        })
        .await
    }
}

impl Incoming {
    /// Returns the number of bytes that remain, if it is known.
    pub fn remaining(&self) -> Option<u64> {
        self.0.0.borrow().decoder.remaining()
    }

    pub fn is_done(&self) -> bool {
        self.0.0.borrow().decoder.is_done()
    }

    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.0.borrow_mut().poll_body(context)
    }
}

impl Interim {
    /// Queues an interim response. It is dropped if the final response has begun, or the client does
    /// not read.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap, names: Option<&FieldNames>) {
        let mut connection = self.0.0.borrow_mut();
        if connection.response_began || connection.output.buffered() > MAX_PENDING_INTERIM {
            return;
        }
        if status == StatusCode::CONTINUE {
            // Only a client that asked for it can receive it.
            if !std::mem::take(&mut connection.expects_continue) {
                return;
            }
        }
        let encoder = ResponseEncoder {
            status,
            reason: None,
            headers,
            names,
            length: BodyLength::None,
            version: Version::HTTP_11,
            keep_alive: true,
        };
        encoder.write_interim(connection.output.buffer());
    }
}

/// Wait for the drain that registers with it once per connection: all workers share its lock.
struct DrainWatch<'a, F> {
    drain: &'a Drain,
    begun: Pin<&'a mut F>,
    is_registered: bool,
}

impl<F: Future<Output = ()>> DrainWatch<'_, F> {
    /// Returns true if the drain has begun. The connection's task is woken when it begins.
    fn has_begun(&mut self, context: &mut Context<'_>) -> bool {
        if self.drain.has_begun() {
            return true;
        }
        if !self.is_registered {
            self.is_registered = true;
            return self.begun.as_mut().poll(context).is_ready();
        }
        false
    }
}
