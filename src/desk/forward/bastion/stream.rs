//! Tunnel: one stream of HTTP/2 as a byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::link::Slot;
use crate::http::Transport;

/// Maximum number of bytes of one write.
const MAX_WRITE: usize = 64 * 1024;

/// Tunnel to a target. Shutting it down closes the sending side only (`END_STREAM`). Dropping it
/// before both sides have ended resets it (`RST_STREAM`). A reset by the bastion is an error of kind
/// `ConnectionReset`.
#[derive(Debug)]
pub struct TunnelStream {
    sending: SendStream<Bytes>,
    receiving: RecvStream,
    /// Received bytes that were not read.
    received: Bytes,
    has_sent_end: bool,
    _slot: Slot,
}

impl TunnelStream {
    pub(super) fn new(sending: SendStream<Bytes>, receiving: RecvStream, slot: Slot) -> Self {
        Self {
            sending,
            receiving,
            received: Bytes::new(),
            has_sent_end: false,
            _slot: slot,
        }
    }
}

impl Transport for TunnelStream {}

fn failure(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() && error.is_remote() {
        io::ErrorKind::ConnectionReset
    } else {
        // Not the kind of the connection's own error: the end of TLS without an alert would count
        // as an end of the tunnel.
        io::ErrorKind::ConnectionAborted
    };
    io::Error::new(kind, error)
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // A frame may be empty.
        while this.received.is_empty() {
            match ready!(this.receiving.poll_data(context)) {
                Some(Ok(data)) => this.received = data,
                Some(Err(error)) => return Poll::Ready(Err(failure(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.received.len().min(buffer.remaining());
        buffer.put_slice(&this.received[..length]);
        this.received.advance(length);
        // Fails if the stream was reset, which the next read reports.
        let _ = this.receiving.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.sending.reserve_capacity(bytes.len().min(MAX_WRITE));
        let mut capacity = self.sending.capacity();
        if capacity == 0 {
            // Ready after an increase only.
            capacity = match ready!(self.sending.poll_capacity(context)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => return Poll::Ready(Err(failure(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let length = capacity.min(bytes.len());
        let data = Bytes::copy_from_slice(&bytes[..length]);
        self.sending.send_data(data, false).map_err(failure)?;
        Poll::Ready(Ok(length))
    }

    /// Does nothing: the task of the connection sends what was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_sent_end {
            self.has_sent_end = true;
            self.sending
                .send_data(Bytes::new(), true)
                .map_err(failure)?;
        }
        Poll::Ready(Ok(()))
    }
}
