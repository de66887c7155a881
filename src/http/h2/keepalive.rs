//! PINGs that detect a client that disappeared (CONFORMANCE C53).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// Interval of the PINGs and timeout of their acknowledgements.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(15);

/// Sends a PING at an interval, and waits for a missing acknowledgement.
pub(super) struct Keepalive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    waits_for_pong: bool,
}

impl Keepalive {
    pub fn new(pings: Option<PingPong>) -> Self {
        Self {
            pings,
            timer: Box::pin(sleep(INTERVAL)),
            waits_for_pong: false,
        }
    }

    /// Ready when the client is gone.
    pub fn poll_dead(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else {
            return Poll::Pending;
        };
        loop {
            // An error means that the connection has ended, which its own poll reports.
            if self.waits_for_pong && pings.poll_pong(context).is_ready() {
                self.waits_for_pong = false;
                self.timer.as_mut().reset(Instant::now() + INTERVAL);
            }
            ready!(self.timer.as_mut().poll(context));
            if self.waits_for_pong {
                return Poll::Ready(());
            }
            self.waits_for_pong = pings.send_ping(Ping::opaque()).is_ok();
            self.timer.as_mut().reset(Instant::now() + TIMEOUT);
        }
    }
}
