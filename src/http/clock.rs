//! Timeouts of a connection that cost nothing while it makes progress.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Timer with a deadline that moves with each progress.
///
/// A timer of tokio is registered when the connection first waits, and again only when it fires
/// before the deadline, so that moving the deadline is a store.
#[derive(Debug, Default)]
pub struct Clock {
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    /// Stops the clock. The next [`Self::poll`] starts it again.
    pub fn stop(&mut self) {
        self.deadline = None;
    }

    /// Starts the clock if it is stopped. Ready when `timeout` has passed since then.
    pub fn poll(&mut self, context: &mut Context<'_>, timeout: Duration) -> Poll<()> {
        let deadline = *self
            .deadline
            .get_or_insert_with(|| Instant::now() + timeout);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(context).is_ready() {
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn fires_after_timeout_without_progress() {
        let (start, mut clock) = (Instant::now(), Clock::default());
        poll_fn(|context| clock.poll(context, TIMEOUT)).await;
        assert_eq!(start.elapsed(), TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_moves_the_deadline() {
        let (start, mut clock) = (Instant::now(), Clock::default());
        for _ in 0..3 {
            let wait = poll_fn(|context| clock.poll(context, TIMEOUT));
            assert!(tokio::time::timeout(TIMEOUT / 2, wait).await.is_err());
            clock.stop();
        }
        poll_fn(|context| clock.poll(context, TIMEOUT)).await;
        assert_eq!(start.elapsed(), TIMEOUT * 5 / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn shorter_timeout_is_not_delayed_by_a_longer_one() {
        let (start, mut clock) = (Instant::now(), Clock::default());
        let long = poll_fn(|context| clock.poll(context, TIMEOUT * 9));
        assert!(tokio::time::timeout(TIMEOUT, long).await.is_err());
        clock.stop();
        poll_fn(|context| clock.poll(context, TIMEOUT)).await;
        assert_eq!(start.elapsed(), TIMEOUT * 2);
    }
}
