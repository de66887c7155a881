//! Transport streams whose bytes are observed as they are read.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;

/// Observer of the bytes that are read from a stream.
pub trait ReadObserver: Unpin {
    /// Returns true if more bytes may be read. The task that lifts the pause must poll the reader
    /// again.
    fn may_read(&mut self) -> bool {
        true
    }

    /// Follows bytes that were read.
    fn observe(&mut self, bytes: &[u8]);
}

/// Transport stream with an observer.
#[derive(Debug)]
pub struct ObservedStream<O> {
    stream: Stream,
    observer: O,
}

impl<O: ReadObserver> ObservedStream<O> {
    pub fn new(stream: Stream, observer: O) -> Self {
        Self { stream, observer }
    }

    pub fn get_ref(&self) -> &Stream {
        &self.stream
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut Stream> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl<O: ReadObserver> AsyncRead for ObservedStream<O> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.observer.may_read() {
            return Poll::Pending;
        }
        let start = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        this.observer.observe(&buffer.filled()[start..]);
        Poll::Ready(Ok(()))
    }
}

impl<O: ReadObserver> AsyncWrite for ObservedStream<O> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}
