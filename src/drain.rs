//! Shutdown in two steps: drain, then abort what still runs.

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// State of the shutdown, which every task can await. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    forced: CancellationToken,
}

impl Drain {
    /// Begins the drain: listeners close, connections finish their requests.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Aborts remaining work, after the drain timeout or a second signal.
    pub fn force(&self) {
        self.begun.cancel();
        self.forced.cancel();
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
