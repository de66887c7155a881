//! Bodies as they pass: nothing is buffered, what the reader does not take the writer does not send.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::pool::{Connection, Pool};

/// The body of a request on its way to an endpoint. Counts what passes.
#[derive(Debug)]
pub(super) struct RequestBody {
    incoming: Option<Incoming>,
    received: Option<Rc<Cell<u64>>>,
}

impl RequestBody {
    pub fn new(incoming: Incoming, received: Option<Rc<Cell<u64>>>) -> Self {
        Self { incoming: received.is_some().then_some(incoming), received }
    }

    pub fn empty() -> Self {
        Self { incoming: None, received: None }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(incoming).poll_frame(context));
        if let (Some(Ok(frame)), Some(received)) = (&frame, &self.received) {
            received.set(received.get() + data_len(frame));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The body of an answer on its way to the client. Read to its end it gives the connection back to the pool; dropped
/// before, it closes the connection, and the endpoint learns that nobody listens any more (CONFORMANCE C101).
#[derive(Debug)]
pub struct Upstream {
    incoming: Incoming,
    /// None where the connection ends with the body.
    keep: Option<(Connection, Rc<Pool>)>,
}

impl Upstream {
    pub(super) fn pooled(incoming: Incoming, connection: Connection, pool: &Rc<Pool>) -> Self {
        Self { incoming, keep: Some((connection, Rc::clone(pool))) }
    }

    pub(super) fn closing(incoming: Incoming) -> Self {
        Self { incoming, keep: None }
    }

    fn ended(&mut self) {
        if let Some((connection, pool)) = self.keep.take() {
            pool.keep(connection);
        }
    }
}

impl Body for Upstream {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(context));
        if frame.is_none() {
            self.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Upstream {
    /// The server asks a body that says it is at its end for no further frame.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.ended();
        }
    }
}

pub(super) fn data_len(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}
