//! Ejected endpoints. An endpoint that refuses connections, or that stopped answering, gets no new
//! requests for a growing time while others can serve; then one request probes it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::EndpointKey;
use crate::metrics::{EjectionMetric, EjectionMetrics};

/// The first ejection; each failed probe doubles it. Long enough for a container to restart, short
/// enough that a service of few endpoints soon has all of them again.
const BASE_EJECTION: Duration = Duration::from_secs(1);
/// The longest time without a probe, and how long an ejection is remembered after its end for the
/// next one to be longer.
const MAX_EJECTION: Duration = Duration::from_secs(30);

/// The reason for an ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// No connection came about: refused, unreachable, or timed out.
    Connect,
    /// Requests wait for a response and none comes.
    Stalled,
}

/// The ejected endpoints of the process.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    entries: DashMap<EndpointKey, Ejection>,
    /// The size of `entries`, so that a request pays one relaxed load while no endpoint is ejected.
    /// Changed by what was inserted or removed, not set to `entries.len()`: two threads could store
    /// their lengths in the wrong order.
    count: AtomicUsize,
    metrics: EjectionMetrics,
}

#[derive(Debug)]
struct Ejection {
    reason: Reason,
    /// The number of ejections in a row without an answer between them.
    times: u32,
    since: Instant,
    until: Instant,
    /// The ejection has ended and one request is trying the endpoint.
    probing: bool,
}

impl Ejection {
    fn length(&self) -> Duration {
        BASE_EJECTION
            .saturating_mul(1 << self.times.saturating_sub(1).min(8))
            .min(MAX_EJECTION)
    }

    fn begin(&mut self, reason: Reason, now: Instant) {
        (self.reason, self.since, self.probing) = (reason, now, false);
        self.until = now + self.length();
    }

    /// Prolongs the ejection of an endpoint on which requests still wait, up to the next probe:
    /// however long they wait, the endpoint is probed every [`MAX_EJECTION`], so that one caller's
    /// long poll cannot keep it away from others.
    fn prolong(&mut self, now: Instant) {
        self.until = (now + self.length())
            .min(self.since + MAX_EJECTION)
            .max(self.until);
    }
}

impl Ejections {
    pub fn new(metrics: EjectionMetrics) -> Self {
        Self {
            metrics,
            ..Self::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Whether anything is known of the endpoint: it is ejected, or was and has not been tried
    /// successfully since.
    pub fn has(&self, key: EndpointKey) -> bool {
        self.entries.contains_key(&key)
    }

    pub fn contains(&self, key: EndpointKey, now: Instant) -> bool {
        self.entries
            .get(&key)
            .is_some_and(|ejection| ejection.until > now)
    }

    /// Ejects an endpoint. Failures during an ejection belong to it: requests that fail together
    /// are one failure.
    pub fn eject(&self, key: EndpointKey, reason: Reason, now: Instant) {
        match self.entries.entry(key) {
            Entry::Vacant(entry) => {
                let mut ejection = Ejection {
                    reason,
                    times: 1,
                    since: now,
                    until: now,
                    probing: false,
                };
                ejection.begin(reason, now);
                entry.insert(ejection);
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            Entry::Occupied(mut entry) => {
                let ejection = entry.get_mut();
                if ejection.probing {
                    // The probe failed: the next ejection is longer.
                    ejection.times += 1;
                } else if ejection.until > now {
                    if reason == Reason::Stalled && ejection.reason == Reason::Stalled {
                        ejection.prolong(now);
                    }
                    return;
                }
                self.metric(ejection.reason).now.dec();
                ejection.begin(reason, now);
            }
        }
        self.metric(reason).total.inc();
        self.metric(reason).now.inc();
    }

    /// Lets one request probe an endpoint whose ejection has ended; the others keep away from it a
    /// little longer.
    pub fn probe(&self, key: EndpointKey, now: Instant) {
        if let Some(mut ejection) = self.entries.get_mut(&key)
            && ejection.until <= now
        {
            ejection.until = now + BASE_EJECTION;
            ejection.probing = true;
        }
    }

    /// Ends the ejection of an endpoint that accepts connections again, unless it is ejected for
    /// not answering.
    pub fn connected(&self, key: EndpointKey) {
        self.remove_if(key, |ejection| ejection.reason == Reason::Connect);
    }

    /// Ends the ejection of an endpoint that has answered.
    pub fn answered(&self, key: EndpointKey) {
        self.remove_if(key, |_| true);
    }

    fn remove_if(&self, key: EndpointKey, condition: impl Fn(&Ejection) -> bool) {
        // Looked up under a read lock first: almost every answering endpoint is not ejected.
        if self.is_empty()
            || !self
                .entries
                .get(&key)
                .is_some_and(|ejection| condition(&ejection))
        {
            return;
        }
        if let Some((_, ejection)) = self
            .entries
            .remove_if(&key, |_, ejection| condition(ejection))
        {
            self.forget(&ejection);
        }
    }

    /// Forgets endpoints whose ejection ended long ago and that no request has tried since: most
    /// are gone for good.
    pub fn sweep(&self, now: Instant) {
        self.entries.retain(|_, ejection| {
            let remembered = ejection.until + MAX_EJECTION > now;
            if !remembered {
                self.forget(ejection);
            }
            remembered
        });
    }

    fn forget(&self, ejection: &Ejection) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.metric(ejection.reason).now.dec();
    }

    fn metric(&self, reason: Reason) -> &EjectionMetric {
        match reason {
            Reason::Connect => &self.metrics.connect,
            Reason::Stalled => &self.metrics.stalled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::Transport;

    const KEY: EndpointKey = EndpointKey {
        address: std::net::SocketAddr::V4(std::net::SocketAddrV4::new(
            std::net::Ipv4Addr::LOCALHOST,
            80,
        )),
        transport: Transport::Http,
    };

    /// Ejects and lets the probe fail, again and again; returns the seconds of each ejection.
    fn lengths(reason: Reason) -> Vec<u64> {
        let (ejections, mut now) = (Ejections::default(), Instant::now());
        let mut lengths = Vec::new();
        for _ in 0..7 {
            ejections.eject(KEY, reason, now);
            let until = ejections.entries.get(&KEY).unwrap().until;
            lengths.push((until - now).as_secs());
            now = until;
            ejections.probe(KEY, now);
        }
        lengths
    }

    #[test]
    fn each_failed_probe_doubles_the_ejection() {
        assert_eq!(lengths(Reason::Connect), [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(lengths(Reason::Stalled), [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn failures_during_an_ejection_neither_prolong_nor_repeat_it() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        ejections.eject(KEY, Reason::Connect, now);
        for millis in [0, 500, 999] {
            ejections.eject(KEY, Reason::Connect, now + Duration::from_millis(millis));
        }
        assert!(!ejections.contains(KEY, now + BASE_EJECTION));
        assert_eq!(ejections.metrics.connect.total.get(), 1);
        ejections.eject(KEY, Reason::Connect, now + BASE_EJECTION);
        assert!(
            !ejections.contains(KEY, now + 2 * BASE_EJECTION),
            "a late failure without a probe is not a second one"
        );
    }

    #[test]
    fn one_request_probes_an_endpoint_whose_ejection_has_ended() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        ejections.eject(KEY, Reason::Connect, now);
        let end = now + BASE_EJECTION;
        assert!(!ejections.contains(KEY, end));
        ejections.probe(KEY, end);
        assert!(
            ejections.contains(KEY, end),
            "the others keep away while it is probed"
        );
    }

    #[test]
    fn a_stalled_endpoint_stays_ejected_while_requests_wait_and_is_probed_every_half_minute() {
        let (ejections, begun) = (Ejections::default(), Instant::now());
        for tick in 0..60 {
            let now = begun + tick * Duration::from_millis(500);
            ejections.eject(KEY, Reason::Stalled, now);
            assert!(ejections.contains(KEY, now), "at {tick}");
        }
        assert!(!ejections.contains(KEY, begun + MAX_EJECTION));
        assert_eq!(ejections.metrics.stalled.total.get(), 1);
    }

    #[test]
    fn a_stalled_endpoint_whose_requests_are_gone_is_probed_after_its_ejection() {
        let (ejections, begun) = (Ejections::default(), Instant::now());
        ejections.eject(KEY, Reason::Stalled, begun);
        let at = |millis| begun + Duration::from_millis(millis);
        ejections.eject(KEY, Reason::Stalled, at(900));
        ejections.eject(KEY, Reason::Stalled, at(1800));
        assert!(ejections.contains(KEY, at(2799)));
        assert!(!ejections.contains(KEY, at(2800)));
    }

    #[test]
    fn a_new_connection_ends_an_ejection_for_connects_but_only_an_answer_one_for_a_stall() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        ejections.eject(KEY, Reason::Stalled, now);
        ejections.connected(KEY);
        assert!(ejections.contains(KEY, now));
        ejections.answered(KEY);
        assert!(ejections.is_empty());
        ejections.eject(KEY, Reason::Connect, now);
        ejections.connected(KEY);
        assert!(ejections.is_empty());
        assert_eq!(
            (
                ejections.metrics.connect.now.get(),
                ejections.metrics.stalled.now.get()
            ),
            (0, 0)
        );
    }

    #[test]
    fn the_sweep_forgets_endpoints_that_are_gone() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        ejections.eject(KEY, Reason::Connect, now);
        ejections.sweep(now + BASE_EJECTION);
        assert!(!ejections.is_empty(), "the next ejection is to be longer");
        ejections.sweep(now + BASE_EJECTION + MAX_EJECTION);
        assert!(ejections.is_empty() && ejections.entries.is_empty());
        assert_eq!(ejections.metrics.connect.now.get(), 0);
    }
}
