//! The last answer of an endpoint, as all workers know it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The time when an endpoint last answered a request of any worker. Each worker notes its own
/// answers and publishes the last one a few times a second, so that no request writes to a cache
/// line that workers share.
#[derive(Debug)]
pub struct Health {
    base: Instant,
    /// Microseconds after `base`; 0 for never.
    answered: AtomicU64,
}

impl Health {
    pub(super) fn new(base: Instant) -> Self {
        Self {
            base,
            answered: AtomicU64::new(0),
        }
    }

    pub fn publish_answer(&self, at: Instant) {
        self.answered.fetch_max(self.micros(at), Ordering::Relaxed);
    }

    /// Whether an answer was published that came at `start` or later.
    pub fn has_answered_since(&self, start: Instant) -> bool {
        self.answered.load(Ordering::Relaxed) >= self.micros(start)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_micros())
            .unwrap_or(u64::MAX)
            .saturating_add(1)
    }
}
