//! The end: stop accepting, finish what runs, then cut.

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// Tells every task how far the end has come. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    forced: CancellationToken,
}

impl Drain {
    /// Begins: listeners close, connections finish the requests they have.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// The deadline is over, or somebody asked twice: whatever runs is cut.
    pub fn force(&self) {
        self.begun.cancel();
        self.forced.cancel();
    }

    pub fn begun(&self) -> WaitForCancellationFuture<'_> {
        self.begun.cancelled()
    }

    pub fn forced(&self) -> WaitForCancellationFuture<'_> {
        self.forced.cancelled()
    }
}
