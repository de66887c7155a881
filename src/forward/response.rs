//! Response bodies, streamed with backpressure: a frame is read from the endpoint only when the
//! client's connection asks for it.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::connection::{Connection, Sender};
use super::pool::Pool;
use super::request::RequestBody;
use crate::http::h1::{self, Upload};
use crate::http::{MAX_HEADERS, without_forbidden_trailers};

/// Body of a response as its connection delivers it.
#[derive(Debug)]
pub(super) enum Incoming {
    /// The connection has the body. The request body may still be on its way.
    Http1(Option<Box<Upload<RequestBody>>>),
    Http2(hyper::body::Incoming),
}

/// Body of a response on its way to the client. At its end the connection returns to the pool. If
/// the body is dropped before, because the client disconnected, the connection or stream is closed,
/// so that the endpoint can stop producing it (CONFORMANCE C101).
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    /// `None` after it was returned to the pool.
    connection: Option<Connection>,
    /// `None` if the connection must not be reused.
    pool: Option<Rc<Pool>>,
    /// First frame or error, if it was read before the head of the response is sent.
    peeked: Option<Box<Result<Frame<Bytes>, UpstreamError>>>,
}

/// Error of a response body.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the target aborted its response: {0}")]
    Http1(#[from] h1::BodyError),
    #[error("the target aborted its response: {0}")]
    Http2(#[from] hyper::Error),
    /// hyper takes a reset without an error for the end, also in the middle of a body.
    #[error("the target aborted its response: the stream was reset before its end")]
    Incomplete,
    #[error("the response has more than {} trailer fields", MAX_HEADERS)]
    TooManyTrailers,
    #[error("the bastion is shutting down")]
    ShuttingDown,
}

impl UpstreamBody {
    pub(super) fn pooled(incoming: Incoming, connection: Connection, pool: &Rc<Pool>) -> Self {
        Self {
            incoming,
            connection: Some(connection),
            pool: Some(Rc::clone(pool)),
            peeked: None,
        }
    }

    pub(super) fn closing(incoming: Incoming, connection: Connection) -> Self {
        Self {
            incoming,
            connection: Some(connection),
            pool: None,
            peeked: None,
        }
    }

    /// Waits for the first bytes of the body, which stay part of it, as does an error.
    pub async fn peek(&mut self) {
        if self.peeked.is_none() {
            let frame = poll_fn(|context| Pin::new(&mut *self).poll_frame(context)).await;
            self.peeked = frame.map(Box::new);
        }
    }

    /// Returns the bytes that [`Self::peek`] has read.
    pub fn peeked(&self) -> Option<&Bytes> {
        self.peeked.as_ref()?.as_ref().as_ref().ok()?.data_ref()
    }

    /// The client does not take the last part yet.
    pub fn poll_blocked(&mut self, context: &mut Context<'_>) {
        if let Incoming::Http1(upload) = &mut self.incoming
            && let Some(connection) = http1(&mut self.connection)
        {
            connection.shrink_reads();
            connection.advance_upload(context, upload);
        }
    }

    /// Returns true if the endpoint has sent all of the body.
    fn has_ended(&self) -> bool {
        match &self.incoming {
            Incoming::Http1(_) => match self
                .connection
                .as_ref()
                .map(|connection| &connection.sender)
            {
                Some(Sender::Http1(connection)) => connection.decoder().is_done(),
                _ => true,
            },
            Incoming::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn return_connection(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Some(pool) = &self.pool
            && matches!(self.incoming, Incoming::Http1(None) | Incoming::Http2(_))
        {
            pool.keep(connection);
        }
    }
}

fn http1(connection: &mut Option<Connection>) -> Option<&mut h1::ClientConnection> {
    match &mut connection.as_mut()?.sender {
        Sender::Http1(connection) => Some(connection),
        Sender::Http2(..) => None,
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let this = &mut *self;
        if let Some(frame) = this.peeked.take() {
            return Poll::Ready(Some(*frame));
        }
        let frame = match &mut this.incoming {
            Incoming::Http1(upload) => match http1(&mut this.connection) {
                Some(connection) => ready!(connection.poll_body(context, upload))
                    .map(|frame| frame.map_err(UpstreamError::Http1)),
                None => None,
            },
            Incoming::Http2(incoming) => {
                match ready!(Pin::new(&mut *incoming).poll_frame(context)) {
                    None if !incoming.is_end_stream() => Some(Err(UpstreamError::Incomplete)),
                    None => None,
                    Some(frame) => Some(frame.map_err(UpstreamError::Http2).and_then(|frame| {
                        let frame = without_forbidden_trailers(frame);
                        match frame.trailers_ref() {
                            Some(trailers) if trailers.len() > MAX_HEADERS => {
                                Err(UpstreamError::TooManyTrailers)
                            }
                            _ => Ok(frame),
                        }
                    })),
                }
            }
        };
        if frame.is_none() {
            this.return_connection();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.peeked.is_none() && self.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.incoming {
            Incoming::Http1(_) => match self
                .connection
                .as_ref()
                .map(|connection| &connection.sender)
            {
                Some(Sender::Http1(connection)) => connection
                    .decoder()
                    .remaining()
                    .map_or_else(SizeHint::default, SizeHint::with_exact),
                _ => SizeHint::with_exact(0),
            },
            Incoming::Http2(incoming) => incoming.size_hint(),
        };
        match (rest.exact(), self.peeked()) {
            (Some(length), Some(peeked)) => SizeHint::with_exact(length + peeked.len() as u64),
            _ => rest,
        }
    }
}

impl Drop for UpstreamBody {
    /// A body that has ended may be dropped without a poll for its end.
    fn drop(&mut self) {
        if self.has_ended() {
            self.return_connection();
        }
    }
}
