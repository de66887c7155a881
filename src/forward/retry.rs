//! The retry policy: decides after a failed attempt whether a request goes out again, and where.
//! Pure: time and events come in as arguments.

use std::time::{Duration, Instant};

use crate::cluster::RetryWindow;
use crate::config;
use crate::metrics::RetryCounters;

/// Whether a request may be sent again after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetrySafety {
    /// The endpoint saw nothing of the request.
    Unsent,
    /// The endpoint says that it did not process the request: an HTTP/2 stream that it refused, or
    /// beyond the last one that its GOAWAY names (RFC 9113 section 8.7).
    Unprocessed,
    /// The endpoint may have processed the request: only one that changes nothing may go out again.
    IfSafe,
    /// The endpoint answered, or the fault is not the endpoint's.
    Never,
}

/// The next step of a request after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// To the same endpoint, on a new connection.
    Reconnect,
    /// To the next endpoint of the order.
    NextEndpoint,
    /// To the client: the error of the last attempt.
    GiveUp,
}

/// A failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub safety: RetrySafety,
    /// The connection had served a request before.
    pub reused: bool,
}

/// The limits on retries.
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

    /// Begins a request. `budget` is that of its service, none for a pod or a node. `choice` is
    /// whether the route has several endpoints; `safe` whether the request has a safe method (RFC
    /// 9110 section 9.2.1) and no body, so that to repeat it changes nothing.
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
            failed: 0,
            connecting: Duration::ZERO,
        }
    }
}

/// The attempts of one request.
#[derive(Debug)]
pub(super) struct Attempts<'p> {
    policy: &'p RetryPolicy,
    budget: Option<&'p RetryWindow>,
    choice: bool,
    safe: bool,
    /// Failed attempts that count.
    failed: usize,
    /// Time spent connecting, over all attempts.
    connecting: Duration,
}

impl Attempts<'_> {
    /// The time limit of the next connect. `others` is whether endpoints are left behind the one
    /// that is tried.
    pub fn connect_timeout(&self, others: bool) -> Duration {
        let policy = self.policy;
        if !self.choice {
            // A pod or a node: its caller chose it, and no other can serve. The limit is Go's, as
            // in the apiserver.
            return policy.dial_timeout;
        }
        let left = policy.connect_deadline.saturating_sub(self.connecting);
        if others && self.failed + 1 < policy.max_attempts {
            // Another attempt can follow: a silent endpoint must not use up its time.
            policy.failover_dial_timeout.min(left)
        } else {
            policy.dial_timeout.min(left)
        }
    }

    /// Adds the time that a connect took, failed or not. Waiting for responses does not count: a
    /// connection that breaks after a minute of waiting leaves as much time to connect elsewhere as
    /// one that breaks immediately.
    pub fn spent_connecting(&mut self, time: Duration) {
        self.connecting += time;
    }

    /// Decides what follows a failed attempt. `others` is whether endpoints are left behind the one
    /// that was tried.
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
        if failure.reused {
            // The endpoint, or something between, closed the connection while it was idle (RFC 9112
            // section 9.3.1): no fault of the endpoint, and no attempt. It happens once per
            // request, because all that follows dials anew; so it needs no budget either.
            policy.counters.stale.inc();
            return Decision::Reconnect;
        }
        self.failed += 1;
        let next = if others {
            Decision::NextEndpoint
        } else if failure.safety == RetrySafety::Unprocessed {
            // Whoever refuses a stream asks for it to be sent again, on another connection where
            // that one is ending.
            Decision::Reconnect
        } else {
            // A new connection to the only endpoint left has just failed: the next would fail the
            // same way.
            return Decision::GiveUp;
        };
        if self.failed >= policy.max_attempts {
            policy.counters.attempts_exhausted.inc();
            return Decision::GiveUp;
        }
        if self.choice && self.connecting >= policy.connect_deadline {
            // The client's own deadline is likely over, too.
            policy.counters.deadline_exceeded.inc();
            return Decision::GiveUp;
        }
        // A request that reached no endpoint loads the next one for the first time. If it needed
        // the budget, an address that drops packets, or a process that ended, would fail all but a
        // fifth of the requests that met it. A pod or a node has no other endpoint that a retry
        // could load.
        let left = |budget: &RetryWindow| {
            budget.withdraw(policy.budget_percent, policy.budget_min_per_second, now)
        };
        if failure.safety != RetrySafety::Unsent && !self.budget.is_none_or(left) {
            // Many requests fail at the same time: to repeat them all would multiply the load of
            // what is still there.
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
        }
    }

    fn stale(safety: RetrySafety) -> Failure {
        Failure {
            safety,
            reused: true,
        }
    }

    /// The step after the first failed attempt of a request.
    fn first(safe: bool, failure: Failure, others: bool) -> Decision {
        let (policy, now) = (policy(|_| ()), Instant::now());
        policy
            .begin(None, others, safe, now)
            .after(failure, others, now)
    }

    #[test]
    fn repeats_what_was_not_sent_or_not_processed_and_safe_requests() {
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
    fn a_stale_connection_costs_no_attempt() {
        let (policy, now) = (policy(|_| ()), Instant::now());
        let mut attempts = policy.begin(None, true, true, now);
        let nexts = [stale(IfSafe), fresh(Unsent), fresh(IfSafe), fresh(IfSafe)]
            .map(|it| attempts.after(it, true, now));
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
    fn the_only_endpoint_is_tried_again_only_where_it_refused_a_stream() {
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
    fn one_attempt_is_no_retry() {
        let (policy, now) = (policy(|it| it.retry.max_attempts = 1), Instant::now());
        assert_eq!(
            policy
                .begin(None, true, true, now)
                .after(fresh(Unsent), true, now),
            Decision::GiveUp
        );
    }

    #[test]
    fn connects_end_at_the_deadline() {
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
            "the last attempt has what is left"
        );
        let mut attempts = policy.begin(None, true, true, now);
        assert_eq!(
            attempts.connect_timeout(false),
            seconds(10),
            "no other remains"
        );
        attempts.spent_connecting(seconds(9));
        assert_eq!(attempts.connect_timeout(true), seconds(1));
        attempts.spent_connecting(seconds(1));
        assert_eq!(attempts.after(fresh(Unsent), true, now), Decision::GiveUp);
        assert_eq!(policy.counters.deadline_exceeded.get(), 1);
    }

    #[test]
    fn a_target_without_a_choice_keeps_the_dial_timeout() {
        let policy = policy(|_| ());
        let mut attempts = policy.begin(None, false, true, Instant::now());
        attempts.spent_connecting(Duration::from_secs(29));
        assert_eq!(attempts.connect_timeout(false), Duration::from_secs(30));
    }

    #[test]
    fn an_exhausted_budget_ends_retries_but_not_stale_repeats_and_failed_connects() {
        let change = |it: &mut config::Upstream| {
            (it.retry.budget_percent, it.retry.budget_min_per_second) = (0, 0);
        };
        let (policy, now) = (policy(change), Instant::now());
        let broken = RetryWindow::default();
        let mut attempts = policy.begin(Some(&broken), true, true, now);
        assert_eq!(
            attempts.after(stale(IfSafe), true, now),
            Decision::Reconnect
        );
        assert_eq!(
            attempts.after(fresh(Unsent), true, now),
            Decision::NextEndpoint,
            "it loaded no endpoint"
        );
        assert_eq!(attempts.after(fresh(IfSafe), true, now), Decision::GiveUp);
        assert_eq!(policy.counters.budget_exhausted.get(), 1);
    }
}
