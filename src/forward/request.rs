//! The bodies of requests as they pass: nothing is buffered, what the endpoint does not take the client does not send.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

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
            received.set(received.get() + frame.data_ref().map_or(0, |data| data.len() as u64));
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
