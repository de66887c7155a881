//! Requests of clients on their way through the pipeline, whatever the version of HTTP.

use std::pin::Pin;
use std::task::{Context, Poll};

use ::h2::RecvStream;
use ::h2::ext::Protocol;
use bytes::Bytes;
use http::{HeaderMap, Method, Version, header};
use http_body::{Body, Frame, SizeHint};

use super::authority::is_authority;
use super::h1::{self, BodyError, FieldNames, FramingError, RequestError};
use super::h2;
use super::target::RequestTarget;

/// Request of a client.
#[derive(Debug)]
pub struct Request {
    pub head: RequestHead,
    pub body: RequestBody,
    /// Protocol of an extended CONNECT of HTTP/2 (RFC 8441).
    pub protocol: Option<Protocol>,
}

/// Head of a request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    pub target: RequestTarget,
    pub version: Version,
    pub headers: HeaderMap,
    /// Names as the client spelled them. Empty for HTTP/2, which has only lower case.
    pub names: FieldNames,
}

/// Body of a client's request.
#[derive(Debug)]
pub enum RequestBody {
    Empty,
    /// Rest of a body that was read before the request is forwarded.
    Full(Box<Bytes>),
    Http1(h1::Incoming),
    Http2(h2::Incoming),
}

/// Failure to receive a body.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Http1(#[from] BodyError),
    #[error(transparent)]
    Http2(#[from] ::h2::Error),
}

impl Request {
    /// Converts a request of HTTP/2. The second value is the stream of a CONNECT, which becomes the
    /// tunnel.
    ///
    /// # Errors
    /// [`RequestError`] if what would become the target, `Host` or `Content-Length` of an HTTP/1.1
    /// request is invalid.
    pub(super) fn from_http2(
        mut request: http::Request<RecvStream>,
    ) -> Result<(Self, Option<RecvStream>), RequestError> {
        let protocol = request.extensions_mut().remove::<Protocol>();
        let (parts, stream) = request.into_parts();
        let target = check_http2(&parts)?;
        // The DATA frames are the tunnel, not content (RFC 8441 section 5, RFC 9113 section 8.5).
        let connects = protocol.is_some() || target.tunnel().is_some();
        let length = parts.headers.get(header::CONTENT_LENGTH);
        // Also a length of 0: h2 would reset the stream at the first bytes of the tunnel.
        if connects && length.is_some() {
            return Err(FramingError::ConnectContent.into());
        }
        let (body, tunnel) = if connects {
            (RequestBody::Empty, Some(stream))
        } else if stream.is_end_stream() {
            (RequestBody::Empty, None)
        } else {
            let length = length.and_then(h1::length);
            (RequestBody::Http2(h2::Incoming::new(stream, length)), None)
        };
        let request = Self {
            head: RequestHead {
                method: parts.method,
                target,
                version: Version::HTTP_2,
                headers: parts.headers,
                names: FieldNames::default(),
            },
            body,
            protocol,
        };
        Ok((request, tunnel))
    }

    /// Releases the memory of header fields and body when the response begins, which may take hours
    /// to send.
    pub(super) fn release(&mut self) {
        self.head.headers = HeaderMap::new();
        self.head.names = FieldNames::default();
        self.body = RequestBody::Empty;
    }
}

/// Checks what h2 does not, with the rules of HTTP/1.1.
fn check_http2(parts: &http::request::Parts) -> Result<RequestTarget, RequestError> {
    let target = RequestTarget::from_http2(&parts.method, &parts.uri)?;
    let headers = &parts.headers;
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    // `:authority` replaces `Host`, which is then not looked at (RFC 9113 section 8.3.1).
    if target.authority().is_none() {
        if hosts.next().is_some() || host.is_none() {
            return Err(RequestError::HostCount);
        }
        if host.is_some_and(|host| !is_authority(host.as_bytes())) {
            return Err(RequestError::Host);
        }
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if lengths
        .next()
        .is_some_and(|first| h1::length(first).is_none())
    {
        return Err(FramingError::Length.into());
    }
    if lengths.next().is_some() {
        return Err(FramingError::RepeatedLength.into());
    }
    let expectations = headers.get_all(header::EXPECT);
    if !expectations.iter().all(h1::is_continue) {
        return Err(RequestError::Expectation);
    }
    Ok(target)
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut **bytes))))),
            Self::Http1(body) => body
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(ReceiveError::Http1))),
            Self::Http2(body) => body
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(ReceiveError::Http2))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Http1(body) => body.is_done(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Http1(body) => body
                .remaining()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

/// Removes the fields that must not be in a trailer section, as the codec of HTTP/1.1 does.
pub fn without_forbidden_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            h1::remove_forbidden_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}
