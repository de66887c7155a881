//! Reachability of the API, as observed by reviews.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::metrics::Metrics;
use crate::ready::Ready;

/// Name of the check in `/readyz`.
const NAME: &str = "reviews";

/// Tracks if the last review reached the API; logs and reports changes. Clones share the state.
#[derive(Clone, Debug)]
pub struct ApiHealth(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    unreachable: AtomicBool,
    ready: Ready,
    metrics: Metrics,
}

impl ApiHealth {
    pub fn new(ready: Ready, metrics: Metrics) -> Self {
        Self(Arc::new(Shared {
            unreachable: AtomicBool::new(false),
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
