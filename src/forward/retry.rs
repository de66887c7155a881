//! Retry policy: decides after a failed attempt whether the request is sent again, and to which
//! endpoint. No I/O and no clock: time and events are arguments.

use std::time::{Duration, Instant};

use crate::cluster::RetryWindow;
use crate::config;
use crate::metrics::RetryCounters;

/// Extent to which the endpoint may have processed a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetrySafety {
    /// Nothing of the request was sent.
    Unsent,
    /// The endpoint declared the request unprocessed: it refused the HTTP/2 stream, or the stream
    /// is beyond the last one that its GOAWAY names (RFC 9113 section 8.7).
    Unprocessed,
    /// The endpoint may have processed the request: only a request without side effects may be sent
    /// again.
    IfSafe,
    /// The endpoint responded, or is not the cause of the failure.
    Never,
}

/// The next step of a request after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Retry the same endpoint on a new connection.
    Reconnect,
    /// Retry on the next endpoint in the order of the load balancer.
    NextEndpoint,
    /// Return the error of the last attempt to the client.
    GiveUp,
}

/// Failed attempt to send a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub safety: RetrySafety,
    /// The connection had served a request before.
    pub reused: bool,
    /// The endpoint requires HTTP/1.1, over which all further attempts are made.
    pub requires_http1: bool,
}

/// Maximum number of endpoints that a connection without a request tries, within the deadline.
const MAX_CONNECTS: usize = 16;

/// Limits on retries.
#[derive(Debug)]
pub struct RetryPolicy {
    max_attempts: usize,
    connect_deadline: Duration,
    dial_timeout: Duration,
    failover_dial_timeout: Duration,
    budget_percent: u64,
    budget_min_per_second: u64,
    counters: RetryCounters,
}

impl RetryPolicy {
    pub fn new(settings: &config::Upstream, counters: RetryCounters) -> Self {
        let config::Retry {
            max_attempts,
            connect_deadline,
            budget_percent,
            budget_min_per_second,
        } = settings.retry;
        Self {
            max_attempts,
            connect_deadline,
            dial_timeout: settings.dial_timeout,
            failover_dial_timeout: settings.failover_dial_timeout,
            budget_percent: budget_percent as u64,
            budget_min_per_second: budget_min_per_second as u64,
            counters,
        }
    }

    /// Begins a request. `budget` is the retry budget of its service, `None` for a pod or a node.
    /// `choice` tells whether the route has several endpoints; `safe` whether the request has a
    /// safe method (RFC 9110 section 9.2.1) and no body, so that a repetition has no effect.
    pub(super) fn begin<'a>(
        &'a self,
        budget: Option<&'a RetryWindow>,
        choice: bool,
        safe: bool,
        now: Instant,
    ) -> Attempts<'a> {
        if let Some(budget) = budget {
            budget.deposit(now);
        }
        Attempts {
            policy: self,
            budget,
            choice,
            safe,
            limit: self.max_attempts,
            failed: 0,
            connecting: Duration::ZERO,
        }
    }

    /// Begins a connection without a request. It loads only the endpoint that accepts it, so that it
    /// has more attempts than a request, unless those of requests are turned off.
    pub(super) fn begin_connection(&self, choice: bool, now: Instant) -> Attempts<'_> {
        let mut attempts = self.begin(None, choice, false, now);
        if self.max_attempts > 1 {
            attempts.limit = MAX_CONNECTS;
        }
        attempts
    }
}

/// Attempts of one request, and the time spent on them.
#[derive(Debug)]
pub(super) struct Attempts<'p> {
    policy: &'p RetryPolicy,
    budget: Option<&'p RetryWindow>,
    choice: bool,
    safe: bool,
    /// Maximum number of failed attempts.
    limit: usize,
    /// Failed attempts, without those on stale connections.
    failed: usize,
    /// Time spent on connects, over all attempts.
    connecting: Duration,
}

impl Attempts<'_> {
    /// Returns the timeout of the next connect. `others` tells whether endpoints remain after this
    /// one.
    pub fn connect_timeout(&self, others: bool) -> Duration {
        let policy = self.policy;
        if !self.choice {
            // A pod, a node, or the only endpoint of a service: no other endpoint can serve, so
            // waiting longer is better than failing. The timeout is that of kube-apiserver, from
            // Go's default dialer.
            return policy.dial_timeout;
        }
        let remaining = policy.connect_deadline.saturating_sub(self.connecting);
        if others && self.failed + 1 < self.limit {
            // Another attempt can follow: a short timeout leaves time for it if this endpoint
            // drops packets.
            policy.failover_dial_timeout.min(remaining)
        } else {
            policy.dial_timeout.min(remaining)
        }
    }

    /// Adds the duration of a connect, failed or not. Time spent waiting for a response does not
    /// count: a connection that fails after a minute leaves as much time for other endpoints as
    /// one that fails immediately.
    pub fn spent_connecting(&mut self, time: Duration) {
        self.connecting += time;
    }

    /// Decides the next step after a failed attempt. `others` tells whether endpoints remain after
    /// the one that was tried.
    ///
    /// The checks are ordered by cause: safety first, then stale connections, which are free, then
    /// the limits. The budget is last, because a withdrawal cannot be undone.
    pub fn after(&mut self, failure: Failure, others: bool, now: Instant) -> Decision {
        let Self { policy, .. } = *self;
        let repeatable = match failure.safety {
            RetrySafety::Unsent | RetrySafety::Unprocessed => true,
            RetrySafety::IfSafe => self.safe,
            RetrySafety::Never => false,
        };
        if !repeatable {
            return Decision::GiveUp;
        }
        if failure.requires_http1 {
            // The endpoint is healthy and expects the request again. It happens at most once per
            // request, so it is free like a stale connection.
            policy.counters.http1_required.inc();
            return Decision::Reconnect;
        }
        if failure.reused {
            // A reused connection that fails is assumed stale: the endpoint, or a middlebox, closed
            // it while it was idle, and the close crossed this request (RFC 9112 section 9.3.1).
            // The endpoint is healthy, so this is not counted as an attempt and needs no budget.
            // It happens at most once per request: all later attempts use new connections. A stream
            // that a reused HTTP/2 connection refuses is treated alike: at the end of the connection
            // (GOAWAY) all its streams are refused together, more than a budget allows.
            policy.counters.stale.inc();
            return Decision::Reconnect;
        }
        self.failed += 1;
        let next = if others {
            Decision::NextEndpoint
        } else if failure.safety == RetrySafety::Unprocessed {
            // An endpoint that refuses a stream or sends GOAWAY is alive and expects the request
            // again, on a new connection.
            Decision::Reconnect
        } else {
            // A new connection to the only remaining endpoint has just failed; another one would
            // likely fail too.
            return Decision::GiveUp;
        };
        if self.failed >= self.limit {
            policy.counters.attempts_exhausted.inc();
            return Decision::GiveUp;
        }
        if self.choice && self.connecting >= policy.connect_deadline {
            // The client's own timeout has likely expired, too.
            policy.counters.deadline_exceeded.inc();
            return Decision::GiveUp;
        }
        // The budget prevents retry storms: if many requests fail at the same time, repeating all
        // of them would multiply the load on the remaining endpoints. A request that was not sent
        // loads the next endpoint for the first time, so it is exempt; otherwise one address that
        // drops packets, or one process that exited, would fail all but a fifth of the requests
        // routed to it. Pods and nodes have no budget, because they have no other endpoint to
        // overload.
        let withdraw = |budget: &RetryWindow| {
            budget.withdraw(policy.budget_percent, policy.budget_min_per_second, now)
        };
        if failure.safety != RetrySafety::Unsent && !self.budget.is_none_or(withdraw) {
            policy.counters.budget_exhausted.inc();
            return Decision::GiveUp;
        }
        policy.counters.granted.inc();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RetrySafety::{IfSafe, Never, Unprocessed, Unsent};

    fn policy(change: impl FnOnce(&mut config::Upstream)) -> RetryPolicy {
        let mut settings = config::Upstream::default();
        change(&mut settings);
        RetryPolicy::new(&settings, RetryCounters::default())
    }

    fn fresh(safety: RetrySafety) -> Failure {
        Failure {
            safety,
            reused: false,
            requires_http1: false,
        }
    }

    fn stale(safety: RetrySafety) -> Failure {
        Failure {
            safety,
            reused: true,
            requires_http1: false,
        }
    }

    /// Decision after the first failed attempt of a request.
    fn first(safe: bool, failure: Failure, others: bool) -> Decision {
        let (policy, now) = (policy(|_| ()), Instant::now());
        policy
            .begin(None, others, safe, now)
            .after(failure, others, now)
    }

    #[test]
    fn retries_unsent_unprocessed_and_safe_requests() {
        for (safety, safe, expected) in [
            (Unsent, false, Decision::NextEndpoint),
            (Unprocessed, false, Decision::NextEndpoint),
            (IfSafe, true, Decision::NextEndpoint),
            (IfSafe, false, Decision::GiveUp),
            (Never, true, Decision::GiveUp),
        ] {
            assert_eq!(
                first(safe, fresh(safety), true),
                expected,
                "{safety:?}, safe {safe}"
            );
        }
        for (safety, safe, expected) in [
            (Unsent, false, Decision::Reconnect),
            (Unprocessed, false, Decision::Reconnect),
            (IfSafe, true, Decision::Reconnect),
            (IfSafe, false, Decision::GiveUp),
            (Never, true, Decision::GiveUp),
        ] {
            assert_eq!(
                first(safe, stale(safety), true),
                expected,
                "reused, {safety:?}, safe {safe}"
            );
        }
    }

    #[test]
    fn stale_connection_is_not_counted_as_attempt() {
        let (policy, now) = (policy(|_| ()), Instant::now());
        let mut attempts = policy.begin(None, true, true, now);
        let nexts = [stale(IfSafe), fresh(Unsent), fresh(IfSafe), fresh(IfSafe)]
            .map(|failure| attempts.after(failure, true, now));
        assert_eq!(
            nexts,
            [
                Decision::Reconnect,
                Decision::NextEndpoint,
                Decision::NextEndpoint,
                Decision::GiveUp
            ]
        );
        assert_eq!(
            (policy.counters.stale.get(), policy.counters.granted.get()),
            (1, 2)
        );
        assert_eq!(policy.counters.attempts_exhausted.get(), 1);
    }

    #[test]
    fn asks_endpoint_that_requires_http1_again_within_any_limit() {
        let change = |settings: &mut config::Upstream| {
            settings.retry.max_attempts = 1;
            settings.retry.budget_percent = 0;
            settings.retry.budget_min_per_second = 0;
        };
        let (policy, now) = (policy(change), Instant::now());
        let window = RetryWindow::default();
        for (safety, safe, expected) in [
            (Unsent, false, Decision::Reconnect),
            (Unprocessed, false, Decision::Reconnect),
            (IfSafe, true, Decision::Reconnect),
            (IfSafe, false, Decision::GiveUp),
            (Never, true, Decision::GiveUp),
        ] {
            for failure in [fresh(safety), stale(safety)] {
                let failure = Failure {
                    requires_http1: true,
                    ..failure
                };
                let mut attempts = policy.begin(Some(&window), true, safe, now);
                assert_eq!(attempts.after(failure, true, now), expected, "{failure:?}");
            }
        }
        assert_eq!(policy.counters.http1_required.get(), 6);
    }

    #[test]
    fn retries_only_endpoint_only_after_refused_stream() {
        assert_eq!(first(true, fresh(Unsent), false), Decision::GiveUp);
        assert_eq!(first(true, fresh(IfSafe), false), Decision::GiveUp);
        assert_eq!(first(false, fresh(Unprocessed), false), Decision::Reconnect);
        let (policy, now) = (policy(|_| ()), Instant::now());
        let mut attempts = policy.begin(None, false, false, now);
        let nexts = [(); 3].map(|()| attempts.after(fresh(Unprocessed), false, now));
        assert_eq!(
            nexts,
            [Decision::Reconnect, Decision::Reconnect, Decision::GiveUp]
        );
    }

    #[test]
    fn one_attempt_disables_retries() {
        let (policy, now) = (
            policy(|settings| settings.retry.max_attempts = 1),
            Instant::now(),
        );
        assert_eq!(
            policy
                .begin(None, true, true, now)
                .after(fresh(Unsent), true, now),
            Decision::GiveUp
        );
    }

    /// CONFORMANCE C54.
    #[test]
    fn connects_share_one_deadline() {
        let (policy, now) = (policy(|_| ()), Instant::now());
        let seconds = Duration::from_secs;
        let mut attempts = policy.begin(None, true, true, now);
        assert_eq!(attempts.connect_timeout(true), seconds(2), "others remain");
        attempts.spent_connecting(seconds(2));
        assert_eq!(
            attempts.after(fresh(Unsent), true, now),
            Decision::NextEndpoint
        );
        assert_eq!(attempts.connect_timeout(true), seconds(2));
        attempts.spent_connecting(seconds(2));
        assert_eq!(
            attempts.after(fresh(Unsent), true, now),
            Decision::NextEndpoint
        );
        assert_eq!(
            attempts.connect_timeout(true),
            seconds(6),
            "the last attempt gets the remaining time"
        );
        let mut attempts = policy.begin(None, true, true, now);
        assert_eq!(
            attempts.connect_timeout(false),
            seconds(10),
            "no other endpoint remains"
        );
        attempts.spent_connecting(seconds(9));
        assert_eq!(attempts.connect_timeout(true), seconds(1));
        attempts.spent_connecting(seconds(1));
        assert_eq!(attempts.after(fresh(Unsent), true, now), Decision::GiveUp);
        assert_eq!(policy.counters.deadline_exceeded.get(), 1);
    }

    #[test]
    fn only_endpoint_gets_full_dial_timeout() {
        let policy = policy(|_| ());
        let mut attempts = policy.begin(None, false, true, Instant::now());
        attempts.spent_connecting(Duration::from_secs(29));
        assert_eq!(attempts.connect_timeout(false), Duration::from_secs(30));
    }

    #[test]
    fn exhausted_budget_allows_stale_and_unsent_retries_only() {
        let change = |settings: &mut config::Upstream| {
            settings.retry.budget_percent = 0;
            settings.retry.budget_min_per_second = 0;
        };
        let (policy, now) = (policy(change), Instant::now());
        let window = RetryWindow::default();
        let mut attempts = policy.begin(Some(&window), true, true, now);
        assert_eq!(
            attempts.after(stale(IfSafe), true, now),
            Decision::Reconnect
        );
        assert_eq!(
            attempts.after(fresh(Unsent), true, now),
            Decision::NextEndpoint,
            "the request loaded no endpoint"
        );
        assert_eq!(attempts.after(fresh(IfSafe), true, now), Decision::GiveUp);
        assert_eq!(policy.counters.budget_exhausted.get(), 1);
    }
}
