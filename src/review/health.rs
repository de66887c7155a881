//! Reachability of the API, as observed by reviews.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ReviewFailure;
use crate::metrics::Metrics;
use crate::ready::Ready;
use crate::telemetry::LogLimit;

/// Name of the check in `/readyz`.
const NAME: &str = "reviews";
/// Name of the check of reviews that the API server answers with an error.
const ANSWERS: &str = "review-answers";

/// Tracks if the last review reached the API; logs and reports changes. Clones share the state.
#[derive(Clone, Debug)]
pub struct ApiHealth(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    unreachable: AtomicBool,
    /// The last review was answered with an error.
    failing: AtomicBool,
    /// Events about such errors, of which each request may cause one.
    logged: LogLimit,
    ready: Ready,
    metrics: Metrics,
}

impl ApiHealth {
    pub fn new(ready: Ready, metrics: Metrics) -> Self {
        Self(Arc::new(Shared {
            unreachable: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            logged: LogLimit::new(1),
            ready,
            metrics,
        }))
    }

    pub fn is_unreachable(&self) -> bool {
        self.0.unreachable.load(Ordering::Relaxed)
    }

    pub(super) fn set_reachable(&self) {
        // A load costs less than a swap, which would take the cache line from the other workers
        // for every review.
        if self.0.unreachable.load(Ordering::Relaxed)
            && self.0.unreachable.swap(false, Ordering::Relaxed)
        {
            tracing::info!("reviews reach the API server again");
            self.0.metrics.api_reachable.set(1);
            self.0.ready.clear_degraded(NAME);
        }
        if self.0.failing.load(Ordering::Relaxed) && self.0.failing.swap(false, Ordering::Relaxed) {
            self.0.ready.clear_degraded(ANSWERS);
        }
    }

    /// Records that the API server answered a review with an error. Logged at most once a
    /// minute.
    pub(super) fn set_failing(&self, kind: &str, failure: &ReviewFailure) {
        let remedy = match failure {
            ReviewFailure::Refused(response) => response.remedy(),
            _ => "",
        };
        self.0.failing.store(true, Ordering::Relaxed);
        self.0
            .ready
            .set_degraded(ANSWERS, format!("{kind}: {failure}{remedy}"));
        if self.0.logged.permits() {
            tracing::error!(kind, error = %failure, "review failed{remedy}");
        }
    }

    pub(super) fn set_unreachable(&self, kind: &str, error: &str) {
        if !self.0.unreachable.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                kind,
                error,
                "reviews do not reach the API server; staleOnError limits use of cached results"
            );
            self.0.metrics.api_reachable.set(0);
            self.0.ready.set_degraded(NAME, format!("{kind}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use prometheus_client::registry::Registry;

    use super::super::ErrorResponse;
    use super::*;
    use crate::testing::Sink;

    /// Each request of a caller may cause a review that is denied.
    #[test]
    fn denied_reviews_are_logged_once_with_the_remedy() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .finish();
        let ready = Ready::default();
        let health = ApiHealth::new(ready.clone(), Metrics::new(&mut Registry::default()));
        let body = br#"{"message": "tokenreviews is forbidden"}"#;
        let denied = ReviewFailure::Refused(ErrorResponse::parse(StatusCode::FORBIDDEN, body));
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..100 {
                health.set_failing("TokenReview", &denied);
            }
        });
        let log = sink.text();
        assert_eq!(log.lines().count(), 1, "{log}");
        let report = ready.report().1;
        for text in [&log, &report] {
            assert!(
                text.contains("tokenreviews is forbidden")
                    && text.contains("apply the ClusterRoleBinding kube-bastion:auth-delegator"),
                "{text}"
            );
        }
        assert!(
            report.contains("[!]review-answers degraded: TokenReview: "),
            "{report}"
        );
        health.set_reachable();
        assert!(!ready.report().1.contains("review"));
    }
}
