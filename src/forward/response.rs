//! The bodies of answers as they pass: nothing is buffered, what the client does not take the
//! endpoint does not send.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::pool::{Connection, Pool};
use crate::http::MAX_HEADERS;

/// The body of an answer on its way to the client. Read to its end it gives the connection back to
/// the pool; dropped before, it closes the connection, and the endpoint learns that nobody listens
/// any more (CONFORMANCE C101).
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    /// None where the connection ends with the body.
    keep: Option<(Connection, Rc<Pool>)>,
}

/// Why a body does not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error(transparent)]
    Incoming(#[from] hyper::Error),
    #[error("more than {} trailer fields", MAX_HEADERS)]
    TooManyTrailers,
}

impl UpstreamBody {
    pub(super) fn pooled(incoming: Incoming, connection: Connection, pool: &Rc<Pool>) -> Self {
        Self {
            incoming,
            keep: Some((connection, Rc::clone(pool))),
        }
    }

    pub(super) fn closing(incoming: Incoming) -> Self {
        Self {
            incoming,
            keep: None,
        }
    }

    fn ended(&mut self) {
        if let Some((connection, pool)) = self.keep.take() {
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
            self.ended();
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
    /// The server asks a body that says it is at its end for no further frame.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.ended();
        }
    }
}
