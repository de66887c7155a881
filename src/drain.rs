//! Shutdown in two steps: drain, then abort what still runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// State of the shutdown, which every task can await. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    forced: CancellationToken,
    /// True once `begun` is cancelled. Reading the token takes a lock that all workers share.
    has_begun: Arc<AtomicBool>,
}

impl Drain {
    /// Begins the drain: listeners close, connections finish their requests.
    pub fn begin(&self) {
        self.has_begun.store(true, Ordering::Release);
        self.begun.cancel();
    }

    /// Aborts remaining work, after the drain timeout or a second signal.
    pub fn force(&self) {
        self.begin();
        self.forced.cancel();
    }

    /// Returns true if the drain has begun. Cheap enough for each request.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    /// Waits for the begin of the drain.
    pub fn begun(&self) -> WaitForCancellationFuture<'_> {
        self.begun.cancelled()
    }

    /// Waits for the abort of remaining work.
    pub fn forced(&self) -> WaitForCancellationFuture<'_> {
        self.forced.cancelled()
    }
}
