//! Bodies of watches, which end over the time of the drain, so that not all clients of a replica
//! reconnect at its end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::drain::Drain;
use crate::forward::{UpstreamBody, UpstreamError};

/// Body of a watch.
#[derive(Debug)]
pub struct Watch {
    body: UpstreamBody,
    /// Events are lines.
    is_lines: bool,
    /// The last event is complete.
    is_complete: bool,
    end: Pin<Box<End>>,
    timeout: Duration,
}

/// Time of the end.
#[derive(Debug)]
enum End {
    Undecided(Pin<Box<WaitForCancellationFutureOwned>>),
    At(Pin<Box<Sleep>>),
}

impl Watch {
    /// `timeout` is that of the drain.
    pub fn new(body: UpstreamBody, is_lines: bool, drain: &Drain, timeout: Duration) -> Self {
        Self {
            body,
            is_lines,
            is_complete: true,
            end: Box::pin(End::Undecided(Box::pin(drain.begun_owned()))),
            timeout,
        }
    }

    /// The client does not take the last part yet.
    pub fn poll_blocked(&mut self, context: &mut Context<'_>) {
        self.body.poll_blocked(context);
    }

    /// Waits for the end.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let End::Undecided(begun) = &mut *self.end {
            ready!(begun.as_mut().poll(context));
            // Before the deadline, which cuts what is left.
            let delay = self.timeout.mul_f32(0.8 * fastrand::f32());
            *self.end = End::At(Box::pin(tokio::time::sleep(delay)));
        }
        match &mut *self.end {
            End::At(sleep) => sleep.as_mut().poll(context),
            End::Undecided(_) => Poll::Pending,
        }
    }
}

/// Returns true if the events of a response are lines: JSON without a content coding.
pub(super) fn has_lines(headers: &HeaderMap) -> bool {
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|media_type| media_type.as_bytes().starts_with(b"application/json"));
    is_json && !headers.contains_key(header::CONTENT_ENCODING)
}

impl Body for Watch {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
            {
                this.is_complete = data.ends_with(b"\n");
            }
            return Poll::Ready(frame);
        }
        ready!(this.poll_end(context));
        // A complete event may be followed by the end; within one, the client must notice the cut.
        Poll::Ready(if this.is_lines && this.is_complete {
            None
        } else {
            Some(Err(UpstreamError::ShuttingDown))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
