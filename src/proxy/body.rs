//! The body of an answer, with the record of its request: the request ends when the body does.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::connection::ConnectionGuard;
use crate::forward::{UpstreamBody, UpstreamError};
use crate::rewrite::{LinkRewriter, PageError, PageFormat, RewrittenBody, Share};
use crate::telemetry::Record;

/// What is sent to the client.
#[expect(missing_debug_implementations, reason = "a page has none")]
pub struct Body {
    content: Content,
    record: Option<Box<Record>>,
    /// The connection is in use until the last byte.
    _held: Option<ConnectionGuard>,
}

enum Content {
    /// Words of our own, in one piece; none once they are taken.
    Whole(Option<Bytes>),
    UpstreamBody(UpstreamBody),
    Page(Box<RewrittenBody<UpstreamBody>>),
}

impl Body {
    pub fn empty() -> Self {
        Self {
            content: Content::Whole(None),
            record: None,
            _held: None,
        }
    }

    pub fn whole(bytes: Bytes) -> Self {
        Self {
            content: Content::Whole(Some(bytes)),
            record: None,
            _held: None,
        }
    }

    pub fn upstream(body: UpstreamBody) -> Self {
        Self {
            content: Content::UpstreamBody(body),
            record: None,
            _held: None,
        }
    }

    /// A page whose links are rewritten as it passes.
    pub fn page(
        body: UpstreamBody,
        reading: PageFormat,
        links: LinkRewriter,
        share: Share,
    ) -> Self {
        Self {
            content: Content::Page(Box::new(RewrittenBody::new(body, reading, links, share))),
            record: None,
            _held: None,
        }
    }

    /// Lets the record end with the body, and the client's connection be in use until then.
    pub fn recorded(self, record: Box<Record>, held: ConnectionGuard) -> Self {
        Self {
            record: Some(record),
            _held: Some(held),
            ..self
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = PageError<UpstreamError>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.content {
            Content::Whole(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Content::UpstreamBody(body) => ready!(Pin::new(body).poll_frame(context))
                .map(|frame| frame.map_err(PageError::Incoming)),
            Content::Page(page) => ready!(Pin::new(page).poll_frame(context)),
        };
        if let Some(record) = &mut this.record {
            match &frame {
                Some(Ok(frame)) => {
                    record.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                // Passed to hyper it cuts the stream: the client must not take a part for the whole
                // (C99).
                Some(Err(error)) => {
                    record.error = Some(format!("the target broke off its answer: {error}"));
                }
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_none(),
            Content::UpstreamBody(body) => body.is_end_stream(),
            Content::Page(page) => page.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::UpstreamBody(body) => body.size_hint(),
            // Not known before its end.
            Content::Page(page) => page.size_hint(),
        }
    }
}
