//! Requests that wait for the head of their response, per endpoint and worker, and the detection of
//! endpoints that stopped answering.
//!
//! An endpoint is stalled while a request has waited for too long and no request was answered since
//! that one began. So one caller's slow path ejects no endpoint that answers others. A response
//! head ends the wait: streams of events and tunnels do not count.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::request::ReplayBody;
use crate::balance::Health;

/// An endpoint is slow for a request that takes this many times as long as its 99th percentile.
const SLOWER_THAN_USUAL: u32 = 10;
/// The longest limit that follows from an endpoint's own latency. One caller's slow path raises it
/// for all callers of the endpoint, and must not switch the detection of stalls off.
const MAX_USUAL_LIMIT: Duration = Duration::from_secs(10);
/// Half-life of what is remembered of response times: "recent" is some tens of seconds.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// One endpoint's requests of one worker.
#[derive(Debug)]
pub(super) struct Outstanding {
    waits: RefCell<Waits>,
    latency: Latency,
    /// The last answer, which [`Self::check`] publishes.
    answered: Cell<Option<Instant>>,
    health: Arc<Health>,
}

/// A slab: places are used again, so that a request allocates nothing once there have been as many
/// at the same time.
#[derive(Debug, Default)]
struct Waits {
    places: Vec<Option<Wait>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Wait {
    sent: Instant,
    /// A body that may still be on its way: until it is through, the endpoint may wait for the
    /// client.
    body: Option<ReplayBody>,
}

impl Wait {
    /// The time when the endpoint had all of the request. None where the client still sends.
    fn began(&self) -> Option<Instant> {
        self.body
            .as_ref()
            .map_or(Some(self.sent), ReplayBody::ended)
    }
}

/// A request that waits. Dropping it ends the wait without an answer: the client gave up, or the
/// connection broke.
#[derive(Debug)]
pub(super) struct Waiting {
    outstanding: Rc<Outstanding>,
    place: usize,
}

impl Outstanding {
    pub fn new(health: Arc<Health>, now: Instant) -> Self {
        Self {
            waits: RefCell::default(),
            latency: Latency::new(now),
            answered: Cell::new(None),
            health,
        }
    }

    /// A request is sent.
    pub fn begin(self: &Rc<Self>, sent: Instant, body: Option<ReplayBody>) -> Waiting {
        let mut waits = self.waits.borrow_mut();
        let wait = Some(Wait { sent, body });
        let place = if let Some(place) = waits.free.pop() {
            waits.places[place] = wait;
            place
        } else {
            waits.places.push(wait);
            waits.places.len() - 1
        };
        Waiting {
            outstanding: Rc::clone(self),
            place,
        }
    }

    /// Publishes the last answer to other workers, and tells whether the endpoint is stalled. To be
    /// called a few times a second.
    pub fn check(&self, limit: Duration, now: Instant) -> bool {
        self.latency.decay(now);
        if let Some(answered) = self.answered.take() {
            self.health.publish_answer(answered);
        }
        let waits = self.waits.borrow();
        if waits.free.len() == waits.places.len() {
            return false;
        }
        let usual = self
            .latency
            .p99()
            .map_or(limit, |p99| (p99 * SLOWER_THAN_USUAL).min(MAX_USUAL_LIMIT));
        let limit = limit.max(usual);
        let began = waits.places.iter().flatten().filter_map(Wait::began);
        let mut slow = began.filter(|began| now.saturating_duration_since(*began) >= limit);
        slow.any(|began| !self.health.has_answered_since(began))
    }

    /// Whether there is anything to remember.
    pub fn is_in_use(&self) -> bool {
        let waits = self.waits.borrow();
        waits.free.len() < waits.places.len() || self.latency.p99().is_some()
    }
}

impl Waiting {
    /// The head of the response is there.
    pub fn answered(self, now: Instant) {
        let outstanding = &self.outstanding;
        outstanding.answered.set(Some(now));
        let waits = outstanding.waits.borrow();
        if let Some(began) = waits.places[self.place].as_ref().and_then(Wait::began) {
            outstanding
                .latency
                .record(now.saturating_duration_since(began));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waits = self.outstanding.waits.borrow_mut();
        waits.places[self.place] = None;
        waits.free.push(self.place);
    }
}

/// Recent response times as a histogram of powers of two. It is read only to compare ten times its
/// 99th percentile with a limit, for which the upper edge of a bucket is exact enough.
#[derive(Debug)]
struct Latency {
    /// Counts of response times of up to 2, 4, 8, … milliseconds.
    counts: [Cell<u32>; Self::BUCKETS],
    decayed: Cell<Instant>,
}

impl Latency {
    /// The last bucket begins at nine minutes.
    const BUCKETS: usize = 20;

    fn new(now: Instant) -> Self {
        Self {
            counts: Default::default(),
            decayed: Cell::new(now),
        }
    }

    fn record(&self, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = (millis | 1).ilog2() as usize;
        let count = &self.counts[bucket.min(Self::BUCKETS - 1)];
        count.set(count.get().saturating_add(1));
    }

    /// None where nothing is remembered.
    fn p99(&self) -> Option<Duration> {
        let total: u64 = self.counts.iter().map(|count| u64::from(count.get())).sum();
        let mut left = (total * 99).div_ceil(100);
        let bucket = self.counts.iter().position(|count| {
            left = left.saturating_sub(count.get().into());
            left == 0
        });
        bucket
            .filter(|_| total > 0)
            .map(|bucket| Duration::from_millis(2 << bucket))
    }

    fn decay(&self, now: Instant) {
        if now.saturating_duration_since(self.decayed.get()) >= HALF_LIFE {
            self.decayed.set(now);
            self.counts
                .iter()
                .for_each(|count| count.set(count.get() / 2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{EndpointKey, LoadBalancer};
    use crate::metrics::EjectionMetrics;
    use crate::resolve::Transport;

    const LIMIT: Duration = Duration::from_secs(1);

    /// The same endpoint as two workers see it, and a time.
    fn workers() -> (Rc<Outstanding>, Rc<Outstanding>, Instant) {
        let balance = LoadBalancer::new(EjectionMetrics::default());
        let key = EndpointKey {
            address: ([10, 0, 0, 1], 80).into(),
            transport: Transport::Http,
        };
        let now = Instant::now();
        let worker = || Rc::new(Outstanding::new(balance.health(key), now));
        (worker(), worker(), now)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_endpoint_that_answers_nothing_for_longer_than_the_limit_is_stalled() {
        let (endpoint, _, now) = workers();
        assert!(!endpoint.check(LIMIT, now + LIMIT), "no request waits");
        let waiting = endpoint.begin(now, None);
        assert!(!endpoint.check(LIMIT, now + millis(999)));
        assert!(endpoint.check(LIMIT, now + LIMIT));
        waiting.answered(now + LIMIT);
        assert!(!endpoint.check(LIMIT, now + 2 * LIMIT));
    }

    #[test]
    fn a_slow_request_among_answered_ones_stalls_no_endpoint() {
        let (endpoint, _, now) = workers();
        let _slow = endpoint.begin(now, None);
        endpoint.begin(now, None).answered(now + millis(5));
        assert!(!endpoint.check(LIMIT, now + 60 * LIMIT));
        let _later = endpoint.begin(now + millis(6), None);
        assert!(
            endpoint.check(LIMIT, now + 60 * LIMIT),
            "nothing was answered since this one began"
        );
    }

    #[test]
    fn an_answer_of_another_worker_counts() {
        let (mine, other, now) = workers();
        let _slow = mine.begin(now, None);
        other.begin(now, None).answered(now + millis(5));
        assert!(!other.check(LIMIT, now + LIMIT));
        assert!(!mine.check(LIMIT, now + LIMIT));
    }

    #[test]
    fn requests_that_are_gone_stall_no_endpoint() {
        let (endpoint, _, now) = workers();
        drop(endpoint.begin(now, None));
        assert!(!endpoint.check(LIMIT, now + LIMIT));
        assert!(!endpoint.is_in_use());
        let places: Vec<_> = (0..3).map(|_| endpoint.begin(now, None).place).collect();
        assert_eq!(places, [0, 0, 0], "places are used again");
    }

    #[test]
    fn an_endpoint_that_is_always_slow_has_ten_times_as_long() {
        let (endpoint, _, now) = workers();
        for _ in 0..100 {
            endpoint.begin(now, None).answered(now + millis(900));
        }
        let begun = now + LIMIT;
        let _waiting = endpoint.begin(begun, None);
        assert!(!endpoint.check(LIMIT, begun + millis(9_000)));
        assert!(
            endpoint.check(LIMIT, begun + millis(10_240)),
            "the bucket of 900 ms ends at 1024 ms"
        );
    }

    #[test]
    fn response_times_are_forgotten_by_halves() {
        let now = Instant::now();
        let latency = Latency::new(now);
        assert_eq!(latency.p99(), None);
        (0..99).for_each(|_| latency.record(millis(0)));
        latency.record(Duration::from_mins(1));
        assert_eq!(latency.p99(), Some(millis(2)));
        latency.record(Duration::from_mins(1));
        assert_eq!(latency.p99(), Some(millis(1 << 16)));
        (1..=7).for_each(|times| latency.decay(now + times * HALF_LIFE));
        assert_eq!(latency.p99(), None);
        latency.record(Duration::from_secs(u64::MAX));
        assert_eq!(latency.p99(), Some(millis(2 << (Latency::BUCKETS - 1))));
    }
}
