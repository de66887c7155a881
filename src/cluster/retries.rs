//! Sliding window of requests and retries of one service port, for the retry budget.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Length of one half of the window. Long enough that the requests before a burst of failures still
/// count, short enough that the window follows the current load.
const HALF_SECONDS: u64 = 10;

/// Start of the first half, shared by all windows.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Counts of the current and the previous half of a window. Shared by all workers: a request
/// already writes the cache line of the adjacent round-robin counter.
#[derive(Debug, Default)]
pub struct RetryWindow {
    /// Number of the current half. Its counts are at the index of its parity.
    half: AtomicU64,
    requests: [AtomicU32; 2],
    retries: [AtomicU32; 2],
}

impl RetryWindow {
    /// Counts a request.
    pub fn deposit(&self, now: Instant) {
        self.requests[self.roll(now)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a retry and returns true if the budget permits one: `percent` of the requests in the
    /// window, and at least `min_per_second`.
    pub fn withdraw(&self, percent: u64, min_per_second: u64, now: Instant) -> bool {
        let current = self.roll(now);
        let sum = |counts: &[AtomicU32; 2]| {
            counts
                .iter()
                .map(|count| u64::from(count.load(Ordering::Relaxed)))
                .sum()
        };
        let (requests, retries): (u64, u64) = (sum(&self.requests), sum(&self.retries));
        // The window covers the previous half and the part of the current one up to the end of this
        // second, so that the minimum holds in each second.
        let elapsed = now.saturating_duration_since(*BASE).as_secs() % HALF_SECONDS + 1;
        let minimum = min_per_second * (HALF_SECONDS + elapsed);
        let left = retries < (requests * percent / 100).max(minimum);
        if left {
            // Check and increment are not atomic: concurrent workers may exceed the budget by one
            // retry each.
            self.retries[current].fetch_add(1, Ordering::Relaxed);
        }
        left
    }

    /// Makes the half of `now` the current one and returns the index of its counts.
    fn roll(&self, now: Instant) -> usize {
        let half = now.saturating_duration_since(*BASE).as_secs() / HALF_SECONDS;
        let before = self.half.load(Ordering::Relaxed);
        // Only the worker that wins the exchange clears counts. Increments of other workers during
        // the clearing may be lost; the budget tolerates that error.
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
            // After an idle half, the counts of the previous one are out of the window, too.
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
    fn grants_minimum_without_requests() {
        assert_eq!(withdrawals(&RetryWindow::default(), 20, 10, at(0)), 110);
        assert_eq!(withdrawals(&RetryWindow::default(), 0, 0, at(0)), 0);
    }

    #[test]
    fn grants_minimum_in_every_second() {
        let window = RetryWindow::default();
        let grant = |second| {
            let tries = std::iter::repeat_with(|| window.withdraw(20, 10, at(second)));
            tries.take(10).filter(|granted| *granted).count()
        };
        assert_eq!((0..100).map(grant).sum::<usize>(), 1_000);
    }

    #[test]
    fn grants_percentage_of_requests() {
        let window = RetryWindow::default();
        (0..5_000).for_each(|_| window.deposit(at(5)));
        assert_eq!(withdrawals(&window, 20, 10, at(5)), 1_000);
        (0..5_000).for_each(|_| window.deposit(at(15)));
        assert_eq!(
            withdrawals(&window, 20, 10, at(15)),
            1_000,
            "requests and retries of the previous half count"
        );
    }

    #[test]
    fn drops_counts_outside_the_window() {
        let window = RetryWindow::default();
        (0..1_000).for_each(|_| window.deposit(at(9)));
        assert_eq!(withdrawals(&window, 20, 1, at(9)), 200);
        assert_eq!(withdrawals(&window, 20, 1, at(19)), 0);
        assert_eq!(
            withdrawals(&window, 20, 1, at(20)),
            11,
            "the counts have left the window"
        );
        assert_eq!(withdrawals(&window, 20, 1, at(500)), 11);
    }
}
