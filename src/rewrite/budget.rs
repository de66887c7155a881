//! Limits of rewriting: the memory that all pages of the process may hold together, and the bounds
//! of a single page.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dashmap::DashMap;

use crate::metrics::PageMetrics;
use crate::model::ClientAddress;

/// A limit at which a page stops being rewritten. The rest of the page passes as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bound {
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

/// Granularity of reservations, so that a page touches the counter that all workers share a few
/// times, not at every slice.
const RESERVATION_BYTES: usize = 16 * 1024;

/// The part of the budget that the pages of one client address may hold: a client that reads slowly
/// must not keep the pages of all others from being rewritten.
const CLIENT_SHARE: usize = 2;

/// Memory that rewriting may hold in the whole process: `rewriting.maxMemory`.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_bytes: usize,
    /// Reserved by each client address that has pages. Touched as rarely as the counter of all.
    clients: DashMap<ClientAddress, usize>,
    metrics: PageMetrics,
}

impl Budget {
    /// A budget of `max_bytes`; with 0 no page is rewritten.
    pub fn new(max_bytes: usize, metrics: PageMetrics) -> Self {
        Self(Arc::new(Inner {
            max_bytes,
            clients: DashMap::new(),
            metrics,
        }))
    }

    /// Whether pages are rewritten at all.
    pub fn is_enabled(&self) -> bool {
        self.0.max_bytes > 0
    }

    /// Reserves the memory that a page for `client` needs at its start. Counts the page as passed
    /// and returns none where the budget, or the client's share of it, has no room.
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
            self.count_passed(Bound::Memory);
        }
        None
    }

    /// Counts a page that passes unmodified from here on because of `bound`.
    pub fn count_passed(&self, bound: Bound) {
        let passed = &self.0.metrics.passed;
        match bound {
            Bound::Memory => &passed.memory,
            Bound::Tag => &passed.tag,
            Bound::Attribute => &passed.attribute,
            Bound::Attributes => &passed.attributes,
            Bound::Name => &passed.name,
            Bound::Depth => &passed.depth,
            Bound::Candidates => &passed.candidates,
            Bound::Growth => &passed.growth,
        }
        .inc();
    }
}

/// The part of the budget that one page holds; dropping it returns the part.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    client: ClientAddress,
    bytes: usize,
}

impl Share {
    /// Changes the reservation to what `bytes` need. Returns false, and changes nothing, where the
    /// budget has no room.
    pub fn resize(&mut self, bytes: usize) -> bool {
        let wanted = bytes.next_multiple_of(RESERVATION_BYTES);
        if wanted <= self.bytes {
            self.set(wanted);
            return true;
        }
        let inner = &self.budget.0;
        // Held until the counter of all is changed too, so that the two agree.
        let mut of_client = inner.clients.entry(self.client).or_insert(0);
        if *of_client + (wanted - self.bytes) > inner.max_bytes / CLIENT_SHARE {
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
            *of_client += wanted - self.bytes;
            self.bytes = wanted;
        }
        reserved.is_ok()
    }

    /// Changes the reservation to what `bytes` need, whatever room there is: they are held already.
    pub fn force(&mut self, bytes: usize) {
        self.set(bytes.next_multiple_of(RESERVATION_BYTES));
    }

    /// Counts the page as passed because of `bound`.
    pub fn count_passed(&self, bound: Bound) {
        self.budget.count_passed(bound);
    }

    fn set(&mut self, wanted: usize) {
        if wanted != self.bytes {
            self.reserved()
                .fetch_add(signed(wanted) - signed(self.bytes), Ordering::Relaxed);
            let mut of_client = self.budget.0.clients.entry(self.client).or_insert(0);
            *of_client = (*of_client + wanted).saturating_sub(self.bytes);
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
        // A client without pages takes no memory.
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

    fn budget(max_bytes: usize) -> (Budget, PageMetrics) {
        let metrics = Metrics::new(&mut Registry::default()).pages;
        (Budget::new(max_bytes, metrics.clone()), metrics)
    }

    #[test]
    fn pages_share_one_budget_and_return_their_part() {
        let (budget, metrics) = budget(4 * RESERVATION_BYTES);
        let mut first = budget.reserve(1, client(1)).unwrap();
        let second = budget.reserve(2 * RESERVATION_BYTES, client(2)).unwrap();
        assert!(
            !first.resize(2 * RESERVATION_BYTES + 1),
            "three parts of four are in use"
        );
        assert!(first.resize(2 * RESERVATION_BYTES));
        assert!(budget.reserve(1, client(3)).is_none(), "all is in use");
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
    fn one_client_address_gets_half_of_the_budget() {
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

    fn client(last: u8) -> ClientAddress {
        std::net::IpAddr::from([192, 0, 2, last]).into()
    }

    #[test]
    fn zero_turns_rewriting_off_without_counting_pages() {
        let (budget, metrics) = budget(0);
        assert!(!budget.is_enabled() && budget.reserve(0, client(1)).is_none());
        assert_eq!(metrics.passed.memory.get(), 0);
    }
}
