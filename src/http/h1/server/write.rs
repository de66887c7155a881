//! Writing to a client: responses.

use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Response, StatusCode, Version, header};
use http_body::Frame;
use hyper::ext::ReasonPhrase;

use super::{Connection, ServerConnection, Timeouts};
use crate::http::PacedBody;
use crate::http::clock::Clock;
use crate::http::h1::encode::{BodyLength, ResponseEncoder, response_length};
use crate::http::h1::fields::FieldNames;
use crate::http::h1::output::Output;

impl Connection {
    /// Writes all queued bytes.
    pub(super) fn poll_output(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut progress = false;
        self.output
            .poll_flush(context, &mut self.stream, &mut progress)
    }
}

/// Writer of one response.
pub(super) struct ResponseWriter<'a> {
    pub connection: &'a ServerConnection,
    pub method: Method,
    /// Version of the request.
    pub version: Version,
    /// The connection may stay open after the response.
    pub keep_alive: bool,
}

/// Progress of a body.
struct Transfer {
    length: BodyLength,
    sent: u64,
    is_complete: bool,
}

impl ResponseWriter<'_> {
    /// Writes the response. Returns true if the connection stays open.
    ///
    /// # Errors
    /// An I/O error or timeout of the client, or the failure of the body. The connection must be
    /// closed without further bytes, so that the client cannot take the response for a complete one
    /// (CONFORMANCE C99).
    pub async fn write<B: PacedBody>(
        self,
        response: Response<B>,
        clock: &mut Clock,
        timeouts: Timeouts,
    ) -> io::Result<bool> {
        let (mut parts, body) = response.into_parts();
        let mut body = pin!(body);
        let exact = body.size_hint().exact();
        let mut length = response_length(exact, &self.method, parts.status, self.version);
        // The pipeline closes the connection after a refused upgrade.
        let closes = parts.headers.contains_key(header::CONNECTION)
            && parts.status != StatusCode::SWITCHING_PROTOCOLS;
        let keep_alive = self.keep_alive && !closes && length != BodyLength::UntilClose;
        let has_body = !matches!(length, BodyLength::None | BodyLength::Unframed);
        if length == BodyLength::Unframed
            && body.is_own()
            && let Some(exact) = exact.filter(|length| *length > 0)
        {
            // The length that a GET would have. Responses of endpoints have their own field.
            length = BodyLength::Known(exact);
        }
        let names = parts.extensions.remove::<FieldNames>();
        let reason = parts.extensions.remove::<ReasonPhrase>();
        {
            let mut connection = self.connection.0.borrow_mut();
            connection.response_began = true;
            let encoder = ResponseEncoder {
                status: parts.status,
                reason: reason.as_ref(),
                headers: &parts.headers,
                names: names.as_ref(),
                length,
                version: self.version,
                keep_alive,
            };
            encoder.write(connection.output.buffer());
        }
        let timeout = if body.is_own() {
            timeouts.idle
        } else {
            timeouts.write
        };
        let mut transfer = Transfer {
            length,
            sent: 0,
            is_complete: !has_body,
        };
        clock.stop();
        let (mut blocked, mut failure) = (false, None);
        let written = poll_fn(|context| {
            loop {
                let mut waits_for_body = false;
                // Small parts that are ready leave together, the first ones with the head. While the
                // client does not read, no more is taken.
                while !blocked && !transfer.is_complete && !waits_for_body && failure.is_none() {
                    if !self.connection.0.borrow().output.takes_more() {
                        break;
                    }
                    match body.as_mut().poll_frame(context) {
                        Poll::Pending => waits_for_body = true,
                        Poll::Ready(frame) => {
                            let ends = body.is_end_stream();
                            let mut connection = self.connection.0.borrow_mut();
                            // The client gets what arrived before the failure.
                            failure = transfer.push(frame, ends, &mut connection.output).err();
                        }
                    }
                }
                let mut connection = self.connection.0.borrow_mut();
                let Connection { output, stream, .. } = &mut *connection;
                let mut progress = false;
                let flushed = output.poll_flush(context, stream, &mut progress)?;
                if progress {
                    clock.stop();
                }
                blocked = flushed.is_pending();
                if blocked {
                    drop(connection);
                    // An endpoint may wait for the rest of the request before it goes on.
                    body.as_mut().poll_blocked(context);
                    return clock.poll(context, timeout).map(|()| {
                        Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the client did not read the response in time",
                        ))
                    });
                }
                if let Some(failure) = failure.take() {
                    return Poll::Ready(Err(failure));
                }
                if transfer.is_complete {
                    return Poll::Ready(Ok(()));
                }
                if waits_for_body {
                    clock.stop();
                    return connection.poll_gone(context).map(Err);
                }
            }
        })
        .await;
        if written.is_err() && length == BodyLength::UntilClose {
            // Without a reset the close would look like the end of the body.
            self.connection.0.borrow().stream.reset_on_close();
        }
        written.map(|()| keep_alive)
    }
}

impl Transfer {
    /// Queues the next part of the body. `ends` tells that no other part follows it.
    fn push<E: Display>(
        &mut self,
        frame: Option<Result<Frame<Bytes>, E>>,
        ends: bool,
        output: &mut Output,
    ) -> io::Result<()> {
        let is_chunked = self.length == BodyLength::Chunked;
        let mut trailers = None;
        let mut is_last = ends;
        match frame {
            None => is_last = true,
            Some(Err(error)) => return Err(io::Error::other(error.to_string())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.sent += data.len() as u64;
                    if let BodyLength::Known(length) = self.length
                        && self.sent > length
                    {
                        return Err(wrong_length());
                    }
                    output.push(data, is_chunked);
                }
                Err(frame) => {
                    trailers = frame.into_trailers().ok();
                    is_last = true;
                }
            },
        }
        if is_last {
            if let BodyLength::Known(length) = self.length
                && self.sent != length
            {
                return Err(wrong_length());
            }
            if is_chunked {
                output.push_last_chunk(trailers.as_ref());
            }
            self.is_complete = true;
        }
        Ok(())
    }
}

fn wrong_length() -> io::Error {
    io::Error::other("the length of the body differs from its Content-Length")
}
