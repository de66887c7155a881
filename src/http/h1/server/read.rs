//! Reading from a client: heads, bodies, and the end of the connection.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Frame;

use super::{Connection, GONE_CHECK_INTERVAL, MAX_DISCARDED, MAX_PIPELINED, Received, Timeouts};
use crate::drain::DrainWatch;
use crate::http::MAX_HEADER_BYTES;
use crate::http::clock::Clock;
use crate::http::h1::body::BodyError;
use crate::http::h1::fields::find_head_end;
use crate::http::h1::request::{
    ParsedRequest, RejectedLine, RequestError, parse_request, rejects_prefix, too_long,
};
use crate::http::head_memory::{FREE_HEAD, HeadMemory, HeadShare};
use crate::http::stream::ReadSize;

/// Result of a complete head.
type Parsed = Result<(ParsedRequest, HeadShare), (RequestError, Box<RejectedLine>)>;

impl Connection {
    /// Waits for the head of the next request.
    pub(super) fn poll_head<F: Future<Output = ()>>(
        &mut self,
        context: &mut Context<'_>,
        clock: &mut Clock,
        timeouts: Timeouts,
        memory: &HeadMemory,
        drained: &mut DrainWatch<'_, F>,
    ) -> Poll<io::Result<Received>> {
        loop {
            // One empty line before a request is ignored (RFC 9112 section 2.2): some clients send
            // one behind a body.
            if !self.skipped_line && self.scanned <= 1 && self.input.starts_with(b"\r\n") {
                self.input.advance(2);
                (self.skipped_line, self.scanned) = (true, 0);
            }
            if self.input.is_empty() {
                // It may share the allocation of the last request: an idle connection has no
                // buffer.
                self.input = BytesMut::new();
                if drained.has_begun(context) {
                    return Poll::Ready(Ok(Received::Closed));
                }
            } else if let Some(parsed) = self.take_head(memory) {
                clock.stop();
                (self.skipped_line, self.scanned) = (false, 0);
                return Poll::Ready(Ok(match parsed {
                    Ok((parsed, share)) => Received::Request(parsed, share),
                    Err((error, line)) => Received::Rejected(error, line),
                }));
            }
            let was_empty = self.input.is_empty();
            match self
                .stream
                .poll_fill(context, &mut self.input, &mut ReadSize::default())
            {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Received::Closed)),
                Poll::Ready(Ok(_)) => {
                    if was_empty && !self.skipped_line {
                        // The head timeout begins. An empty line does not extend it.
                        clock.stop();
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if self.input.is_empty() => {
                    ready!(clock.poll(context, timeouts.idle));
                    return Poll::Ready(Ok(Received::Closed));
                }
                Poll::Pending => {
                    ready!(clock.poll(context, timeouts.head));
                    let error = RequestError::HeadTimeout;
                    return Poll::Ready(Ok(Received::Rejected(error, Box::default())));
                }
            }
        }
    }

    /// Takes a complete head from the input. `None` if it is incomplete.
    fn take_head(&mut self, memory: &HeadMemory) -> Option<Parsed> {
        let limit = MAX_HEADER_BYTES as usize;
        let Some(end) = find_head_end(&self.input, self.scanned) else {
            self.scanned = self.input.len();
            let error = if self.input.len() > limit {
                Some(too_long(&self.input))
            } else if !memory.grow(&mut self.head_share, self.input.len()) {
                Some(RequestError::HeadMemory)
            } else {
                rejects_prefix(&self.input)
            };
            return error.map(|error| Err((error, Box::default())));
        };
        if end > limit {
            return Some(Err((too_long(&self.input[..end]), Box::default())));
        }
        if !memory.grow(&mut self.head_share, end) {
            return Some(Err((RequestError::HeadMemory, Box::default())));
        }
        let share = std::mem::take(&mut self.head_share);
        let head = self.input.split_to(end).freeze();
        if end > FREE_HEAD {
            // The rest would keep the memory of the head allocated beyond its share.
            self.input = BytesMut::from(&self.input[..]);
        }
        Some(parse_request(&head).map(|parsed| (parsed, share)))
    }

    /// Reads the next part of the request body. The first call sends 100 to a client that waits for
    /// it.
    pub(super) fn poll_body(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if std::mem::take(&mut self.expects_continue) && !self.response_began {
            self.output
                .buffer()
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            if let Poll::Ready(Err(error)) = self.poll_output(context) {
                return Poll::Ready(Some(Err(error.into())));
            }
        }
        loop {
            if let Poll::Ready(frame) = self.decoder.poll_frame(&mut self.input) {
                return Poll::Ready(frame);
            }
            match self
                .stream
                .poll_fill(context, &mut self.input, &mut self.read_size)
            {
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(BodyError::Incomplete))),
                Poll::Ready(Ok(_)) => self.body_clock.stop(),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Pending => {
                    // The sender is slower than the reader.
                    self.read_size.shrink();
                    ready!(self.body_clock.poll(context, self.body_timeout));
                    return Poll::Ready(Some(Err(BodyError::Timeout)));
                }
            }
        }
    }

    /// Sends queued interim responses and waits for the end of the client. The handler of the
    /// request must be dropped then.
    pub(super) fn poll_while_handling(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if let Poll::Ready(Err(error)) = self.poll_output(context) {
            return Poll::Ready(error);
        }
        self.poll_gone(context)
    }

    /// Waits for the end of the client: a closed connection, or a half-closed one, as with Go's
    /// server (CONFORMANCE C101).
    pub(super) fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let gone = || Poll::Ready(io::ErrorKind::ConnectionAborted.into());
        let reads_end = self.decoder.is_done() && !self.may_upgrade;
        if reads_end {
            while self.input.len() < MAX_PIPELINED {
                match self
                    .stream
                    .poll_fill(context, &mut self.input, &mut ReadSize::default())
                {
                    Poll::Ready(Ok(0)) => return gone(),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(error),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        loop {
            // A client that has closed its side behind the body has not left: its body is not read
            // yet.
            if self.stream.is_reset() || reads_end && self.stream.is_read_closed() {
                return gone();
            }
            let check = self
                .gone_check
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(GONE_CHECK_INTERVAL)));
            ready!(check.as_mut().poll(context));
            self.gone_check = None;
        }
    }

    /// Returns true if the connection can serve another request after the response to this one: a
    /// client that still waits for 100 may send its body or not.
    pub(super) fn can_continue(&self) -> bool {
        let is_short = self
            .decoder
            .remaining()
            .is_none_or(|remaining| remaining <= MAX_DISCARDED as u64);
        !self.expects_continue && is_short && !self.decoder.has_failed()
    }
}
