//! The retry budget: retries as a share of requests in a sliding window.

use std::cell::Cell;
use std::time::Instant;

/// Seconds that the window is long: long enough that a burst of failures finds the requests of before it, short enough
/// that it knows the present load.
const WINDOW: usize = 10;
const SECONDS: u64 = WINDOW as u64;

#[derive(Debug)]
pub(super) struct Budget {
    percent: u64,
    /// Retries of a window that are allowed however few requests there are.
    minimum: u64,
    base: Instant,
    slots: [Cell<Slot>; WINDOW],
}

/// What happened in one second.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    second: u64,
    requests: u64,
    retries: u64,
}

impl Budget {
    pub fn new(percent: usize, min_per_second: usize, base: Instant) -> Self {
        let minimum = min_per_second as u64 * SECONDS;
        Self { percent: percent as u64, minimum, base, slots: Default::default() }
    }

    /// Counts a request.
    pub fn deposit(&self, now: Instant) {
        self.count(now, |slot| slot.requests += 1);
    }

    /// Counts a retry if one is left.
    pub fn withdraw(&self, now: Instant) -> bool {
        let second = self.second(now);
        let (mut requests, mut retries) = (0, 0);
        for slot in self.slots.iter().map(Cell::get).filter(|slot| slot.second + SECONDS > second) {
            requests += slot.requests;
            retries += slot.retries;
        }
        let left = retries < (requests * self.percent / 100).max(self.minimum);
        if left {
            self.count(now, |slot| slot.retries += 1);
        }
        left
    }

    fn count(&self, now: Instant, count: impl FnOnce(&mut Slot)) {
        let second = self.second(now);
        let index = usize::try_from(second % SECONDS).expect("the window is short");
        let cell = &self.slots[index];
        let mut slot = cell.get();
        if slot.second != second {
            slot = Slot { second, ..Slot::default() };
        }
        count(&mut slot);
        cell.set(slot);
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.base).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn withdrawals(budget: &Budget, at: Instant) -> usize {
        std::iter::repeat_with(|| budget.withdraw(at)).take(10_000).take_while(|granted| *granted).count()
    }

    #[test]
    fn quiet_workers_have_the_minimum() {
        let base = Instant::now();
        assert_eq!(withdrawals(&Budget::new(20, 10, base), base), 100);
        assert_eq!(withdrawals(&Budget::new(0, 0, base), base), 0);
    }

    #[test]
    fn busy_workers_have_their_share() {
        let base = Instant::now();
        let budget = Budget::new(20, 10, base);
        for request in 0..5_000 {
            budget.deposit(base + Duration::from_millis(request));
        }
        assert_eq!(withdrawals(&budget, base + Duration::from_secs(5)), 1_000);
    }

    #[test]
    fn the_window_slides() {
        let base = Instant::now();
        let budget = Budget::new(20, 1, base);
        (0..1_000).for_each(|_| budget.deposit(base));
        let at = |seconds| base + Duration::from_secs(seconds);
        assert_eq!(withdrawals(&budget, at(9)), 200);
        assert_eq!(withdrawals(&budget, at(10)), 0, "the requests are gone, the retries are not");
        assert_eq!(withdrawals(&budget, at(18)), 0);
        assert_eq!(withdrawals(&budget, at(19)), 10);
    }
}
