//! Relay of bytes between two streams, with the semantics of one TCP connection: a side that stops
//! sending is half-closed, and a side that is reset resets the other. A server of HTTP/2 may reset a
//! stream with `NO_ERROR` behind its end, which means that it accepts no more bytes, as a closed
//! connection does (RFC 9113 section 8.1).

mod direction;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::TunnelError;
use crate::http::h2::Reset;
use crate::http::{Clock, Upgraded};
use direction::{Direction, Failure};

/// Interval at which a TCP connection that is not read is checked for a reset. A stream of HTTP/2
/// reports it immediately.
const RESET_CHECK: Duration = Duration::from_secs(1);

/// Maximum time that a client has to end its side once everything has been written to it and the
/// endpoint accepts nothing. If it goes on to send and reads slowly, it may be reset before it has
/// read the end.
const LINGER: Duration = Duration::from_secs(1);

/// Client and endpoint of a tunnel.
///
/// Dropping it before the end of [`Self::run`] resets both sides: neither may take the bytes so far
/// for everything that the other sent.
#[derive(Debug)]
pub struct Relay {
    client: Upgraded,
    endpoint: Upgraded,
    /// From the client to the endpoint.
    up: Direction,
    /// From the endpoint to the client.
    down: Direction,
    clock: Clock,
    /// Waits for the end of a client from which nothing is accepted.
    is_lingering: bool,
    has_ended: bool,
}

impl Relay {
    pub fn new(client: Upgraded, endpoint: Upgraded) -> Self {
        Self {
            client,
            endpoint,
            up: Direction::default(),
            down: Direction::default(),
            clock: Clock::default(),
            is_lingering: false,
            has_ended: false,
        }
    }

    /// Relays in both directions until both sides have ended. There is no idle timeout: TCP
    /// keepalive detects peers that disappeared. `received` and `sent` count the bytes from and to
    /// the client while they pass.
    ///
    /// # Errors
    /// [`TunnelError`] if a side is reset or its connection fails. The other side is reset then.
    pub async fn run(mut self, received: &Cell<u64>, sent: &Cell<u64>) -> Result<(), TunnelError> {
        let ended = poll_fn(|context| self.poll(context, received, sent)).await;
        self.has_ended = true;
        if let Err(error) = &ended {
            self.pass_on(error);
        }
        ended
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        received: &Cell<u64>,
        sent: &Cell<u64>,
    ) -> Poll<Result<(), TunnelError>> {
        let Self {
            client,
            endpoint,
            up,
            down,
            ..
        } = self;
        let mut upload = up.poll(context, client, endpoint, received, down.is_closed());
        if matches!(upload, Poll::Ready(Err(Failure::Write(_))))
            && endpoint.poll_reset(context) == Poll::Ready(Reset::NoError)
        {
            up.stop();
            upload = up.poll(context, client, endpoint, received, down.is_closed());
        }
        let download = down.poll(context, endpoint, client, sent, up.is_closed());
        if up.is_delivered() && down.is_delivered() {
            // Every byte that is accepted has been passed on. A side that has closed its connection
            // already can fail the shutdown.
            return match (upload, download) {
                (Poll::Pending, Poll::Ready(_)) if up.is_stopped() => {
                    if !self.is_lingering {
                        self.is_lingering = true;
                        self.clock.stop();
                    }
                    self.clock.poll(context, LINGER).map(Ok)
                }
                (Poll::Pending, _) | (_, Poll::Pending) => Poll::Pending,
                _ => Poll::Ready(Ok(())),
            };
        }
        if let Poll::Ready(Err(failure)) = upload {
            return Poll::Ready(Err(match failure {
                Failure::Read(error) => TunnelError::Client(error),
                Failure::Write(error) => TunnelError::Endpoint(error),
            }));
        }
        if let Poll::Ready(Err(failure)) = download {
            return Poll::Ready(Err(match failure {
                Failure::Read(error) => TunnelError::Endpoint(error),
                Failure::Write(error) => TunnelError::Client(error),
            }));
        }
        self.poll_unread(context).map(Err)
    }

    /// Detects the reset of a side that is not read, because it has stopped sending or because the
    /// other side is slow.
    fn poll_unread(&mut self, context: &mut Context<'_>) -> Poll<TunnelError> {
        let (client, endpoint) = (!self.up.is_reading(), !self.down.is_reading());
        if !client && !endpoint {
            self.clock.stop();
            return Poll::Pending;
        }
        if client && self.client.poll_reset(context).is_ready() {
            return Poll::Ready(TunnelError::Client(reset()));
        }
        if endpoint && let Poll::Ready(kind) = self.endpoint.poll_reset(context) {
            if kind == Reset::Error {
                return Poll::Ready(TunnelError::Endpoint(reset()));
            }
            if !self.up.is_stopped() && !self.up.is_closed() {
                self.up.stop();
                context.waker().wake_by_ref();
            }
        }
        loop {
            ready!(self.clock.poll(context, RESET_CHECK));
            self.clock.stop();
            if client && self.client.has_failed() {
                return Poll::Ready(TunnelError::Client(reset()));
            }
            if endpoint && self.endpoint.has_failed() {
                return Poll::Ready(TunnelError::Endpoint(reset()));
            }
        }
    }

    /// Passes a failure of one side on to the other.
    fn pass_on(&mut self, error: &TunnelError) {
        let (error, other) = match error {
            TunnelError::Client(error) => (error, &mut self.endpoint),
            TunnelError::Endpoint(error) => (error, &mut self.client),
            TunnelError::Gone(_) => return,
        };
        // Many programs close TLS without its closing alert. What they sent before must arrive,
        // which a reset would prevent: the other side is closed, without an alert in its TLS.
        if error.kind() != io::ErrorKind::UnexpectedEof {
            other.abort();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.has_ended {
            self.client.abort();
            self.endpoint.abort();
        }
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}
