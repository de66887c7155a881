//! Connection to a port of a pod.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::state::Attempt;
use super::{Shared, StreamError};

/// Connection to a port of a pod. A failure is an [`io::Error`] with a [`StreamError`] inside.
/// Shutting it down closes the sending side only. Dropping it before both sides have ended resets
/// it.
#[derive(Debug)]
pub struct PortStream {
    shared: Arc<Shared>,
    id: u32,
    port: u16,
    _permit: OwnedSemaphorePermit,
}

impl PortStream {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: u32,
        port: u16,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            shared,
            id,
            port,
            _permit: permit,
        }
    }

    /// Port of the pod.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until the kubelet has accepted the connection.
    pub(super) async fn opened(&self) -> Result<(), StreamError> {
        poll_fn(|context| {
            let attempt = self.shared.lock().opened(self.id, context.waker());
            match attempt {
                Attempt::Done(()) => Poll::Ready(Ok(())),
                Attempt::Failed(error) => Poll::Ready(Err(error)),
                Attempt::Wait => Poll::Pending,
            }
        })
        .await
    }
}

impl Drop for PortStream {
    fn drop(&mut self) {
        self.shared.lock().remove(self.id);
    }
}

fn poll<T>(attempt: Attempt<T>) -> Poll<io::Result<T>> {
    match attempt {
        Attempt::Done(value) => Poll::Ready(Ok(value)),
        Attempt::Failed(error) => Poll::Ready(Err(error.into())),
        Attempt::Wait => Poll::Pending,
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        poll(state.read(self.id, context.waker(), |received| {
            let length = received.len().min(buffer.remaining());
            buffer.put_slice(&received[..length]);
            received.advance(length);
        }))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let attempt = self.shared.lock().write(self.id, context.waker(), bytes);
        poll(attempt).map(|written| written?.ok_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }

    /// Does nothing: the task of the session sends what was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends the sending side once all written bytes have been passed on.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let attempt = self.shared.lock().finish(self.id, context.waker());
        poll(attempt)
    }
}
