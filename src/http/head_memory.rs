//! Process-wide budget for large request heads.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Size in bytes up to which a head does not count against the budget. Heads of browsers with large
/// cookies are smaller.
pub const FREE_HEAD: usize = 16 * 1024;

/// Budget for the bytes of heads beyond 16 KiB each. Clones share it.
///
/// Without it a few hundred clients that send heads of 1 MiB without end would take all memory
/// before they authenticate.
#[derive(Clone, Debug)]
pub struct HeadMemory(Arc<Semaphore>);

/// Share of the budget that one head holds.
#[derive(Debug, Default)]
pub struct HeadShare {
    permits: Option<OwnedSemaphorePermit>,
    reserved: usize,
}

impl HeadMemory {
    /// Creates a budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))))
    }

    /// Grows the share to a head of `length` bytes. False if the budget does not allow it.
    pub fn grow(&self, share: &mut HeadShare, length: usize) -> bool {
        let needed = length.saturating_sub(FREE_HEAD);
        if needed <= share.reserved {
            return true;
        }
        // In steps of the free size, so that a head that trickles in takes few permits.
        let step = (needed - share.reserved).next_multiple_of(FREE_HEAD);
        let permits = u32::try_from(step)
            .ok()
            .and_then(|step| Arc::clone(&self.0).try_acquire_many_owned(step).ok());
        let Some(permits) = permits else {
            return false;
        };
        match &mut share.permits {
            Some(held) => held.merge(permits),
            None => share.permits = Some(permits),
        }
        share.reserved += step;
        true
    }
}

impl HeadShare {
    /// Shrinks the share to a head of `length` bytes.
    pub fn shrink(&mut self, length: usize) {
        let needed = length.saturating_sub(FREE_HEAD);
        let excess = self.reserved.saturating_sub(needed) / FREE_HEAD * FREE_HEAD;
        if let Some(permits) = &mut self.permits
            && permits.split(excess).is_some()
        {
            self.reserved -= excess;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_heads_are_free_and_large_ones_share_the_budget() {
        let memory = HeadMemory::new(2 * FREE_HEAD);
        let (mut small, mut first, mut second) = Default::default();
        assert!(memory.grow(&mut small, FREE_HEAD));
        assert!(memory.grow(&mut first, FREE_HEAD + 1));
        assert!(memory.grow(&mut first, 2 * FREE_HEAD), "reserved already");
        assert!(memory.grow(&mut second, 2 * FREE_HEAD));
        assert!(!memory.grow(&mut first, 2 * FREE_HEAD + 1));
        drop(second);
        assert!(memory.grow(&mut first, 3 * FREE_HEAD));
        drop(first);
        assert_eq!(memory.0.available_permits(), 2 * FREE_HEAD);
    }

    #[test]
    fn shrunk_share_returns_memory() {
        let memory = HeadMemory::new(4 * FREE_HEAD);
        let mut share = HeadShare::default();
        share.shrink(0);
        assert!(memory.grow(&mut share, 5 * FREE_HEAD));
        share.shrink(2 * FREE_HEAD + 1);
        assert_eq!(memory.0.available_permits(), 2 * FREE_HEAD);
        assert!(memory.grow(&mut share, 3 * FREE_HEAD), "reserved still");
        assert_eq!(memory.0.available_permits(), 2 * FREE_HEAD);
        share.shrink(FREE_HEAD);
        assert_eq!(memory.0.available_permits(), 4 * FREE_HEAD);
        assert!(memory.grow(&mut share, 2 * FREE_HEAD));
        drop(share);
        assert_eq!(memory.0.available_permits(), 4 * FREE_HEAD);
    }
}
