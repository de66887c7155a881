//! The response body whose links are rewritten while it streams.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame};

use super::budget::{PageLimit, Share};
use super::rewriter::{BadPage, MAX_WORK_PER_SLICE, Rewriter};
use super::{LinkRewriter, PageFormat};

/// Body of a page whose links are rewritten while it streams.
#[expect(missing_debug_implementations, reason = "as Rewriter")]
pub struct RewrittenBody<B> {
    incoming: B,
    rewriter: Rewriter,
    share: Share,
    /// Input that is not consumed yet.
    pending: Bytes,
    /// Memory of `pending` in bytes. A slice keeps its whole buffer until its last byte is
    /// consumed.
    pending_bytes: usize,
    /// Work of the rewriter when this turn of the worker began.
    turn_start: usize,
    /// The page was counted as passed.
    counted: bool,
    trailers: Option<HeaderMap>,
}

/// Error that truncates a page.
#[derive(Debug, thiserror::Error)]
pub enum PageError<E> {
    #[error(transparent)]
    Incoming(E),
    #[error(transparent)]
    Page(#[from] BadPage),
}

impl<B> RewrittenBody<B> {
    /// Rewrites `incoming` within `share`, which was reserved for [`PageFormat::held_bytes`].
    pub fn new(incoming: B, format: PageFormat, links: LinkRewriter, share: Share) -> Self {
        let rewriter = Rewriter::new(format, links);
        Self {
            incoming,
            rewriter,
            share,
            pending: Bytes::new(),
            pending_bytes: 0,
            turn_start: 0,
            counted: false,
            trailers: None,
        }
    }

    /// Returns the body that is being rewritten.
    pub fn incoming_mut(&mut self) -> &mut B {
        &mut self.incoming
    }

    /// Does one slice of work and accounts for its memory.
    fn take(&mut self) -> Result<Vec<u8>, BadPage> {
        let out = self.rewriter.take(&mut self.pending)?;
        if self.pending.is_empty() {
            self.pending = Bytes::new();
            self.pending_bytes = 0;
        }
        if !self
            .share
            .resize(self.rewriter.held_bytes() + self.pending_bytes)
        {
            self.rewriter.pass(PageLimit::Memory);
            // Codec and pending input are needed until the end, and are allocated already.
            self.share
                .force(self.rewriter.held_bytes() + self.pending_bytes);
        }
        if let Some(bound) = self.rewriter.bound().filter(|_| !self.counted) {
            self.counted = true;
            self.share.count_passed(bound);
        }
        Ok(out)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for RewrittenBody<B> {
    type Data = Bytes;
    type Error = PageError<B::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            // hyper polls again after a frame until its buffer is full, so the limit of a slice
            // holds for a turn of the worker, whatever the number of polls.
            if this.rewriter.work() - this.turn_start >= MAX_WORK_PER_SLICE {
                this.turn_start = this.rewriter.work();
                // `yield_now` wakes the task after the worker has polled its sockets. A task that
                // wakes itself keeps the run queue non-empty, and tokio then polls sockets only
                // every 61 tasks.
                let _ = pin!(tokio::task::yield_now()).poll(context);
                return Poll::Pending;
            }
            if this.pending.has_remaining() || this.rewriter.has_work() {
                let out = this.take()?;
                if out.is_empty() {
                    continue;
                }
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
            if this.rewriter.is_done() {
                return Poll::Ready(
                    this.trailers
                        .take()
                        .map(|trailers| Ok(Frame::trailers(trailers))),
                );
            }
            // Input is polled only when all earlier input is consumed: backpressure to the
            // endpoint.
            let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(context) else {
                this.turn_start = this.rewriter.work();
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.pending_bytes = data.len();
                        this.pending = data;
                    }
                    // Sent after the rest of the page.
                    Err(frame) => this.trailers = frame.into_trailers().ok(),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(PageError::Incoming(error)))),
                None => this.rewriter.finish(),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rewriter.is_done() && self.trailers.is_none()
    }
}
