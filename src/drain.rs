//! Shutdown in two steps: drain, then abort what still runs.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use tokio_util::sync::{
    CancellationToken, WaitForCancellationFuture, WaitForCancellationFutureOwned,
};

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

    /// As [`Self::begun`], for values that outlive a borrow.
    pub fn begun_owned(&self) -> WaitForCancellationFutureOwned {
        self.begun.clone().cancelled_owned()
    }

    /// Waits for the abort of remaining work.
    pub fn forced(&self) -> WaitForCancellationFuture<'_> {
        self.forced.cancelled()
    }
}

/// Watch of a connection for the drain that registers with it once: all workers share its lock, and
/// a connection is polled with each request.
#[derive(Debug)]
pub struct DrainWatch<'a, F> {
    drain: &'a Drain,
    begun: Pin<&'a mut F>,
    is_registered: bool,
}

impl<'a, F: Future<Output = ()>> DrainWatch<'a, F> {
    /// `begun` is [`Drain::begun`] of the same drain.
    pub fn new(drain: &'a Drain, begun: Pin<&'a mut F>) -> Self {
        Self {
            drain,
            begun,
            is_registered: false,
        }
    }

    /// Returns true if the drain has begun. The task of the first call is woken when it begins.
    pub fn has_begun(&mut self, context: &mut Context<'_>) -> bool {
        if self.drain.has_begun() {
            return true;
        }
        if !self.is_registered {
            self.is_registered = true;
            return self.begun.as_mut().poll(context).is_ready();
        }
        false
    }
}
