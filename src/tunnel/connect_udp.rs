//! Tunnels of UDP datagrams in capsules (RFC 9298): one stream, one flow, one socket.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWrite;
use tokio_util::sync::ReusableBoxFuture;

use super::TunnelError;
use super::capsule::{CapsuleError, Decoder, MAX_PAYLOAD, encode_datagram};
use super::udp::{Datagrams, Fragmentation, UdpSocket, is_transient};
use crate::http::{Clock, ReadSize, Upgraded};

/// Time without a datagram in either direction after which a flow ends. RFC 9298 section 3.1
/// recommends at least two minutes, the minimum of NATs (RFC 4787 section 4.3).
pub const IDLE_TIMEOUT: Duration = Duration::from_mins(2);
/// Number of bytes of capsules after which nothing more is received before the client takes them.
/// One buffer of the socket may exceed it.
const MAX_PENDING: usize = 64 * 1024;
/// Number of datagrams or trains for one write to the client.
const MAX_RECEIVES: usize = 64;
/// Number of reads of one side after which the task lets others run.
const MAX_STEPS: usize = 16;

/// Socket of a flow to its endpoint.
#[derive(Debug)]
pub struct Connected {
    endpoint: SocketAddr,
    socket: UdpSocket,
}

impl Connected {
    /// Opens a socket. Nothing is sent.
    ///
    /// # Errors
    /// An I/O error of the system, such as no free file descriptor, or no route.
    pub fn new(endpoint: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::connect(endpoint, Fragmentation::Forbidden)?;
        Ok(Self { endpoint, socket })
    }
}

/// Passes datagrams between the capsules of a client and a socket to one UDP endpoint until the
/// client ends the stream or the flow is idle for [`IDLE_TIMEOUT`]. `received` and `sent` count the bytes of the
/// payloads from and to the client while they pass. If the client takes none of the capsules that
/// wait for it within the same time, the stream is reset, also while it is being ended.
///
/// Dropping the future resets the stream.
///
/// # Errors
/// [`TunnelError::Client`] for a failed stream and for malformed capsules,
/// [`TunnelError::Endpoint`] if the socket fails, as by an ICMP message. The stream is reset then.
pub async fn run(
    client: Upgraded,
    Connected { endpoint, socket }: Connected,
    received: &Cell<u64>,
    sent: &Cell<u64>,
) -> Result<(), TunnelError> {
    let mut flow = Flow {
        client,
        endpoint,
        input: BytesMut::new(),
        decoder: Decoder::default(),
        output: Vec::new(),
        written: 0,
        size: ReadSize::default(),
        clock: Clock::default(),
        stalled: Clock::default(),
        is_active: false,
        is_closing: false,
        has_ended: false,
    };
    let mut socket = Socket(&socket, ReusableBoxFuture::new(socket.readable()));
    let ended = poll_fn(|context| flow.poll(context, &mut socket, received, sent)).await;
    flow.has_ended = ended.is_ok();
    ended
}

/// Socket with the future that waits for its datagrams.
struct Socket<'a>(&'a UdpSocket, ReusableBoxFuture<'a, io::Result<()>>);

impl Socket<'_> {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        mut receive: impl FnMut(Datagrams<'_>),
    ) -> Poll<io::Result<()>> {
        loop {
            match self.0.try_receive_one(&mut receive) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.1.poll(context))?;
                    self.1.set(self.0.readable());
                }
                received => return Poll::Ready(received),
            }
        }
    }
}

/// Client's side of a flow.
struct Flow {
    client: Upgraded,
    endpoint: SocketAddr,
    /// Bytes of the stream from the last incomplete capsule on.
    input: BytesMut,
    decoder: Decoder,
    /// Capsules for the client, the first `written` bytes of which it has taken.
    output: Vec<u8>,
    written: usize,
    size: ReadSize,
    clock: Clock,
    /// Runs while the client takes nothing.
    stalled: Clock,
    /// A datagram has passed since the clock was looked at.
    is_active: bool,
    /// The stream is being ended in order.
    is_closing: bool,
    has_ended: bool,
}

impl Drop for Flow {
    fn drop(&mut self) {
        if !self.has_ended {
            self.client.abort();
        }
    }
}

impl Flow {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        socket: &mut Socket<'_>,
        received: &Cell<u64>,
        sent: &Cell<u64>,
    ) -> Poll<Result<(), TunnelError>> {
        let polled = self.poll_flow(context, socket, received, sent);
        if polled.is_pending() && (self.is_closing || !self.output.is_empty()) {
            ready!(self.stalled.poll(context, IDLE_TIMEOUT));
            let error = io::Error::new(io::ErrorKind::TimedOut, "the client does not read");
            return Poll::Ready(Err(TunnelError::Client(error)));
        }
        polled
    }

    fn poll_flow(
        &mut self,
        context: &mut Context<'_>,
        socket: &mut Socket<'_>,
        received: &Cell<u64>,
        sent: &Cell<u64>,
    ) -> Poll<Result<(), TunnelError>> {
        if !self.is_closing {
            // Answers first: the client may have ended its stream.
            self.poll_answers(context, socket, sent)?;
            let ended = self.poll_client(context, socket.0, received)?;
            if std::mem::take(&mut self.is_active) {
                self.clock.stop();
            }
            if ended.is_pending() {
                ready!(self.clock.poll(context, IDLE_TIMEOUT));
            }
            self.is_closing = true;
        }
        self.poll_shutdown(context)
    }

    /// Sends the datagrams of the client. Ready at the end of its stream.
    fn poll_client(
        &mut self,
        context: &mut Context<'_>,
        socket: &UdpSocket,
        received: &Cell<u64>,
    ) -> Result<Poll<()>, TunnelError> {
        for _ in 0..MAX_STEPS {
            let polled = self
                .client
                .poll_fill(context, &mut self.input, &mut self.size);
            let Poll::Ready(length) = polled.map_err(TunnelError::Client)? else {
                return Ok(Poll::Pending);
            };
            while let Some(datagram) = self
                .decoder
                .decode(&mut self.input)
                .map_err(|error| TunnelError::Client(invalid(error)))?
            {
                received.set(received.get() + datagram.len() as u64);
                self.is_active = true;
                // One that is longer than the MTU is dropped (RFC 9298 section 5).
                match socket.send(self.endpoint, None, &datagram, MAX_PAYLOAD) {
                    Err(error) if !is_transient(&error) => {
                        return Err(TunnelError::Endpoint(error));
                    }
                    _ => {}
                }
            }
            if length == 0 {
                self.decoder
                    .finish(&self.input)
                    .map_err(|error| TunnelError::Client(invalid(error)))?;
                return Ok(Poll::Ready(()));
            }
            if self.input.is_empty() {
                // The client may be silent for minutes.
                self.input = BytesMut::new();
            }
        }
        context.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    /// Writes the datagrams of the endpoint to the client. While it takes none, they fill the receive
    /// buffer of the socket, and the system drops the rest.
    fn poll_answers(
        &mut self,
        context: &mut Context<'_>,
        socket: &mut Socket<'_>,
        sent: &Cell<u64>,
    ) -> Result<(), TunnelError> {
        for _ in 0..MAX_STEPS {
            if self
                .poll_write(context)
                .map_err(TunnelError::Client)?
                .is_pending()
            {
                return Ok(());
            }
            // One write for many.
            for _ in 0..MAX_RECEIVES {
                if self.output.len() >= MAX_PENDING {
                    break;
                }
                let output = &mut self.output;
                let polled = socket.poll_receive(context, |datagrams: Datagrams<'_>| {
                    for datagram in datagrams.iter() {
                        sent.set(sent.get() + datagram.len() as u64);
                        encode_datagram(datagram, output);
                    }
                });
                if polled.map_err(TunnelError::Endpoint)?.is_pending() {
                    // What was received before is written now.
                    let _ = self.poll_write(context).map_err(TunnelError::Client)?;
                    return Ok(());
                }
                self.is_active = true;
            }
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    /// Writes all capsules.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            let written = ready!(Pin::new(&mut self.client).poll_write(context, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.stalled.stop();
        }
        ready!(Pin::new(&mut self.client).poll_flush(context))?;
        // Without its memory: a flow is idle most of the time.
        self.output = Vec::new();
        self.written = 0;
        self.stalled.stop();
        Poll::Ready(Ok(()))
    }

    /// Ends the stream in order.
    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        ready!(self.poll_write(context)).map_err(TunnelError::Client)?;
        let shut = ready!(Pin::new(&mut self.client).poll_shutdown(context));
        Poll::Ready(shut.map_err(TunnelError::Client))
    }
}

fn invalid(error: CapsuleError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
