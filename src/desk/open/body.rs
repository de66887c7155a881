//! Bodies of responses to the browser.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::client::ResponseBody;
use crate::http::PacedBody;
use crate::http::h1::BodyError;

/// Body of a response to the browser.
#[derive(Debug)]
pub struct Body(Content);

#[derive(Debug)]
enum Content {
    /// `None` once it is sent.
    Full(Option<Bytes>),
    Upstream(Box<ResponseBody>),
}

impl Body {
    pub fn empty() -> Self {
        Self(Content::Full(None))
    }

    pub fn full(bytes: Bytes) -> Self {
        Self(Content::Full(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    pub fn upstream(body: ResponseBody) -> Self {
        Self(Content::Upstream(Box::new(body)))
    }
}

impl PacedBody for Body {
    fn is_own(&self) -> bool {
        matches!(self.0, Content::Full(_))
    }

    fn poll_blocked(mut self: Pin<&mut Self>, context: &mut Context<'_>) {
        match &mut self.0 {
            Content::Full(_) => {}
            Content::Upstream(body) => body.poll_blocked(context),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Content::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Upstream(body) => Pin::new(&mut **body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Full(bytes) => bytes.is_none(),
            Content::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Upstream(body) => body.size_hint(),
        }
    }
}
