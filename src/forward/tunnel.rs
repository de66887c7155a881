//! Tunnels: the bytes in both directions after an upgrade.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::sync::oneshot;

use crate::apiservers::RequestGuard;
use crate::http::{Upgraded, UpgradedConnection};

/// Connections of a client and an endpoint about to be joined.
#[derive(Debug)]
pub struct Tunnel {
    /// Arrives after the response to the upgrade is sent.
    pub client: oneshot::Receiver<Upgraded>,
    pub upstream: UpgradedConnection,
    /// Request on an API server, which lasts as long as the tunnel.
    pub guard: Option<Box<RequestGuard>>,
}

impl Tunnel {
    /// Copies in both directions until both sides have ended. A side that stops sending is
    /// half-closed: the other may continue. `received` and `sent` count the bytes from and to the
    /// client.
    ///
    /// # Errors
    /// [`TunnelError`] if the upgrade of a side or its connection fails.
    pub async fn run(self, received: &Cell<u64>, sent: &Cell<u64>) -> Result<(), TunnelError> {
        // Either side may send data directly behind its head (C90), which is read before the rest.
        let mut client = Counted {
            io: self.client.await?,
            read: received,
        };
        let mut upstream = Counted {
            io: Upgraded::Http1(self.upstream),
            read: sent,
        };
        // One buffer of 8 KiB per direction. A side is read only while the other takes its bytes.
        copy_bidirectional(&mut client, &mut upstream).await?;
        Ok(())
    }
}

/// Failure of a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The client disconnected before the response to its upgrade was sent.
    #[error("the client disconnected before the upgrade")]
    Gone(#[from] oneshot::error::RecvError),
    #[error("the tunnel connection failed: {0}")]
    Broken(#[from] std::io::Error),
}

/// Stream that counts bytes as they are read. A result of `copy_bidirectional` would come too late:
/// a tunnel that is closed from outside drops the future, and its bytes are logged too.
struct Counted<'a, T> {
    io: T,
    read: &'a Cell<u64>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        // The caller may have filled a part of the buffer already.
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        self.read
            .set(self.read.get() + (buffer.filled().len() - before) as u64);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<'_, T> {
    // Writes are not counted: the other stream counted the same bytes when it read them.
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
