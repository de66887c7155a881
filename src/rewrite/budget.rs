//! Limits of rewriting: the memory budget shared by all pages, and the bounds of a single page.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dashmap::DashMap;

use crate::metrics::PageMetrics;
use crate::model::ClientAddress;

/// Limit at which rewriting stops. The rest of the page passes unmodified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageLimit {
    #[error("the memory for rewriting is in use (rewriting.maxMemory)")]
    Memory,
    #[error("a tag is too long")]
    Tag,
    #[error("an attribute with links is too long")]
    Attribute,
    #[error("a tag has too many attributes")]
    Attributes,
    #[error("the name of an element is too long")]
    Name,
    #[error("too many elements are open")]
    Depth,
    #[error("a list of images has too many candidates")]
    Candidates,
    #[error("rewriting lets the page grow too much")]
    Growth,
}

/// Granularity of reservations in bytes, so that a page touches the counter shared by all workers a
/// few times rather than at every slice.
const RESERVATION_BYTES: usize = 16 * 1024;

/// Divisor of the budget for the pages of one client address, so that a client that reads slowly
/// cannot use up the budget.
const CLIENT_SHARE_DIVISOR: usize = 2;

/// Memory budget of rewriting for the whole process, `rewriting.maxMemory`.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_bytes: usize,
    /// Bytes reserved per client address.
    clients: DashMap<ClientAddress, usize>,
    metrics: PageMetrics,
}

impl Budget {
    /// Returns a budget of `max_bytes`; 0 disables rewriting.
    pub fn new(max_bytes: usize, metrics: PageMetrics) -> Self {
        Self(Arc::new(Inner {
            max_bytes,
            clients: DashMap::new(),
            metrics,
        }))
    }

    /// Returns true if pages are rewritten at all.
    pub fn is_enabled(&self) -> bool {
        self.0.max_bytes > 0
    }

    /// Reserves the memory that a page for `client` needs at its start. If the budget or the
    /// client's share of it is exhausted, counts the page as passed and returns `None`.
    pub fn reserve(&self, bytes: usize, client: ClientAddress) -> Option<Share> {
        let mut share = Share {
            budget: self.clone(),
            client,
            bytes: 0,
        };
        if self.is_enabled() && share.resize(bytes) {
            return Some(share);
        }
        if self.is_enabled() {
            self.count_passed(PageLimit::Memory);
        }
        None
    }

    /// Counts a page that passes unmodified because of `bound`.
    pub fn count_passed(&self, bound: PageLimit) {
        let passed = &self.0.metrics.passed;
        match bound {
            PageLimit::Memory => &passed.memory,
            PageLimit::Tag => &passed.tag,
            PageLimit::Attribute => &passed.attribute,
            PageLimit::Attributes => &passed.attributes,
            PageLimit::Name => &passed.name,
            PageLimit::Depth => &passed.depth,
            PageLimit::Candidates => &passed.candidates,
            PageLimit::Growth => &passed.growth,
        }
        .inc();
    }
}

/// Reservation of one page. Dropping it returns its bytes to the budget.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    client: ClientAddress,
    bytes: usize,
}

impl Share {
    /// Changes the reservation to `bytes`, rounded up. Returns false and changes nothing if the
    /// budget is exhausted.
    pub fn resize(&mut self, bytes: usize) -> bool {
        let wanted = bytes.next_multiple_of(RESERVATION_BYTES);
        if wanted <= self.bytes {
            self.set(wanted);
            return true;
        }
        let inner = &self.budget.0;
        // The entry stays locked until the total has changed, so that the two agree.
        let mut client_bytes = inner.clients.entry(self.client).or_insert(0);
        if *client_bytes + (wanted - self.bytes) > inner.max_bytes / CLIENT_SHARE_DIVISOR {
            return false;
        }
        let more = signed(wanted - self.bytes);
        let max = signed(inner.max_bytes);
        // Relaxed: the counter guards no other data.
        let reserved =
            self.reserved()
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |reserved| {
                    reserved.checked_add(more).filter(|sum| *sum <= max)
                });
        if reserved.is_ok() {
            *client_bytes += wanted - self.bytes;
            self.bytes = wanted;
        }
        reserved.is_ok()
    }

    /// Changes the reservation to `bytes`, even beyond the budget, for memory that is allocated
    /// already.
    pub fn force(&mut self, bytes: usize) {
        self.set(bytes.next_multiple_of(RESERVATION_BYTES));
    }

    /// Counts the page as passed because of `bound`.
    pub fn count_passed(&self, bound: PageLimit) {
        self.budget.count_passed(bound);
    }

    fn set(&mut self, wanted: usize) {
        if wanted != self.bytes {
            self.reserved()
                .fetch_add(signed(wanted) - signed(self.bytes), Ordering::Relaxed);
            let mut client_bytes = self.budget.0.clients.entry(self.client).or_insert(0);
            *client_bytes = (*client_bytes + wanted).saturating_sub(self.bytes);
            self.bytes = wanted;
        }
    }

    fn reserved(&self) -> &std::sync::atomic::AtomicI64 {
        self.budget.0.metrics.reserved.inner()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        // Entries of clients without pages would accumulate.
        self.budget
            .0
            .clients
            .remove_if(&self.client, |_, bytes| *bytes == 0);
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::Metrics;
    use crate::testing::client;

    fn budget(max_bytes: usize) -> (Budget, PageMetrics) {
        let metrics = Metrics::new(&mut Registry::default()).pages;
        (Budget::new(max_bytes, metrics.clone()), metrics)
    }

    #[test]
    fn reserves_from_shared_budget_and_returns_on_drop() {
        let (budget, metrics) = budget(4 * RESERVATION_BYTES);
        let mut first = budget.reserve(1, client(1)).unwrap();
        let second = budget.reserve(2 * RESERVATION_BYTES, client(2)).unwrap();
        assert!(
            !first.resize(2 * RESERVATION_BYTES + 1),
            "three quarters are reserved"
        );
        assert!(first.resize(2 * RESERVATION_BYTES));
        assert!(budget.reserve(1, client(3)).is_none(), "all is reserved");
        assert_eq!(metrics.passed.memory.get(), 1);
        assert_eq!(metrics.reserved.get(), signed(4 * RESERVATION_BYTES));
        drop(second);
        assert!(first.resize(RESERVATION_BYTES), "shrinking always succeeds");
        first.force(5 * RESERVATION_BYTES);
        assert_eq!(metrics.reserved.get(), signed(5 * RESERVATION_BYTES));
        drop(first);
        assert_eq!(metrics.reserved.get(), 0);
        assert!(budget.0.clients.is_empty());
    }

    #[test]
    fn limits_client_address_to_half_of_budget() {
        let (budget, _) = budget(4 * RESERVATION_BYTES);
        let pages = [
            budget.reserve(1, client(1)).unwrap(),
            budget.reserve(1, client(1)).unwrap(),
        ];
        assert!(budget.reserve(1, client(1)).is_none());
        assert!(budget.reserve(1, client(2)).is_some());
        drop(pages);
        assert!(budget.reserve(2 * RESERVATION_BYTES, client(1)).is_some());
    }

    #[test]
    fn disabled_budget_counts_no_pages() {
        let (budget, metrics) = budget(0);
        assert!(!budget.is_enabled() && budget.reserve(0, client(1)).is_none());
        assert_eq!(metrics.passed.memory.get(), 0);
    }
}
