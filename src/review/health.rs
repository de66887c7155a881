//! Health of the API as reviews see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::metrics::Metrics;
use crate::ready::Ready;

/// The name under which it stands in `/readyz`.
const NAME: &str = "reviews";

/// Tracks whether the last review was answered; logs and reports changes. Clones share the state.
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

    pub(super) fn answered(&self) {
        if self.0.unreachable.load(Ordering::Relaxed)
            && self.0.unreachable.swap(false, Ordering::Relaxed)
        {
            tracing::info!("the API answers reviews again");
            self.0.metrics.api_reachable.set(1);
            self.0.ready.clear_degraded(NAME);
        }
    }

    pub(super) fn failed(&self, kind: &str, fault: &str) {
        if !self.0.unreachable.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                kind,
                fault,
                "the API does not answer reviews; cached results serve as long as they may"
            );
            self.0.metrics.api_reachable.set(0);
            self.0.ready.set_degraded(NAME, format!("{kind}: {fault}"));
        }
    }
}
