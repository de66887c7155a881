//! Requests of clients on their way through the pipeline, whatever the version of HTTP.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Method, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use super::authority::is_authority;
use super::h1::{self, BodyError, FieldNames, FramingError, RequestError};
use super::target::RequestTarget;

/// Request of a client.
#[derive(Debug)]
pub struct Request {
    pub head: RequestHead,
    pub body: RequestBody,
    /// Extended CONNECT of HTTP/2 (RFC 8441): the protocol, and the stream that becomes the tunnel.
    pub connect: Option<(Protocol, OnUpgrade)>,
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
    Http1(h1::Incoming),
    Http2(hyper::body::Incoming),
}

/// Failure to receive a body.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Http1(#[from] BodyError),
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

impl Request {
    /// Converts a request of HTTP/2.
    ///
    /// # Errors
    /// [`RequestError`] and the method of the request, if what would become the target, `Host` or
    /// `Content-Length` of an HTTP/1.1 request is invalid.
    pub fn from_http2(
        mut request: http::Request<hyper::body::Incoming>,
    ) -> Result<Self, (RequestError, Method)> {
        let protocol = request.extensions_mut().remove::<Protocol>();
        let connect = protocol.map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
        let (parts, body) = request.into_parts();
        let target = match check_http2(&parts) {
            Ok(target) => target,
            Err(error) => return Err((error, parts.method)),
        };
        let body = if body.is_end_stream() {
            RequestBody::Empty
        } else {
            RequestBody::Http2(body)
        };
        Ok(Self {
            head: RequestHead {
                method: parts.method,
                target,
                version: Version::HTTP_2,
                headers: parts.headers,
                names: FieldNames::default(),
            },
            body,
            connect,
        })
    }
}

/// Checks what hyper does not, with the rules of HTTP/1.1.
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
            Self::Http1(body) => body
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(ReceiveError::Http1))),
            Self::Http2(body) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                Poll::Ready(frame.map(|frame| {
                    frame
                        .map(without_forbidden_trailers)
                        .map_err(ReceiveError::Http2)
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_done(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
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
