//! Responses of HTTP/2.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderValue, Method, Response, header};
use http_body::Body;

use crate::http::PacedBody;
use crate::http::clock::Clock;
use crate::http::h1::{Timeouts, has_no_body};

/// Writer of the response to a request with `method`.
pub(super) struct ResponseWriter {
    pub method: Method,
    pub timeouts: Timeouts,
}

impl ResponseWriter {
    /// Sends the head. `ends` tells that no body follows it.
    pub fn begin<B>(
        respond: &RefCell<SendResponse<Bytes>>,
        response: Response<B>,
        ends: bool,
    ) -> Result<SendStream<Bytes>, h2::Error> {
        let mut response = response.map(|_| ());
        let headers = response.headers_mut();
        // HTTP/2 has no fields of one hop (RFC 9113 section 8.2.2).
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
        if !headers.contains_key(header::DATE) {
            headers.insert(header::DATE, crate::http::date::now());
        }
        respond.borrow_mut().send_response(response, ends)
    }

    /// Sends the response. It is no `async fn`, whose future would keep the response in each of its
    /// forms.
    ///
    /// # Errors
    /// A failed body, or a client that does not read. The stream must be reset, so that the client
    /// cannot take the response for a complete one (CONFORMANCE C99).
    pub fn write<B: PacedBody>(
        self,
        respond: &RefCell<SendResponse<Bytes>>,
        mut response: Response<B>,
    ) -> impl Future<Output = io::Result<()>> + use<B> {
        let has_no_body = has_no_body(&self.method, response.status());
        if let Some(exact) = response.body().size_hint().exact()
            // A response of an endpoint to HEAD has the length of its GET, or none.
            && (!has_no_body || response.body().is_own() && exact > 0)
            && !response.headers().contains_key(header::CONTENT_LENGTH)
        {
            let length = HeaderValue::from(exact);
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length);
        }
        let (parts, body) = response.into_parts();
        let ends = has_no_body || body.is_end_stream();
        let timeout = if body.is_own() {
            self.timeouts.idle
        } else {
            self.timeouts.write
        };
        let head = Response::from_parts(parts, ());
        let began = Self::begin(respond, head, ends).map_err(io::Error::other);
        let mut transfer = began.map(|stream| {
            (!ends).then(|| Transfer {
                stream,
                body,
                timeout,
                clock: Clock::default(),
                part: Part::default(),
            })
        });
        poll_fn(move |context| match &mut transfer {
            Ok(Some(transfer)) => transfer.poll(context),
            Ok(None) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(io::Error::other(error.to_string()))),
        })
    }
}

/// Body of a response on its way to the client.
struct Transfer<B> {
    stream: SendStream<Bytes>,
    body: B,
    /// Maximum time without progress.
    timeout: Duration,
    clock: Clock,
    part: Part,
}

impl<B: PacedBody> Transfer<B> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            stream,
            body,
            timeout,
            clock,
            part,
        } = self;
        let mut body = Pin::new(body);
        loop {
            if !part.data.is_empty() {
                match part.poll_send(context, stream)? {
                    Poll::Ready(()) => clock.stop(),
                    Poll::Pending => {
                        body.as_mut().poll_blocked(context);
                        return clock.poll(context, *timeout).map(|()| {
                            // The stream ends; the connection of a client that reads nothing ends
                            // by its PINGs.
                            stream.send_reset(Reason::CANCEL);
                            Err(io::Error::new(
                                io::ErrorKind::TimedOut,
                                "the client did not read the response in time",
                            ))
                        });
                    }
                }
                continue;
            }
            if part.is_last {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(frame) = body.as_mut().poll_frame(context) else {
                // The client reset the stream or left.
                return stream
                    .poll_reset(context)
                    .map(|_| Err(io::ErrorKind::ConnectionAborted.into()));
            };
            let ended = match frame {
                None => stream.send_data(Bytes::new(), true),
                Some(Err(error)) => {
                    return Poll::Ready(Err(io::Error::other(error.to_string())));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        part.is_last = body.is_end_stream();
                        if data.is_empty() && part.is_last {
                            stream.send_data(Bytes::new(), true)
                        } else {
                            part.data = data;
                            continue;
                        }
                    }
                    Err(frame) => stream.send_trailers(frame.into_trailers().unwrap_or_default()),
                },
            };
            return Poll::Ready(ended.map_err(io::Error::other));
        }
    }
}

/// Part of a body on its way to the client.
#[derive(Default)]
struct Part {
    data: Bytes,
    is_last: bool,
}

impl Part {
    /// Sends as much as the windows of stream and connection allow. Pending if they are closed.
    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut SendStream<Bytes>,
    ) -> io::Result<Poll<()>> {
        stream.reserve_capacity(self.data.len());
        let mut capacity = stream.capacity();
        while capacity == 0 {
            // Reports a change; the capacity may still be zero.
            capacity = match stream.poll_capacity(context) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Some(Ok(capacity))) => capacity,
                Poll::Ready(Some(Err(error))) => return Err(io::Error::other(error)),
                Poll::Ready(None) => return Err(io::ErrorKind::ConnectionAborted.into()),
            };
        }
        let piece = self.data.split_to(capacity.min(self.data.len()));
        let ends = self.is_last && self.data.is_empty();
        stream.send_data(piece, ends).map_err(io::Error::other)?;
        Ok(Poll::Ready(()))
    }
}
