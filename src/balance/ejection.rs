//! Ejected endpoints. An endpoint that refuses connections or sends no responses gets no new
//! requests for a growing time while healthy ones exist; then one request probes it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::EndpointKey;
use crate::metrics::{EjectionMetric, EjectionMetrics};

/// Duration of the first ejection; each failed probe doubles it. Long enough for a container to
/// restart, short enough for a service with few endpoints to recover its capacity soon.
const BASE_EJECTION: Duration = Duration::from_secs(1);
/// Maximum time between probes. Also the time for which an ejection is kept after its end, so that
/// the next one is longer.
const MAX_EJECTION: Duration = Duration::from_secs(30);

/// Reason for an ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The connect failed: refused, unreachable, or timed out.
    Connect,
    /// The endpoint sends no responses while requests wait.
    Stalled,
}

/// Ejected endpoints of the process.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    entries: DashMap<EndpointKey, Ejection>,
    /// Number of `entries`, so that a request pays one relaxed load while no endpoint is ejected.
    /// Incremented and decremented, not set to `entries.len()`: two threads could store their
    /// lengths in the wrong order.
    count: AtomicUsize,
    metrics: EjectionMetrics,
}

#[derive(Debug)]
struct Ejection {
    reason: Reason,
    /// Number of consecutive ejections without a response between them.
    times: u32,
    since: Instant,
    until: Instant,
    /// The ejection has ended and one request probes the endpoint.
    probing: bool,
}

impl Ejection {
    fn length(&self) -> Duration {
        BASE_EJECTION
            // The shift is bounded, so that it cannot overflow. 256 s is beyond the maximum
            // already.
            .saturating_mul(1 << self.times.saturating_sub(1).min(8))
            .min(MAX_EJECTION)
    }

    fn begin(&mut self, reason: Reason, now: Instant) {
        (self.reason, self.since, self.probing) = (reason, now, false);
        self.until = now + self.length();
    }

    /// Begins a probe. Returns false during the ejection, and during another probe.
    fn begin_probe(&mut self, now: Instant) -> bool {
        let begins = self.until <= now;
        if begins {
            // If the probe never ends, as when its client disconnects, another follows.
            self.until = now + BASE_EJECTION;
            self.probing = true;
        }
        begins
    }

    /// Extends the ejection of an endpoint on which requests still wait, up to [`MAX_EJECTION`]
    /// after its start. Without this bound, one caller's long poll could eject an endpoint for all
    /// callers as long as it waits.
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
        // An outdated count costs one attempt at an ejected endpoint, or one lookup in vain.
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Returns true if the endpoint is ejected, or was and has not been probed successfully since.
    pub fn has(&self, key: EndpointKey) -> bool {
        self.entries.contains_key(&key)
    }

    /// Returns true if the endpoint is ejected at `now`.
    pub fn contains(&self, key: EndpointKey, now: Instant) -> bool {
        self.entries
            .get(&key)
            .is_some_and(|ejection| ejection.until > now)
    }

    /// Ejects an endpoint. Failures during an ejection do not count again: concurrent requests that
    /// fail together are one failure.
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
                    // Checks report a stall again and again while requests wait, so it may extend
                    // the ejection. A failed connect is a single event.
                    if reason == Reason::Stalled && ejection.reason == Reason::Stalled {
                        ejection.prolong(now);
                    }
                    return;
                }
                // Without a probe, `times` stays: a request that fails late may have begun before
                // the ejection. The reason may be another one, so the gauge of the old one is
                // decremented.
                self.metric(ejection.reason).now.dec();
                ejection.begin(reason, now);
            }
        }
        self.metric(reason).total.inc();
        self.metric(reason).now.inc();
    }

    /// Makes the caller's request the probe of an endpoint whose ejection has ended. The ejection
    /// is extended for all other requests until the probe has a result.
    pub fn probe(&self, key: EndpointKey, now: Instant) {
        // The write lock decides the race of two requests: the second one finds `until` in the
        // future.
        if let Some(mut ejection) = self.entries.get_mut(&key) {
            ejection.begin_probe(now);
        }
    }

    /// Returns false for an endpoint that was ejected because connects fail. After its ejection, the
    /// caller's connection is the probe. Whether it sends responses does not matter.
    pub fn admits_connection(&self, key: EndpointKey, now: Instant) -> bool {
        let Some(mut ejection) = self.entries.get_mut(&key) else {
            return true;
        };
        if ejection.reason != Reason::Connect {
            return true;
        }
        ejection.begin_probe(now)
    }

    /// Ends the ejection of an endpoint that accepts connections again. A stalled endpoint stays
    /// ejected: a frozen process still accepts connections, because the kernel does so for it.
    pub fn connected(&self, key: EndpointKey) {
        self.remove_if(key, |ejection| ejection.reason == Reason::Connect);
    }

    /// Ends the ejection of an endpoint that sent a response.
    pub fn responded(&self, key: EndpointKey) {
        self.remove_if(key, |_| true);
    }

    fn remove_if(&self, key: EndpointKey, condition: impl Fn(&Ejection) -> bool) {
        // Checked under a read lock first, because almost all calls are for healthy endpoints.
        if self.is_empty()
            || !self
                .entries
                .get(&key)
                .is_some_and(|ejection| condition(&ejection))
        {
            return;
        }
        // The condition is evaluated again under the write lock: the endpoint may have been ejected
        // for another reason in between.
        if let Some((_, ejection)) = self
            .entries
            .remove_if(&key, |_, ejection| condition(ejection))
        {
            self.record_removal(&ejection);
        }
    }

    /// Removes endpoints whose ejection ended long ago and that no request has probed since: most
    /// of them no longer exist.
    pub fn sweep(&self, now: Instant) {
        self.entries.retain(|_, ejection| {
            let keep = ejection.until + MAX_EJECTION > now;
            if !keep {
                self.record_removal(ejection);
            }
            keep
        });
    }

    fn record_removal(&self, ejection: &Ejection) {
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

    /// Returns the seconds of consecutive ejections with failed probes between them.
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
    fn failures_during_ejection_do_not_extend_it() {
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
    fn only_one_request_probes_after_ejection() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        ejections.eject(KEY, Reason::Connect, now);
        let end = now + BASE_EJECTION;
        assert!(!ejections.contains(KEY, end));
        ejections.probe(KEY, end);
        assert!(
            ejections.contains(KEY, end),
            "other requests avoid it during the probe"
        );
    }

    #[test]
    fn stalled_endpoint_is_probed_every_30_seconds_while_requests_wait() {
        let (ejections, start) = (Ejections::default(), Instant::now());
        for tick in 0..60 {
            let now = start + tick * Duration::from_millis(500);
            ejections.eject(KEY, Reason::Stalled, now);
            assert!(ejections.contains(KEY, now), "at {tick}");
        }
        assert!(!ejections.contains(KEY, start + MAX_EJECTION));
        assert_eq!(ejections.metrics.stalled.total.get(), 1);
    }

    #[test]
    fn stalled_endpoint_is_probed_soon_after_its_requests_end() {
        let (ejections, start) = (Ejections::default(), Instant::now());
        ejections.eject(KEY, Reason::Stalled, start);
        let at = |millis| start + Duration::from_millis(millis);
        ejections.eject(KEY, Reason::Stalled, at(900));
        ejections.eject(KEY, Reason::Stalled, at(1800));
        assert!(ejections.contains(KEY, at(2799)));
        assert!(!ejections.contains(KEY, at(2800)));
    }

    #[test]
    fn connect_ends_only_ejection_for_failed_connects() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        ejections.eject(KEY, Reason::Stalled, now);
        ejections.connected(KEY);
        assert!(ejections.contains(KEY, now));
        ejections.responded(KEY);
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
    fn only_failed_connects_keep_connections_away() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        assert!(ejections.admits_connection(KEY, now));
        ejections.eject(KEY, Reason::Stalled, now);
        assert!(ejections.admits_connection(KEY, now));
        ejections.responded(KEY);
        ejections.eject(KEY, Reason::Connect, now);
        assert!(!ejections.admits_connection(KEY, now));
        let end = now + BASE_EJECTION;
        assert!(ejections.admits_connection(KEY, end));
        assert!(!ejections.admits_connection(KEY, end), "one is the probe");
        ejections.eject(KEY, Reason::Connect, end);
        assert!(ejections.contains(KEY, end + BASE_EJECTION), "it is longer");
    }

    #[test]
    fn sweep_removes_expired_ejections() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        ejections.eject(KEY, Reason::Connect, now);
        ejections.sweep(now + BASE_EJECTION);
        assert!(!ejections.is_empty(), "the next ejection must be longer");
        ejections.sweep(now + BASE_EJECTION + MAX_EJECTION);
        assert!(ejections.is_empty() && ejections.entries.is_empty());
        assert_eq!(ejections.metrics.connect.now.get(), 0);
    }
}
