//! Events that requests or connections may cause many times.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Time for which a limit counts.
const INTERVAL: Duration = Duration::from_mins(1);

/// Limit of the events of one kind in a minute: clients that have not authenticated must not fill
/// the log.
#[derive(Debug)]
pub struct LogLimit {
    per_minute: u32,
    current: Mutex<Option<(Instant, u32)>>,
}

impl LogLimit {
    pub const fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            current: Mutex::new(None),
        }
    }

    /// Counts an event. Returns true if it is within the limit and to be logged.
    pub fn permits(&self) -> bool {
        let now = Instant::now();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, count) = current
            .filter(|(start, _)| now.duration_since(*start) < INTERVAL)
            .unwrap_or((now, 0));
        *current = Some((start, count.saturating_add(1)));
        count < self.per_minute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn permits_as_many_events_as_the_limit_in_each_minute() {
        let limit = LogLimit::new(2);
        for _ in 0..2 {
            assert_eq!(
                [(); 4].map(|()| limit.permits()),
                [true, true, false, false]
            );
            tokio::time::advance(INTERVAL / 2).await;
            assert!(!limit.permits());
            tokio::time::advance(INTERVAL / 2).await;
        }
    }
}
