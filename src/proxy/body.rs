//! Response bodies. The access-log record of a request ends with the body of its response.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::pass_through::{UnprovenPermit, Watch};
use crate::client_connection::ConnectionGuard;
use crate::forward::{UpstreamBody, UpstreamError};
use crate::http::PacedBody;
use crate::rewrite::{LinkRewriter, PageError, PageFormat, RewrittenBody, Share};
use crate::telemetry::Record;

/// Body of a response to the client.
#[expect(missing_debug_implementations, reason = "the HTML rewriter has none")]
pub struct Body {
    content: Content,
    record: Option<Box<Record>>,
    /// Keeps the client's connection from counting as idle until the last byte.
    _connection: Option<ConnectionGuard>,
    /// Permit of the request, held until the last byte.
    _permit: Option<Box<UnprovenPermit>>,
}

enum Content {
    /// Body of the bastion's own response; none once it is sent.
    Full(Option<Bytes>),
    Upstream(UpstreamBody),
    Watch(Box<Watch>),
    Page(Box<RewrittenBody<UpstreamBody>>),
}

impl Body {
    fn new(content: Content) -> Self {
        Self {
            content,
            record: None,
            _connection: None,
            _permit: None,
        }
    }

    pub fn empty() -> Self {
        Self::new(Content::Full(None))
    }

    pub fn full(bytes: Bytes) -> Self {
        Self::new(Content::Full(Some(bytes)))
    }

    pub fn upstream(body: UpstreamBody) -> Self {
        Self::new(Content::Upstream(body))
    }

    /// A watch, which ends with the drain.
    pub fn watch(watch: Watch) -> Self {
        Self::new(Content::Watch(Box::new(watch)))
    }

    /// An HTML page whose links are rewritten while it streams.
    pub fn page(body: UpstreamBody, format: PageFormat, links: LinkRewriter, share: Share) -> Self {
        let page = RewrittenBody::new(body, format, links, share);
        Self::new(Content::Page(Box::new(page)))
    }

    /// Holds a permit until the body ends.
    pub fn holding(self, permit: Option<Box<UnprovenPermit>>) -> Self {
        Self {
            _permit: permit,
            ..self
        }
    }

    /// Keeps the record and the client's connection open until the body ends.
    pub fn recorded(self, record: Box<Record>, connection: ConnectionGuard) -> Self {
        Self {
            record: Some(record),
            _connection: Some(connection),
            ..self
        }
    }
}

impl PacedBody for Body {
    fn is_own(&self) -> bool {
        matches!(self.content, Content::Full(_))
    }

    fn poll_blocked(mut self: Pin<&mut Self>, context: &mut Context<'_>) {
        match &mut self.content {
            Content::Full(_) => {}
            Content::Upstream(body) => body.poll_blocked(context),
            Content::Watch(watch) => watch.poll_blocked(context),
            Content::Page(page) => page.incoming_mut().poll_blocked(context),
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
            Content::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Content::Upstream(body) => ready!(Pin::new(body).poll_frame(context))
                .map(|frame| frame.map_err(PageError::Incoming)),
            Content::Watch(watch) => ready!(Pin::new(watch).poll_frame(context))
                .map(|frame| frame.map_err(PageError::Incoming)),
            Content::Page(page) => ready!(Pin::new(page).poll_frame(context)),
        };
        // The bytes passed to the connection, which may differ from those that reach the client.
        if let Some(record) = &mut this.record {
            match &frame {
                Some(Ok(frame)) => {
                    record.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                // The error aborts the connection or stream, so that a client cannot read a truncated
                // body as complete (C99).
                Some(Err(error)) => {
                    record.error = Some(error.to_string());
                }
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Full(bytes) => bytes.is_none(),
            Content::Upstream(body) => body.is_end_stream(),
            Content::Watch(watch) => watch.is_end_stream(),
            Content::Page(page) => page.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Upstream(body) => body.size_hint(),
            Content::Watch(watch) => watch.size_hint(),
            // Unknown until the end: a wrong hint becomes a wrong `Content-Length`.
            Content::Page(page) => page.size_hint(),
        }
    }
}
