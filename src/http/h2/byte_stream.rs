//! Streams of HTTP/2 as byte streams, of both sides (RFC 9113 section 8.5).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum number of bytes of one write.
const MAX_WRITE: usize = 64 * 1024;

/// DATA frames of a stream as bytes. Shutting it down closes the sending side only (`END_STREAM`).
/// Dropping it before both sides have ended resets the stream. A reset by the peer is an error of
/// kind `ConnectionReset`.
#[derive(Debug)]
pub struct ByteStream<G> {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received bytes that were not read.
    input: Bytes,
    is_shut_down: bool,
    /// Held as long as the stream.
    _guard: G,
}

impl<G> ByteStream<G> {
    pub fn new(send: SendStream<Bytes>, receive: RecvStream, guard: G) -> Self {
        Self {
            send,
            receive,
            input: Bytes::new(),
            is_shut_down: false,
            _guard: guard,
        }
    }

    /// Returns the next bytes, which [`Self::release`] returns to the window. `None` is the end.
    pub fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.input.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.input))));
        }
        loop {
            let chunk = match ready!(self.receive.poll_data(context)) {
                None => None,
                // An empty frame without END_STREAM.
                Some(Ok(data)) if data.is_empty() => continue,
                Some(data) => Some(data.map_err(failure)?),
            };
            return Poll::Ready(Ok(chunk));
        }
    }

    /// Returns `length` bytes to the flow-control window.
    pub fn release(&mut self, length: usize) {
        // Fails only if the stream has been reset, which the next read reports.
        let _ = self.receive.flow_control().release_capacity(length);
    }

    /// Resets the stream.
    pub fn abort(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    /// Ready once the peer has reset the stream or its connection has failed.
    pub fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.send.poll_reset(context).map(|_| ())
    }
}

fn failure(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() && error.is_remote() {
        io::ErrorKind::ConnectionReset
    } else {
        // Not the kind of the connection's own error: the end of TLS without an alert would count
        // as an end of the stream.
        io::ErrorKind::ConnectionAborted
    };
    io::Error::new(kind, error)
}

impl<G: Unpin> AsyncRead for ByteStream<G> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.input.is_empty() {
            match ready!(this.poll_chunk(context))? {
                None => return Poll::Ready(Ok(())),
                Some(data) => this.input = data,
            }
        }
        let length = this.input.len().min(buffer.remaining());
        buffer.put_slice(&this.input[..length]);
        this.input.advance(length);
        this.release(length);
        Poll::Ready(Ok(()))
    }
}

impl<G: Unpin> AsyncWrite for ByteStream<G> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len().min(MAX_WRITE));
        let mut capacity = self.send.capacity();
        while capacity == 0 {
            capacity = match ready!(self.send.poll_capacity(context)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => return Poll::Ready(Err(failure(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let length = capacity.min(bytes.len()).min(MAX_WRITE);
        let data = Bytes::copy_from_slice(&bytes[..length]);
        self.send.send_data(data, false).map_err(failure)?;
        Poll::Ready(Ok(length))
    }

    /// Writes are with h2 already, whose connection task sends them.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut_down {
            self.is_shut_down = true;
            self.send.send_data(Bytes::new(), true).map_err(failure)?;
        }
        Poll::Ready(Ok(()))
    }
}
