//! Requests and retries of one service port in a sliding window, for the retry budget.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Seconds of one half of the window: long enough that a burst of failures finds the requests of
/// before it, short enough that the window knows the present load.
const HALF_SECONDS: u64 = 10;

/// The time from which halves are counted, the same for all windows.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Counts of the present half of a window and of the one before. Shared by the workers: a request
/// of a service changes the cache line of its rotation anyway, beside which this stands.
#[derive(Debug, Default)]
pub struct RetryWindow {
    /// The number of the present half. Its counts are at the index of its parity.
    half: AtomicU64,
    requests: [AtomicU32; 2],
    retries: [AtomicU32; 2],
}

impl RetryWindow {
    /// Counts a request.
    pub fn deposit(&self, now: Instant) {
        self.requests[self.roll(now)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a retry if one is left: `percent` of the requests, or `min_per_second` however few
    /// requests there are.
    pub fn withdraw(&self, percent: u64, min_per_second: u64, now: Instant) -> bool {
        let present = self.roll(now);
        let sum = |counts: &[AtomicU32; 2]| {
            counts
                .iter()
                .map(|count| u64::from(count.load(Ordering::Relaxed)))
                .sum()
        };
        let (requests, retries): (u64, u64) = (sum(&self.requests), sum(&self.retries));
        let left = retries < (requests * percent / 100).max(min_per_second * HALF_SECONDS);
        if left {
            // Workers that get here together may exceed the budget by one retry each.
            self.retries[present].fetch_add(1, Ordering::Relaxed);
        }
        left
    }

    /// Makes the half of `now` the present one. Returns the index of its counts.
    fn roll(&self, now: Instant) -> usize {
        let half = now.saturating_duration_since(*BASE).as_secs() / HALF_SECONDS;
        let before = self.half.load(Ordering::Relaxed);
        // One worker rolls; what others count in this moment may be lost, which no budget is exact
        // enough to notice.
        let rolls = half > before
            && self
                .half
                .compare_exchange(before, half, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if rolls {
            let clear = |index: usize| {
                self.requests[index].store(0, Ordering::Relaxed);
                self.retries[index].store(0, Ordering::Relaxed);
            };
            clear(index_of(half));
            if half > before + 1 {
                clear(index_of(half + 1));
            }
        }
        index_of(half.max(before))
    }
}

fn index_of(half: u64) -> usize {
    usize::from(!half.is_multiple_of(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Instant {
        *BASE + Duration::from_secs(seconds)
    }

    fn withdrawals(window: &RetryWindow, percent: u64, min_per_second: u64, now: Instant) -> usize {
        let granted = std::iter::repeat_with(|| window.withdraw(percent, min_per_second, now));
        granted.take(10_000).take_while(|granted| *granted).count()
    }

    #[test]
    fn quiet_services_have_the_minimum() {
        assert_eq!(withdrawals(&RetryWindow::default(), 20, 10, at(0)), 100);
        assert_eq!(withdrawals(&RetryWindow::default(), 0, 0, at(0)), 0);
    }

    #[test]
    fn busy_services_have_their_share() {
        let window = RetryWindow::default();
        (0..5_000).for_each(|_| window.deposit(at(5)));
        assert_eq!(withdrawals(&window, 20, 10, at(5)), 1_000);
        (0..5_000).for_each(|_| window.deposit(at(15)));
        assert_eq!(
            withdrawals(&window, 20, 10, at(15)),
            1_000,
            "the half before counts, its retries too"
        );
    }

    #[test]
    fn the_window_slides() {
        let window = RetryWindow::default();
        (0..1_000).for_each(|_| window.deposit(at(9)));
        assert_eq!(withdrawals(&window, 20, 1, at(9)), 200);
        assert_eq!(withdrawals(&window, 20, 1, at(19)), 0);
        assert_eq!(
            withdrawals(&window, 20, 1, at(20)),
            10,
            "requests and retries are gone"
        );
        assert_eq!(withdrawals(&window, 20, 1, at(500)), 10);
    }
}
