//! Connections and streams after an upgrade.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::h2::{ByteStream, Reset, UpgradedStream};
use super::{ReadSize, Stream, Transport};

/// Connection of HTTP/1.1 or stream of HTTP/2 that switched to another protocol.
#[derive(Debug)]
pub enum Upgraded {
    Http1(UpgradedConnection),
    Http2(UpgradedStream),
}

/// Connection of HTTP/1.1. Yields the bytes that were received behind the head before it reads from
/// the stream.
#[derive(Debug)]
pub struct UpgradedConnection {
    pub stream: Stream,
    pub input: Bytes,
}

impl Upgraded {
    /// Wraps a TCP connection that was never HTTP. `input` was received from it.
    pub fn from_tcp(stream: TcpStream, input: Bytes) -> Self {
        Self::Http1(UpgradedConnection {
            stream: Stream::Plain(stream),
            input,
        })
    }

    /// Wraps any other stream.
    pub fn from_transport(stream: Box<dyn Transport>) -> Self {
        Self::Http1(UpgradedConnection {
            stream: Stream::Boxed(stream),
            input: Bytes::new(),
        })
    }

    /// Returns true for a TCP connection without TLS.
    pub fn is_tcp(&self) -> bool {
        matches!(self, Self::Http1(connection) if matches!(connection.stream, Stream::Plain(_)))
    }

    /// Returns the next bytes without a copy. `None` in `Ready` is the end. Returns `None` if the
    /// bytes must be read into a buffer. The caller passes their number to [`Self::release`] once
    /// it has processed them.
    pub fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Option<Poll<io::Result<Option<Bytes>>>> {
        match self {
            Self::Http1(connection) if connection.input.is_empty() => None,
            Self::Http1(connection) => {
                let input = std::mem::take(&mut connection.input);
                Some(Poll::Ready(Ok(Some(input))))
            }
            Self::Http2(stream) => Some(stream.poll_chunk(context)),
        }
    }

    /// Lets the peer send `length` more bytes.
    pub fn release(&mut self, length: usize) {
        match self {
            Self::Http1(_) => {}
            Self::Http2(stream) => stream.release(length),
        }
    }

    /// Returns the number of bytes to write next. Pending while most of those before have not left.
    /// `None` for a connection, whose socket decides when bytes are written.
    pub fn poll_room(&self, context: &Context<'_>) -> Poll<Option<usize>> {
        match self {
            Self::Http1(_) => Poll::Ready(None),
            Self::Http2(stream) => stream.poll_room(context).map(Some),
        }
    }

    /// Reads bytes and appends them to `input`. `Ok(0)` is the end of the stream.
    pub fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        input: &mut BytesMut,
        size: &mut ReadSize,
    ) -> Poll<io::Result<usize>> {
        if let Some(chunk) = self.poll_chunk(context) {
            let chunk = ready!(chunk)?.unwrap_or_default();
            input.extend_from_slice(&chunk);
            self.release(chunk.len());
            return Poll::Ready(Ok(chunk.len()));
        }
        match self {
            Self::Http1(connection) => connection.stream.poll_fill(context, input, size),
            // Its bytes arrive in chunks only.
            Self::Http2(_) => Poll::Ready(Ok(0)),
        }
    }

    /// Makes the end of the stream a reset, so that the peer does not take it for a complete one:
    /// RST of TCP, or `RST_STREAM` with `CONNECT_ERROR` (RFC 9113 section 8.5).
    pub fn abort(&mut self) {
        match self {
            Self::Http1(connection) => connection.stream.reset_on_close(),
            Self::Http2(stream) => stream.abort(),
        }
    }

    /// Ready once the peer has reset a stream of HTTP/2, also while it is not read. Connections
    /// report a reset by [`Self::has_failed`] only.
    pub fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<Reset> {
        match self {
            Self::Http1(_) => Poll::Pending,
            Self::Http2(stream) => stream.poll_reset(context),
        }
    }

    /// Returns true if the peer has reset a connection, or TCP has given it up, also while it is not
    /// read.
    pub fn has_failed(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.stream.has_failed(),
            Self::Http2(_) => false,
        }
    }
}

impl<G: 'static> From<ByteStream<G>> for Upgraded {
    fn from(stream: ByteStream<G>) -> Self {
        Self::Http2(stream.erased())
    }
}

impl AsyncRead for UpgradedConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.input.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.input.len().min(buffer.remaining());
        buffer.put_slice(&self.input[..length]);
        self.input.advance(length);
        if self.input.is_empty() {
            // Releases the memory of the head.
            self.input = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpgradedConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).poll_read(context, buffer),
            Self::Http2(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).poll_write(context, bytes),
            Self::Http2(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).poll_flush(context),
            Self::Http2(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).poll_shutdown(context),
            Self::Http2(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
