//! Dials, retries and ejections of endpoints.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::register_counters;

/// Failed dials, by reason.
#[derive(Clone, Debug)]
pub struct DialFailures {
    pub connect: Counter,
    pub timeout: Counter,
    pub tls: Counter,
}

impl DialFailures {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let failures = register_counters(
            registry,
            "dial_failures",
            "Failed dials to endpoints, by reason",
            "reason",
        );
        Self {
            connect: failures("connect"),
            timeout: failures("timeout"),
            tls: failures("tls"),
        }
    }
}

/// Registers the counter of header lines of responses that were dropped for their invalid name.
pub(super) fn register_dropped_lines(registry: &mut Registry) -> Counter {
    let dropped = Counter::default();
    registry.register(
        "response_header_lines_dropped",
        "Header lines of responses dropped because their name is not valid",
        dropped.clone(),
    );
    dropped
}

/// Repeated requests, and requests not repeated because of a limit.
#[derive(Clone, Debug, Default)]
pub struct RetryCounters {
    /// Repeated on a new connection to the same endpoint, because a reused one was closed.
    pub stale: Counter,
    /// Repeated over HTTP/1.1, because the endpoint requires it.
    pub http1_required: Counter,
    pub granted: Counter,
    pub attempts_exhausted: Counter,
    pub deadline_exceeded: Counter,
    pub budget_exhausted: Counter,
}

impl RetryCounters {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let retries = register_counters(
            registry,
            "retries",
            "Requests repeated after a failure, or not repeated because of a limit, by outcome",
            "outcome",
        );
        Self {
            stale: retries("stale_connection"),
            http1_required: retries("http1_required"),
            granted: retries("granted"),
            attempts_exhausted: retries("attempts_exhausted"),
            deadline_exceeded: retries("deadline_exceeded"),
            budget_exhausted: retries("budget_exhausted"),
        }
    }
}

/// Ejections of endpoints, by reason.
#[derive(Clone, Debug, Default)]
pub struct EjectionMetrics {
    pub connect: EjectionMetric,
    pub stalled: EjectionMetric,
}

/// Ejections of endpoints for one reason.
#[derive(Clone, Debug, Default)]
pub struct EjectionMetric {
    /// Ejections so far.
    pub total: Counter,
    /// Endpoints that are ejected, or whose ejection has ended without a successful request since.
    pub now: Gauge,
}

impl EjectionMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let total = register_counters(
            registry,
            "ejections",
            "Ejections of endpoints from the rotation, by reason",
            "reason",
        );
        let now = Family::<[(&str, &str); 1], Gauge>::default();
        registry.register(
            "endpoints_ejected",
            "Endpoints that are ejected, or were and have not served a request since, by reason",
            now.clone(),
        );
        let metric = |reason| EjectionMetric {
            total: total(reason),
            now: now.get_or_create_owned(&[("reason", reason)]),
        };
        Self {
            connect: metric("connect"),
            stalled: metric("stalled"),
        }
    }
}
