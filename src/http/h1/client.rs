//! Connections to endpoints over HTTP/1.1.
//!
//! No task serves a connection: the request that uses it drives its I/O, and while it is idle nothing
//! does. Head, request body and response advance together, because an endpoint may respond before it
//! has read the body.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body::{Body, Frame};
use tokio::time::Sleep;

use super::body::{BodyError, Decoder};
use super::encode::{BodyLength, RequestEncoder};
use super::fields::{Mode, find_head_end};
use super::output::Output;
use super::response::{ParsedResponse, ResponseError, parse_response};
use crate::http::stream::ReadSize;
use crate::http::{MAX_HEADER_BYTES, RequestHead, Stream, UpgradedConnection};

/// Time after which the body is sent although the endpoint has not responded to
/// `Expect: 100-continue`, as in Go's client: it may not know the field.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Number of interim responses after which other tasks get their turn. An endpoint may send them
/// without end.
const INTERIM_PER_TURN: usize = 16;

/// Connection to an endpoint.
#[derive(Debug)]
pub struct ClientConnection {
    stream: Stream,
    /// Bytes that were read and not consumed.
    input: BytesMut,
    read_size: ReadSize,
    output: Output,
    decoder: Decoder,
    /// The response allows another request.
    keep_alive: bool,
}

/// Request body on its way to an endpoint.
#[derive(Debug)]
pub struct Upload<B> {
    body: B,
    length: BodyLength,
    sent: u64,
    state: UploadState,
    /// Timer of [`UploadState::AwaitsContinue`].
    patience: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UploadState {
    AwaitsContinue,
    Sends,
    Done,
    /// The endpoint does not take more. It may still respond.
    Broken,
}

/// Failure of an exchange before the response.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError<E: std::error::Error + 'static> {
    /// The connection failed. `sent` tells if any byte of the request was written.
    #[error("{source}")]
    Io { source: io::Error, sent: bool },
    /// The endpoint closed the connection.
    #[error("EOF")]
    Closed { sent: bool },
    #[error(transparent)]
    Response(#[from] ResponseError),
    /// The client failed to send the request body.
    #[error(transparent)]
    Body(E),
}

impl ClientConnection {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            read_size: ReadSize::default(),
            output: Output::default(),
            decoder: Decoder::new(super::Framing::Empty, Mode::Tolerant),
            keep_alive: true,
        }
    }

    /// Releases the buffers of a connection that becomes idle.
    pub fn release_buffers(&mut self) {
        // Empty, but it may share the allocation of the last response.
        self.input = BytesMut::new();
        self.read_size = ReadSize::default();
    }

    /// Returns true if the endpoint has neither closed the idle connection nor sent anything.
    pub fn is_open(&mut self) -> bool {
        self.stream.is_idle()
    }

    /// Returns true if the response was read to its end and another request may follow.
    pub fn is_reusable(&self) -> bool {
        // Bytes behind the response would be read as the next one.
        self.keep_alive
            && self.decoder.is_done()
            && self.input.is_empty()
            && self.output.is_flushed()
    }

    /// Sends a request and waits for the head of the final response. Interim responses are given to
    /// `on_interim`.
    ///
    /// # Errors
    /// [`ExchangeError`]. The connection must not be used again.
    pub async fn exchange<B>(
        &mut self,
        head: &RequestHead,
        default_host: SocketAddr,
        upload: &mut Option<Box<Upload<B>>>,
        mut on_interim: impl FnMut(ParsedResponse),
    ) -> Result<ParsedResponse, ExchangeError<B::Error>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::error::Error + 'static,
    {
        self.output.begin();
        RequestEncoder {
            head,
            length: upload
                .as_ref()
                .map_or(BodyLength::Unframed, |upload| upload.length),
            default_host,
        }
        .write(self.output.buffer());
        let mut scanned = 0;
        let mut broken = None;
        let mut interim = 0;
        poll_fn(|context| {
            loop {
                if broken.is_none()
                    && let Poll::Ready(Err(error)) = self.poll_upload(context, upload)
                {
                    match error {
                        UploadError::Body(error) => {
                            return Poll::Ready(Err(ExchangeError::Body(error)));
                        }
                        UploadError::Length => {
                            let source = io::Error::other(
                                "the length of the request body differs from its Content-Length",
                            );
                            return Poll::Ready(Err(ExchangeError::Io { source, sent: true }));
                        }
                        // The endpoint may have responded before it stopped reading.
                        UploadError::Io(error) => broken = Some(error),
                    }
                }
                // A part of the body that was taken from the client cannot be sent again.
                let taken = upload.as_ref().is_some_and(|upload| upload.sent > 0);
                let sent = self.output.began || taken;
                let failed = |source| ExchangeError::Io { source, sent };
                match self.poll_response(context, &head.method, &mut scanned) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(Some(response))) => {
                        if response.status.is_informational()
                            && response.status != StatusCode::SWITCHING_PROTOCOLS
                        {
                            if response.status == StatusCode::CONTINUE
                                && let Some(upload) = upload
                            {
                                upload.release();
                            }
                            on_interim(response);
                            interim += 1;
                            if interim % INTERIM_PER_TURN == 0 {
                                context.waker().wake_by_ref();
                                return Poll::Pending;
                            }
                            continue;
                        }
                        if self.output.is_flushed()
                            && upload
                                .as_ref()
                                .is_some_and(|upload| upload.state == UploadState::Done)
                        {
                            // Nothing of the request is left, so the connection can be reused even
                            // if the response has no body to read.
                            *upload = None;
                        }
                        return Poll::Ready(Ok(response));
                    }
                    // The first error tells more than the end that follows it.
                    Poll::Ready(Ok(None)) => {
                        return Poll::Ready(Err(match broken.take() {
                            Some(source) => failed(source),
                            None => ExchangeError::Closed { sent },
                        }));
                    }
                    Poll::Ready(Err(ReadError::Io(error))) => {
                        return Poll::Ready(Err(failed(broken.take().unwrap_or(error))));
                    }
                    Poll::Ready(Err(ReadError::Response(error))) => {
                        return Poll::Ready(Err(error.into()));
                    }
                }
            }
        })
        .await
    }

    /// Reads the next part of the response body. `upload` advances too.
    pub fn poll_body<B>(
        &mut self,
        context: &mut Context<'_>,
        upload: &mut Option<Box<Upload<B>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::error::Error + 'static,
    {
        if upload.is_some() {
            self.advance_upload(context, upload);
        }
        loop {
            if let Poll::Ready(frame) = self.decoder.poll_frame(&mut self.input) {
                return Poll::Ready(frame);
            }
            let read = self
                .stream
                .poll_fill(context, &mut self.input, &mut self.read_size);
            match ready!(read) {
                Ok(0) => {
                    if let Err(error) = self.decoder.end_of_input() {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// Advances the request body while the response waits for the client.
    pub fn advance_upload<B>(
        &mut self,
        context: &mut Context<'_>,
        upload: &mut Option<Box<Upload<B>>>,
    ) where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::error::Error + 'static,
    {
        if let Poll::Ready(result) = self.poll_upload(context, upload) {
            // After an early response the endpoint may refuse the rest of the body, and the client
            // may stop sending it. Either way the connection is not used again.
            self.keep_alive &= result.is_ok();
            *upload = None;
        }
    }

    /// The client reads more slowly than the endpoint sends.
    pub fn shrink_reads(&mut self) {
        self.read_size.shrink();
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Takes the stream for a tunnel, with the bytes that were read behind the response.
    pub fn into_upgraded(self) -> UpgradedConnection {
        UpgradedConnection {
            stream: self.stream,
            input: self.input.freeze(),
        }
    }

    /// Writes the request. Ready when all of it is written.
    fn poll_upload<B>(
        &mut self,
        context: &mut Context<'_>,
        upload: &mut Option<Box<Upload<B>>>,
    ) -> Poll<Result<(), UploadError<B::Error>>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::error::Error + 'static,
    {
        let mut progress = false;
        loop {
            let mut waits = false;
            // The first part may follow the head, and further ones the flushed ones before them:
            // whatever wakes this task, no more is taken while the endpoint does not read.
            if let Some(upload) = upload
                && (self.output.is_flushed() || !self.output.began)
            {
                // Small parts that are ready leave together.
                while upload.takes_parts() && self.output.takes_more() && !waits {
                    waits = upload.poll_fill(context, &mut self.output)?.is_pending();
                }
            }
            if !self.output.is_flushed() {
                let flushed = self
                    .output
                    .poll_flush(context, &mut self.stream, &mut progress);
                if let Err(error) = ready!(flushed) {
                    if let Some(upload) = upload {
                        upload.state = UploadState::Broken;
                    }
                    return Poll::Ready(Err(UploadError::Io(error)));
                }
            }
            if waits {
                return Poll::Pending;
            }
            if upload
                .as_ref()
                .is_none_or(|upload| upload.state != UploadState::Sends)
            {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Reads the head of a response. `None` if the endpoint closed the connection.
    fn poll_response(
        &mut self,
        context: &mut Context<'_>,
        method: &Method,
        scanned: &mut usize,
    ) -> Poll<Result<Option<ParsedResponse>, ReadError>> {
        loop {
            if let Some(end) = find_head_end(&self.input, *scanned) {
                if end > MAX_HEADER_BYTES as usize {
                    return Poll::Ready(Err(ResponseError::HeadTooLong.into()));
                }
                *scanned = 0;
                let head = self.input.split_to(end).freeze();
                let response = parse_response(&head, method)?;
                self.decoder = Decoder::new(response.framing, Mode::Tolerant);
                self.keep_alive = response.keep_alive;
                return Poll::Ready(Ok(Some(response)));
            }
            *scanned = self.input.len();
            if *scanned > MAX_HEADER_BYTES as usize {
                return Poll::Ready(Err(ResponseError::HeadTooLong.into()));
            }
            let read = self
                .stream
                .poll_fill(context, &mut self.input, &mut self.read_size);
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(None));
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Response(#[from] ResponseError),
}

#[derive(Debug)]
enum UploadError<E> {
    Io(io::Error),
    /// The body is not as long as its head says.
    Length,
    Body(E),
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// `expects_continue` tells that the body must wait for a 100 of the endpoint.
    pub fn new(body: B, length: BodyLength, expects_continue: bool) -> Self {
        Self {
            body,
            length,
            sent: 0,
            state: if expects_continue {
                UploadState::AwaitsContinue
            } else {
                UploadState::Sends
            },
            patience: None,
        }
    }

    /// Returns true if more of the body is to be sent, now or after a 100.
    fn takes_parts(&self) -> bool {
        matches!(self.state, UploadState::Sends | UploadState::AwaitsContinue)
    }

    /// The endpoint wants the body.
    fn release(&mut self) {
        if self.state == UploadState::AwaitsContinue {
            self.state = UploadState::Sends;
        }
    }

    /// Queues the next part of the body. Pending if the client has not sent it yet.
    fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        output: &mut Output,
    ) -> Poll<Result<(), UploadError<B::Error>>> {
        if self.state == UploadState::AwaitsContinue {
            let patience = self
                .patience
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(CONTINUE_TIMEOUT)));
            ready!(patience.as_mut().poll(context));
            self.state = UploadState::Sends;
        }
        if self.state != UploadState::Sends {
            return Poll::Ready(Ok(()));
        }
        let is_chunked = self.length == BodyLength::Chunked;
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let mut trailers = None;
        let mut is_last = frame.is_none();
        match frame.transpose().map_err(UploadError::Body)? {
            None => {}
            Some(frame) => match frame.into_data() {
                Ok(data) => {
                    self.sent += data.len() as u64;
                    output.push(data, is_chunked);
                    is_last = self.body.is_end_stream();
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
                return Poll::Ready(Err(UploadError::Length));
            }
            self.state = UploadState::Done;
            if is_chunked {
                output.push_last_chunk(trailers.as_ref());
            }
        }
        Poll::Ready(Ok(()))
    }
}
