//! Response bodies, streamed with backpressure: a frame is read from the endpoint only when the
//! client's connection asks for it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::connection::Connection;
use super::pool::Pool;
use crate::http::MAX_HEADERS;

/// Body of a response on its way to the client. At its end the connection returns to the pool. If
/// the body is dropped before, because the client disconnected, the connection or stream is closed,
/// so that the endpoint can stop producing it (CONFORMANCE C101).
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    /// `None` if the connection must not be reused, or was returned.
    pooled: Option<(Connection, Rc<Pool>)>,
}

/// Error of a response body.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the target aborted its response: {0}")]
    Incoming(#[from] hyper::Error),
    #[error("the response has more than {} trailer fields", MAX_HEADERS)]
    TooManyTrailers,
}

impl UpstreamBody {
    pub(super) fn pooled(incoming: Incoming, connection: Connection, pool: &Rc<Pool>) -> Self {
        Self {
            incoming,
            pooled: Some((connection, Rc::clone(pool))),
        }
    }

    pub(super) fn closing(incoming: Incoming) -> Self {
        Self {
            incoming,
            pooled: None,
        }
    }

    fn return_connection(&mut self) {
        if let Some((connection, pool)) = self.pooled.take() {
            pool.keep(connection);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(context));
        if frame.is_none() {
            self.return_connection();
        }
        if let Some(Ok(frame)) = &frame
            && frame
                .trailers_ref()
                .is_some_and(|trailers| trailers.len() > MAX_HEADERS)
        {
            return Poll::Ready(Some(Err(UpstreamError::TooManyTrailers)));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(UpstreamError::Incoming)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for UpstreamBody {
    /// hyper's server drops a body after its last frame without polling for the end, if
    /// `is_end_stream` is true by then.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.return_connection();
        }
    }
}
