//! Request bodies of HTTP/2.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, StatusCode};
use http_body::{Frame, SizeHint};

use super::Interim;
use crate::http::h1::remove_forbidden_trailers;

/// Body of a request. Its flow-control window opens as its parts are taken.
#[derive(Debug)]
pub struct Incoming {
    stream: RecvStream,
    /// Bytes that remain of `Content-Length`, which h2 enforces.
    remaining: Option<u64>,
    data_ended: bool,
    /// Sends the 100 for which the client waits.
    expects_continue: Option<Interim>,
}

impl Incoming {
    pub(in crate::http) fn new(stream: RecvStream, length: Option<u64>) -> Self {
        Self {
            stream,
            remaining: length,
            data_ended: false,
            expects_continue: None,
        }
    }

    /// The client waits for 100 before it sends the body (RFC 9110 section 10.1.1).
    pub(super) fn expect_continue(&mut self, interim: Interim) {
        self.expects_continue = Some(interim);
    }

    pub fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.remaining
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(interim) = self.expects_continue.take() {
            interim.send(StatusCode::CONTINUE, HeaderMap::new());
        }
        if !self.data_ended {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    // Fails only if the stream has been reset.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if let Some(remaining) = &mut self.remaining {
                        *remaining = remaining.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(context)) {
            Ok(Some(mut trailers)) => {
                remove_forbidden_trailers(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }
}
