//! Streams of HTTP/2 as tunnels (RFC 8441 section 5).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::heads::OpenStream;

/// Maximum number of bytes of one write.
const MAX_WRITE: usize = 64 * 1024;

/// Stream of an extended CONNECT.
#[derive(Debug)]
pub struct UpgradedStream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    input: Bytes,
    is_shut_down: bool,
    /// Holds the share of the trailers, which are not read.
    _open: OpenStream,
}

impl UpgradedStream {
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream, open: OpenStream) -> Self {
        Self {
            send,
            receive,
            input: Bytes::new(),
            is_shut_down: false,
            _open: open,
        }
    }

    /// Returns the next bytes. `None` is the end.
    pub(crate) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Bytes>>> {
        if !self.input.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.input))));
        }
        loop {
            let chunk = match ready!(self.receive.poll_data(context)) {
                None => None,
                // An empty frame without END_STREAM.
                Some(Ok(data)) if data.is_empty() => continue,
                Some(data) => Some(data.map_err(io::Error::other)?),
            };
            return Poll::Ready(Ok(chunk));
        }
    }

    /// Returns `length` bytes to the flow-control window.
    pub(crate) fn release(&mut self, length: usize) {
        // Fails only if the stream has been reset.
        let _ = self.receive.flow_control().release_capacity(length);
    }

    /// Resets the stream.
    pub(crate) fn abort(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    /// Ready once the peer has reset the stream or its connection has failed.
    pub(crate) fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.send.poll_reset(context).map(|_| ())
    }
}

impl AsyncRead for UpgradedStream {
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

impl AsyncWrite for UpgradedStream {
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
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let length = capacity.min(bytes.len()).min(MAX_WRITE);
        let data = Bytes::copy_from_slice(&bytes[..length]);
        self.send.send_data(data, false).map_err(io::Error::other)?;
        Poll::Ready(Ok(length))
    }

    /// Writes are with h2 already, whose connection task sends them.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut_down {
            self.is_shut_down = true;
            self.send
                .send_data(Bytes::new(), true)
                .map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}
