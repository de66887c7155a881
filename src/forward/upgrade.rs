//! Upgrades: WebSocket, SPDY, anything that HTTP/1.1 can switch to (CONFORMANCE chapter 9).

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use super::response::Upstream;
use super::{Answer, ForwardError};
use crate::model::Endpoint;

/// What an endpoint answered to an upgrade.
#[derive(Debug)]
pub enum Upgraded {
    /// 101: the head for the client, and the tunnel that opens behind it.
    Switched { response: Response<()>, tunnel: Tunnel, endpoint: Endpoint },
    /// An error, to be passed on; the connection ends with it, so that nothing that the client sends behind the
    /// request reaches the endpoint (C87, CVE-2018-1002105).
    Refused(Answer),
}

impl Upgraded {
    pub(super) fn of(
        mut response: Response<Incoming>,
        endpoint: Endpoint,
        client: OnUpgrade,
    ) -> Result<Self, ForwardError> {
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let upstream = hyper::upgrade::on(&mut response);
                let tunnel = Tunnel { client, upstream };
                Ok(Self::Switched { response: response.map(|_| ()), tunnel, endpoint })
            }
            status if status.is_client_error() || status.is_server_error() => {
                Ok(Self::Refused(Answer { response: response.map(Upstream::closing), endpoint }))
            }
            // A success or a redirect in answer to an upgrade would leave the client talking to nobody knows whom
            // (C88, CVE-2020-8559).
            status => Err(ForwardError::InvalidUpgrade(status)),
        }
    }
}

/// Two connections about to be joined.
#[derive(Debug)]
pub struct Tunnel {
    client: OnUpgrade,
    upstream: OnUpgrade,
}

impl Tunnel {
    /// Copies both ways until both sides are done; when one side ends its sending, the other is told and may go on
    /// (half-close). `received` and `sent` count the bytes from and to the client.
    ///
    /// # Errors
    /// Where either side breaks.
    pub async fn run(self, received: &Cell<u64>, sent: &Cell<u64>) -> Result<(), TunnelError> {
        // What either side sent right behind its head is in the buffers that hyper hands over (C90).
        let (client, upstream) = tokio::try_join!(self.client, self.upstream)?;
        let mut client = Counted { io: TokioIo::new(client), read: received };
        let mut upstream = Counted { io: TokioIo::new(upstream), read: sent };
        copy_bidirectional(&mut client, &mut upstream).await?;
        Ok(())
    }
}

/// Why a tunnel ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("the upgrade did not come about: {0}")]
    Upgrade(#[from] hyper::Error),
    #[error("the tunnel broke: {0}")]
    Broken(#[from] std::io::Error),
}

/// Counts what is read, as it is read: a tunnel that is cut has moved bytes too.
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
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        self.read.set(self.read.get() + (buffer.filled().len() - before) as u64);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
