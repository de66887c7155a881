//! Connections of HTTP/1.1 and HTTP/1.0 clients.
//!
//! One task serves a connection. While it runs the handler of a request, it flushes interim
//! responses and watches for the client's end; the body of the request is read by the code that
//! forwards it, on the same worker.

mod read;
mod write;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
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
use crate::drain::{Drain, DrainWatch};
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

/// Body of a request. It fails once the request is over: an endpoint may have responded before it
/// read the body, and must not get that of the next request.
#[derive(Debug)]
pub struct Incoming {
    connection: ServerConnection,
    /// Number of the request on its connection.
    request: u64,
}

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
    /// Number of the current request; incremented when its body may no longer be read.
    request: u64,
    /// Task that waits for the request body.
    reader: Option<Waker>,
    output: Output,
    /// An empty line before the request was ignored.
    skipped_line: bool,
    /// The client waits for 100 before it sends the body.
    expects_continue: bool,
    /// The client may end its side before the response: it is a half-close of the tunnel.
    may_upgrade: bool,
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
            request: 0,
            reader: None,
            output: Output::default(),
            skipped_line: false,
            expects_continue: false,
            may_upgrade: false,
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
        &self,
        handler: &H,
        timeouts: Timeouts,
        memory: &HeadMemory,
        drain: &Drain,
    ) -> io::Result<()> {
        let _end = EndGuard(self);
        let mut begun = pin!(drain.begun());
        let mut drained = DrainWatch::new(drain, begun.as_mut());
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
                        connection: self,
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
                upgrade,
            } = parsed;
            let body = self.begin(framing, expects_continue);
            let connects = head.target.tunnel().is_some();
            self.0.borrow_mut().may_upgrade = upgrade || connects;
            let (method, version) = (head.method.clone(), head.version);
            // HTTP/1.0 has no interim responses (RFC 9110 section 15.2).
            let interim = (version == Version::HTTP_11)
                .then(|| handler::Interim::Http1(Interim(self.clone())));
            let mut request = Request {
                head,
                body: body.map_or(RequestBody::Empty, RequestBody::Http1),
                protocol: None,
            };
            let reply = {
                let mut handling = pin!(handler.handle(&mut request, interim));
                poll_fn(|context| {
                    if let Poll::Ready(reply) = handling.as_mut().poll(context) {
                        return Poll::Ready(Ok(reply));
                    }
                    self.0.borrow_mut().poll_while_handling(context).map(Err)
                })
                .await?
            };
            request.release();
            let Reply { response, upgrade } = reply;
            let can_continue = self.0.borrow().can_continue();
            let writer = ResponseWriter {
                connection: self,
                method,
                version,
                // What follows a CONNECT that is refused may be meant for the tunnel.
                keep_alive: upgrade.is_some()
                    || keep_alive && can_continue && !connects && !drain.has_begun(),
            };
            let keep_alive = writer.write(response, &mut clock, timeouts).await?;
            self.0.borrow_mut().end_request();
            if let Some(upgrade) = upgrade {
                if let Some(upgraded) = self.take_upgraded() {
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
        connection.read_size = ReadSize::default();
        Some(Incoming {
            connection: self.clone(),
            request: connection.request,
        })
    }

    /// Takes the stream for a tunnel, with the bytes that were read behind the request. `None` if
    /// the body of the request was not read: it would become part of the tunnel.
    fn take_upgraded(&self) -> Option<UpgradedConnection> {
        let mut connection = self.0.borrow_mut();
        if !connection.decoder.is_done() {
            return None;
        }
        Some(UpgradedConnection {
            stream: std::mem::replace(&mut connection.stream, Stream::Closed),
            input: std::mem::take(&mut connection.input).freeze(),
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
                    Poll::Ready(None) => {
                        clock.stop();
                        return Poll::Ready(Ok(true));
                    }
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
        let connection = self.connection.0.borrow();
        self.is_current(&connection)
            .then(|| connection.decoder.remaining())
            .flatten()
    }

    pub fn is_done(&self) -> bool {
        let connection = self.connection.0.borrow();
        self.is_current(&connection) && connection.decoder.is_done()
    }

    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut connection = self.connection.0.borrow_mut();
        if !self.is_current(&connection) {
            return Poll::Ready(Some(Err(BodyError::Incomplete)));
        }
        let frame = connection.poll_body(context);
        if frame.is_pending() {
            connection.reader = Some(context.waker().clone());
        }
        frame
    }

    fn is_current(&self, connection: &Connection) -> bool {
        self.request == connection.request
    }
}

/// Ends the body of the current request and closes the stream when the connection's task ends,
/// however it ends: the body of a request may outlive it in the task of an endpoint's connection.
struct EndGuard<'a>(&'a ServerConnection);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        let mut connection = self.0.0.borrow_mut();
        connection.end_request();
        connection.stream = Stream::Closed;
    }
}

impl Connection {
    /// Ends the request: its body can no longer be read by others than this connection.
    fn end_request(&mut self) {
        self.request += 1;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Interim {
    /// Returns false if a response with these headers would be dropped.
    pub fn has_room(&self, headers: &HeaderMap) -> bool {
        let connection = self.0.0.borrow();
        let fields = headers.iter();
        let length: usize = fields
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        !connection.response_began && connection.output.buffered() + length <= MAX_PENDING_INTERIM
    }

    /// Queues an interim response. It is dropped if the final response has begun, or the client does
    /// not read.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap, names: Option<&FieldNames>) {
        let mut connection = self.0.0.borrow_mut();
        if connection.response_began {
            return;
        }
        if status == StatusCode::CONTINUE {
            // Only a client that requested it can receive it.
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
        let output = connection.output.buffer();
        let before = output.len();
        encoder.write_interim(output);
        if connection.output.buffered() > MAX_PENDING_INTERIM {
            connection.output.buffer().truncate(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn body_of_an_earlier_request_does_not_read_that_of_the_next() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let connection = ServerConnection::new(Stream::Memory(server), Duration::from_secs(9));
        let mut first = connection.begin(Framing::Length(3), false).unwrap();
        assert!(poll_once(&mut first).is_pending());
        connection.0.borrow_mut().end_request();
        let mut second = connection.begin(Framing::Length(3), false).unwrap();
        client.write_all(b"abc").await.unwrap();
        let frame = poll_fn(|context| first.poll_frame(context)).await;
        assert!(frame.unwrap().is_err() && !first.is_done());
        let frame = poll_fn(|context| second.poll_frame(context)).await;
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "abc");
        assert!(second.is_done());
    }

    #[tokio::test]
    async fn end_of_the_connection_ends_its_body() {
        let (_client, server) = tokio::io::duplex(1 << 10);
        let connection = ServerConnection::new(Stream::Memory(server), Duration::from_secs(9));
        let mut body = connection.begin(Framing::Chunked, false).unwrap();
        assert!(poll_once(&mut body).is_pending());
        drop(EndGuard(&connection));
        assert!(matches!(poll_once(&mut body), Poll::Ready(Some(Err(_)))));
    }

    fn poll_once(body: &mut Incoming) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        body.poll_frame(&mut Context::from_waker(Waker::noop()))
    }
}
