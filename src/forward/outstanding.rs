//! Requests waiting for a response head, per endpoint and worker, and the detection of stalled
//! endpoints.
//!
//! An endpoint is stalled if a request has waited longer than the limit and the endpoint has sent
//! no response head since that request began. A slow URL of one caller therefore does not eject an
//! endpoint that serves other requests. The wait ends with the response head, so event streams and
//! tunnels do not count.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::request::ReplayBody;
use crate::balance::LastResponse;

/// Multiple of the 99th percentile of an endpoint's response times after which a request is slow.
const P99_FACTOR: u32 = 10;
/// Maximum limit derived from an endpoint's own response times. A slow URL of one caller raises the
/// limit for all callers of the endpoint, and must not disable the detection.
const MAX_P99_LIMIT: Duration = Duration::from_secs(10);
/// Half-life of recorded response times, so that they describe the last tens of seconds.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// Outstanding requests of one worker to one endpoint.
#[derive(Debug)]
pub(super) struct Outstanding {
    waits: RefCell<Waits>,
    latency: Latency,
    /// Time of the last response, published by [`Self::check`].
    responded: Cell<Option<Instant>>,
    last_response: Arc<LastResponse>,
}

/// Slab of waiting requests. Slots are reused, so that a request allocates only if there are more
/// concurrent requests than ever before.
#[derive(Debug, Default)]
struct Waits {
    slots: Vec<Option<Wait>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Wait {
    sent: Instant,
    /// The request body. Until the client has sent all of it, the delay may be the client's.
    body: Option<ReplayBody>,
}

impl Wait {
    /// Returns the time when the request was complete. `None` while the client is sending.
    fn began(&self) -> Option<Instant> {
        self.body
            .as_ref()
            .map_or(Some(self.sent), ReplayBody::ended)
    }
}

/// Request waiting for its response. Dropping it ends the wait without a response: the client
/// disconnected, or the connection failed.
#[derive(Debug)]
pub(super) struct Waiting {
    outstanding: Rc<Outstanding>,
    slot: usize,
}

impl Outstanding {
    pub fn new(last_response: Arc<LastResponse>, now: Instant) -> Self {
        Self {
            waits: RefCell::default(),
            latency: Latency::new(now),
            responded: Cell::new(None),
            last_response,
        }
    }

    /// Records that a request is sent.
    pub fn begin(self: &Rc<Self>, sent: Instant, body: Option<ReplayBody>) -> Waiting {
        let mut waits = self.waits.borrow_mut();
        let wait = Some(Wait { sent, body });
        let slot = if let Some(slot) = waits.free.pop() {
            waits.slots[slot] = wait;
            slot
        } else {
            waits.slots.push(wait);
            waits.slots.len() - 1
        };
        Waiting {
            outstanding: Rc::clone(self),
            slot,
        }
    }

    /// Publishes the time of the last response to other workers, and returns true if the endpoint
    /// is stalled. Called a few times a second.
    pub fn check(&self, limit: Duration, now: Instant) -> bool {
        self.latency.decay(now);
        if let Some(responded) = self.responded.take() {
            self.last_response.publish_response(responded);
        }
        let waits = self.waits.borrow();
        if waits.free.len() == waits.slots.len() {
            return false;
        }
        // An endpoint that is always slow gets a longer limit than the configured one.
        let p99_limit = self
            .latency
            .p99()
            .map_or(limit, |p99| (p99 * P99_FACTOR).min(MAX_P99_LIMIT));
        let limit = limit.max(p99_limit);
        let began = waits.slots.iter().flatten().filter_map(Wait::began);
        let mut slow = began.filter(|began| now.saturating_duration_since(*began) >= limit);
        slow.any(|began| !self.last_response.has_responded_since(began))
    }

    /// Returns true if requests are waiting or response times are recorded.
    pub fn is_in_use(&self) -> bool {
        let waits = self.waits.borrow();
        waits.free.len() < waits.slots.len() || self.latency.p99().is_some()
    }
}

impl Waiting {
    /// Records that the response head was received.
    pub fn finish(self, now: Instant) {
        let outstanding = &self.outstanding;
        outstanding.responded.set(Some(now));
        let waits = outstanding.waits.borrow();
        // An early response, before the end of the request body, has no response time.
        if let Some(began) = waits.slots[self.slot].as_ref().and_then(Wait::began) {
            outstanding
                .latency
                .record(now.saturating_duration_since(began));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waits = self.outstanding.waits.borrow_mut();
        waits.slots[self.slot] = None;
        waits.free.push(self.slot);
    }
}

/// Histogram of recent response times with buckets of powers of two. It is read only to compare a
/// multiple of the 99th percentile with a limit, for which the upper bound of a bucket is exact
/// enough.
#[derive(Debug)]
struct Latency {
    /// Counts of response times of up to 2, 4, 8, … milliseconds.
    counts: [Cell<u32>; Self::BUCKETS],
    decayed: Cell<Instant>,
}

impl Latency {
    /// Number of buckets; the last one begins at nine minutes.
    const BUCKETS: usize = 20;

    fn new(now: Instant) -> Self {
        Self {
            counts: Default::default(),
            decayed: Cell::new(now),
        }
    }

    fn record(&self, duration: Duration) {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let bucket = (millis | 1).ilog2() as usize;
        let count = &self.counts[bucket.min(Self::BUCKETS - 1)];
        count.set(count.get().saturating_add(1));
    }

    /// Returns the 99th percentile. `None` if no response time is recorded.
    fn p99(&self) -> Option<Duration> {
        let total: u64 = self.counts.iter().map(|count| u64::from(count.get())).sum();
        let mut remaining = (total * 99).div_ceil(100);
        let bucket = self.counts.iter().position(|count| {
            remaining = remaining.saturating_sub(count.get().into());
            remaining == 0
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

    /// Views of two workers on the same endpoint, and a start time.
    fn workers() -> (Rc<Outstanding>, Rc<Outstanding>, Instant) {
        let balance = LoadBalancer::new(EjectionMetrics::default());
        let key = EndpointKey {
            address: ([10, 0, 0, 1], 80).into(),
            transport: Transport::Http,
        };
        let now = Instant::now();
        let worker = || Rc::new(Outstanding::new(balance.last_response(key), now));
        (worker(), worker(), now)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn silent_endpoint_is_stalled_after_limit() {
        let (endpoint, _, now) = workers();
        assert!(!endpoint.check(LIMIT, now + LIMIT), "no request waits");
        let waiting = endpoint.begin(now, None);
        assert!(!endpoint.check(LIMIT, now + millis(999)));
        assert!(endpoint.check(LIMIT, now + LIMIT));
        waiting.finish(now + LIMIT);
        assert!(!endpoint.check(LIMIT, now + 2 * LIMIT));
    }

    #[test]
    fn slow_request_among_others_does_not_stall_endpoint() {
        let (endpoint, _, now) = workers();
        let _slow = endpoint.begin(now, None);
        endpoint.begin(now, None).finish(now + millis(5));
        assert!(!endpoint.check(LIMIT, now + 60 * LIMIT));
        let _later = endpoint.begin(now + millis(6), None);
        assert!(
            endpoint.check(LIMIT, now + 60 * LIMIT),
            "no response since this one began"
        );
    }

    #[test]
    fn responses_to_other_workers_count() {
        let (mine, other, now) = workers();
        let _slow = mine.begin(now, None);
        other.begin(now, None).finish(now + millis(5));
        assert!(!other.check(LIMIT, now + LIMIT));
        assert!(!mine.check(LIMIT, now + LIMIT));
    }

    #[test]
    fn abandoned_requests_do_not_stall_endpoint() {
        let (endpoint, _, now) = workers();
        drop(endpoint.begin(now, None));
        assert!(!endpoint.check(LIMIT, now + LIMIT));
        assert!(!endpoint.is_in_use());
        let slots: Vec<_> = (0..3).map(|_| endpoint.begin(now, None).slot).collect();
        assert_eq!(slots, [0, 0, 0], "slots are reused");
    }

    #[test]
    fn limit_grows_with_usual_response_times() {
        let (endpoint, _, now) = workers();
        for _ in 0..100 {
            endpoint.begin(now, None).finish(now + millis(900));
        }
        let began = now + LIMIT;
        let _waiting = endpoint.begin(began, None);
        assert!(!endpoint.check(LIMIT, began + millis(9_000)));
        assert!(
            endpoint.check(LIMIT, began + millis(10_240)),
            "the bucket of 900 ms ends at 1024 ms"
        );
    }

    #[test]
    fn recorded_response_times_decay_by_half() {
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
