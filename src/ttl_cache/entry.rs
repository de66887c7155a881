//! Entries of the cache: a value with the times at which it is refreshed, expires and is dropped.

use std::time::{Duration, Instant};

/// Maximum lifetime of an entry, so that no setting overflows the clock.
const MAX_TTL: Duration = Duration::from_hours(24 * 365);
/// Time for which a failed fetch is cached. Callers queue for a key while it is fetched; without
/// this, each of them would wait for its own timeout, one after the other.
pub(super) const FAILURE_TTL: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub(super) struct Entry<V> {
    pub(super) value: V,
    pub(super) lifetime: Lifetime,
}

/// Deadlines of an entry, in ascending order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    /// The first hit from here on refreshes the entry.
    pub(super) refresh_at: Instant,
    /// The entry is valid until here.
    pub(super) expires: Instant,
    /// The entry is used until here while the source is unreachable.
    pub(super) stale_until: Instant,
}

impl Lifetime {
    /// Lifetime of a value that may be refreshed and used past its expiry. `usable_for` limits all
    /// of it.
    pub(super) fn refreshable(
        now: Instant,
        ttl: Duration,
        usable_for: Duration,
        stale_on_error: Duration,
    ) -> Self {
        // `usable_for` may be `Duration::MAX`, and adding to an `Instant` panics on overflow.
        let ttl = ttl.min(usable_for).min(MAX_TTL);
        let stale_for = ttl
            .saturating_add(stale_on_error)
            .min(usable_for)
            .min(MAX_TTL);
        Self {
            // Half of the lifetime is left for the refresh and its retries.
            refresh_at: now + ttl / 2,
            expires: now + ttl,
            stale_until: now + stale_for,
        }
    }

    /// Lifetime of a value that is neither refreshed nor used past its expiry.
    pub(super) fn fixed(now: Instant, ttl: Duration) -> Self {
        // With equal deadlines the entry is never due for a refresh and never stale.
        let expires = now + ttl.min(MAX_TTL);
        Self {
            refresh_at: expires,
            expires,
            stale_until: expires,
        }
    }

    /// Extends an expired entry for a moment while the source is unreachable, so that the next
    /// callers do not wait for the source as well. Returns `None` once the entry is too old.
    pub(super) fn extend_stale(self, now: Instant) -> Option<Self> {
        // Never beyond the limit that was set when the value was fetched: extensions do not add up.
        let expires = (now + FAILURE_TTL).min(self.stale_until);
        // No refresh before the new expiry: the source has just failed.
        (self.stale_until > now).then_some(Self {
            refresh_at: expires,
            expires,
            stale_until: self.stale_until,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn refreshes_at_half_of_the_lifetime() {
        let now = Instant::now();
        let lifetime = Lifetime::refreshable(now, 10 * SECOND, Duration::MAX, 60 * SECOND);
        assert_eq!(lifetime.refresh_at, now + 5 * SECOND);
        assert_eq!(lifetime.expires, now + 10 * SECOND);
        assert_eq!(lifetime.stale_until, now + 70 * SECOND);
    }

    #[test]
    fn limits_all_deadlines_to_usable_time() {
        let now = Instant::now();
        let lifetime = Lifetime::refreshable(now, 10 * SECOND, 4 * SECOND, 60 * SECOND);
        assert_eq!(lifetime.refresh_at, now + 2 * SECOND);
        assert_eq!(lifetime.expires, now + 4 * SECOND);
        assert_eq!(lifetime.stale_until, now + 4 * SECOND);
    }

    #[test]
    fn limits_lifetimes_that_would_overflow() {
        let now = Instant::now();
        let max = Duration::MAX;
        assert_eq!(Lifetime::fixed(now, max).expires, now + MAX_TTL);
        assert_eq!(
            Lifetime::refreshable(now, max, max, max).stale_until,
            now + MAX_TTL
        );
    }

    #[test]
    fn extends_stale_entry_up_to_its_end() {
        let now = Instant::now();
        let stale_until = now + FAILURE_TTL / 2;
        let lifetime = Lifetime {
            refresh_at: now,
            expires: now,
            stale_until,
        };
        assert_eq!(lifetime.extend_stale(now).unwrap().expires, stale_until);
        assert!(lifetime.extend_stale(stale_until).is_none());
    }
}
