//! PINGs that detect a client that disappeared.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// Interval in which a client that has sent nothing gets a PING, and then time until it is gone.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(15);

/// Sends a PING to a client that is silent. Any bytes of the client show that it is alive: behind a
/// slow network, the acknowledgement may come after minutes of a response.
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

    /// Ready when the client is gone. `has_received` returns true if bytes of the client have arrived
    /// since its last call.
    pub fn poll_dead(
        &mut self,
        context: &mut Context<'_>,
        mut has_received: impl FnMut() -> bool,
    ) -> Poll<()> {
        let Some(pings) = &mut self.pings else {
            return Poll::Pending;
        };
        loop {
            // An error means that the connection has ended, which its own poll reports.
            if self.waits_for_pong && pings.poll_pong(context).is_ready() {
                self.waits_for_pong = false;
                has_received();
                self.timer.as_mut().reset(Instant::now() + INTERVAL);
            }
            ready!(self.timer.as_mut().poll(context));
            let pause = match (has_received(), self.waits_for_pong) {
                (true, false) => INTERVAL,
                (true, true) => TIMEOUT,
                (false, true) => return Poll::Ready(()),
                (false, false) => {
                    self.waits_for_pong = pings.send_ping(Ping::opaque()).is_ok();
                    TIMEOUT
                }
            };
            self.timer.as_mut().reset(Instant::now() + pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Time until a client is gone that acknowledges nothing. `received` is what `has_received`
    /// returns, then false.
    async fn time_until_dead(received: &[bool]) -> u64 {
        let (mut client, server) = tokio::io::duplex(4096);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        client.write_all(preface).await.unwrap();
        let mut connection = h2::server::handshake(server).await.unwrap();
        let mut keepalive = Keepalive::new(connection.ping_pong());
        let mut received = received.iter();
        let start = Instant::now();
        poll_fn(|context| {
            assert!(connection.poll_accept(context).is_pending());
            keepalive.poll_dead(context, || received.next().copied().unwrap_or_default())
        })
        .await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_client_is_gone_and_one_that_sends_is_not() {
        assert_eq!(time_until_dead(&[]).await, 45);
        assert_eq!(time_until_dead(&[true, true]).await, 105);
        // The acknowledgement is behind other bytes.
        assert_eq!(time_until_dead(&[false, true, true]).await, 75);
    }
}
