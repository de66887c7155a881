//! Bodies of responses: own texts, files, and those of the API server.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::fs::File;

use crate::forward::{UpstreamBody, UpstreamError};
use crate::http::PacedBody;

/// Maximum number of bytes of one read of a file.
const FILE_READ: usize = 64 * 1024;

/// Body of a response.
#[derive(Debug)]
pub enum Body {
    /// Text of the command itself; none once it is sent.
    Full(Option<Bytes>),
    /// Part of a file.
    File(FilePart),
    Upstream(Box<UpstreamBody>),
}

/// Rest of a file that is sent.
#[derive(Debug)]
pub struct FilePart {
    pub file: File,
    /// Number of bytes from the current position of the file.
    pub remaining: u64,
}

/// Failure of a body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("cannot read the file: {0}")]
    File(#[from] io::Error),
    #[error("the file became shorter while it was sent")]
    Shorter,
}

impl Body {
    pub fn empty() -> Self {
        Self::Full(None)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()).filter(|bytes| !bytes.is_empty()))
    }

    pub fn upstream(body: UpstreamBody) -> Self {
        Self::Upstream(Box::new(body))
    }
}

/// Returns a response in plain text with a line break at its end, as Go's `http.Error` writes it.
pub fn text_response(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::full(format!("{text}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// Returns the response for a path that is not served.
pub fn not_found() -> Response<Body> {
    text_response(StatusCode::NOT_FOUND, "404 page not found")
}

impl FilePart {
    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
        let limit = usize::try_from(self.remaining).map_or(FILE_READ, |rest| rest.min(FILE_READ));
        let mut data = BytesMut::with_capacity(limit);
        let file = Pin::new(&mut self.file);
        ready!(tokio_util::io::poll_read_buf(file, context, &mut data))?;
        // The allocation may be larger than requested, and the file than its length was.
        data.truncate(limit);
        if data.is_empty() {
            return Poll::Ready(Err(BodyError::Shorter));
        }
        self.remaining -= data.len() as u64;
        Poll::Ready(Ok(data.freeze()))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::File(FilePart { remaining: 0, .. }) => Poll::Ready(None),
            Self::File(part) => part
                .poll_data(context)
                .map(|data| Some(data.map(Frame::data))),
            Self::Upstream(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(BodyError::Upstream))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::File(part) => part.remaining == 0,
            Self::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::File(part) => SizeHint::with_exact(part.remaining),
            Self::Upstream(body) => body.size_hint(),
        }
    }
}

impl PacedBody for Body {
    fn is_own(&self) -> bool {
        matches!(self, Self::Full(_) | Self::File(_))
    }

    fn poll_blocked(mut self: Pin<&mut Self>, context: &mut Context<'_>) {
        if let Self::Upstream(body) = &mut *self {
            body.poll_blocked(context);
        }
    }
}
