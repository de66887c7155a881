//! Time of the last response of an endpoint, shared by all workers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Time of the last response head that an endpoint sent to any worker. Each worker records its own
/// responses and publishes the last one a few times a second, so that requests do not write to a
/// cache line that workers share.
#[derive(Debug)]
pub struct LastResponse {
    base: Instant,
    /// Microseconds after `base`, plus one; 0 for never.
    responded: AtomicU64,
}

impl LastResponse {
    pub fn new(base: Instant) -> Self {
        Self {
            base,
            responded: AtomicU64::new(0),
        }
    }

    /// Records a response. An earlier one than the last has no effect.
    pub fn publish_response(&self, at: Instant) {
        // Relaxed: the value guards no other memory, and a stall check that misses it sees it at
        // the next interval.
        self.responded.fetch_max(self.micros(at), Ordering::Relaxed);
    }

    /// Returns true if a response at `start` or later was published.
    pub fn has_responded_since(&self, start: Instant) -> bool {
        self.responded.load(Ordering::Relaxed) >= self.micros(start)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_micros())
            .unwrap_or(u64::MAX)
            .saturating_add(1)
    }
}
