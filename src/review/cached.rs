//! Reviews with cached results, which are refreshed before they expire and used past their expiry
//! while the API cannot be reached.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use siphasher::sip128::{Hasher128, SipHasher24};

use super::{ReviewError, ReviewFailure, Reviewable, Reviewer};
use crate::metrics::CacheCounters;
use crate::model::ClientAddress;
use crate::ttl_cache::{Fetched, Lookup, Ticket, TtlCache};

/// Evaluates the API's responses to reviews of one kind.
pub trait ReviewHandler: Debug + Send + Sync + 'static {
    type Review: Reviewable;
    type Outcome: Clone + Debug + Send + Sync + 'static;
    type Error: From<ReviewError> + Clone + Debug + Send + Sync + 'static;

    /// Returns the verdict in `response` to `review` and its cache lifetime, or `None` for a
    /// response without a status.
    fn interpret(
        &self,
        review: &Self::Review,
        response: Self::Review,
    ) -> Option<Fetched<Verdict<Self>>>;
}

/// Result of a review.
pub type Verdict<H> = Result<<H as ReviewHandler>::Outcome, <H as ReviewHandler>::Error>;

/// Sends reviews of one kind and caches the verdicts.
#[derive(Debug)]
pub struct CachedReviews<H: ReviewHandler> {
    pub(crate) handler: H,
    reviewer: Reviewer<H::Review>,
    verdicts: TtlCache<KeyHash, Verdict<H>>,
    hasher: KeyHasher,
}

impl<H: ReviewHandler> CachedReviews<H> {
    /// `stale_on_error` is the time past its expiry for which a verdict is used while the API
    /// cannot be reached.
    pub fn new(
        handler: H,
        reviewer: Reviewer<H::Review>,
        capacity: usize,
        stale_on_error: Duration,
        counters: CacheCounters,
    ) -> Self {
        let verdicts = TtlCache::new(capacity, stale_on_error, counters);
        Self {
            handler,
            reviewer,
            verdicts,
            hasher: KeyHasher::default(),
        }
    }

    /// Returns the verdict for `key`, which must contain everything that the verdict depends on.
    /// `review` builds the review on a miss, or rejects without one. `client` is the address whose
    /// share of the slots is used.
    ///
    /// # Errors
    /// The handler's error, also for a review without a result.
    pub(crate) async fn verdict(
        self: &Arc<Self>,
        key: impl Hash,
        review: impl FnOnce() -> Result<H::Review, H::Error>,
        client: ClientAddress,
    ) -> Verdict<H> {
        let hash = self.hasher.hash(key);
        // Reachability is read only for an expired verdict.
        match self.verdicts.get(&hash, || self.reviewer.is_unreachable()) {
            Lookup::Hit(verdict) => return verdict,
            Lookup::Due(verdict, ticket) => {
                // Otherwise the ticket is dropped, which allows the next hit to refresh.
                if let Ok(review) = review() {
                    self.refresh(review, ticket);
                }
                return verdict;
            }
            Lookup::Miss => {}
        }
        // Before the fetch, so that a request that is rejected without a review takes no slot.
        let review = review()?;
        // Boxed with the review, because a miss is rare and large: every request would carry it.
        Box::pin(async move {
            // Polled by one caller per key. The others wait in the cache and take no slot.
            let fetch = async { self.evaluate(&review, self.reviewer.send(&review, client).await) };
            self.verdicts.get_or_fetch(&hash, fetch).await
        })
        .await
    }

    /// Removes entries that can no longer be used.
    pub fn purge(&self) {
        self.verdicts.purge();
    }

    /// Repeats a review in the background while the cached verdict is used.
    fn refresh(self: &Arc<Self>, review: H::Review, ticket: Ticket<KeyHash>) {
        // A refresh never waits in the queue: callers do, and the cached verdict is still valid.
        let Some(slot) = self.reviewer.try_enter() else {
            return self.verdicts.postpone(&ticket);
        };
        let this = Arc::clone(self);
        // A separate task, so that the refresh outlives the request that started it.
        self.reviewer.control().spawn(async move {
            let fetch = async {
                let response = this.reviewer.send_in(&review, slot).await;
                this.evaluate(&review, response.map_err(ReviewError::from))
            };
            this.verdicts.refresh(ticket, fetch).await;
        });
    }

    fn evaluate(
        &self,
        review: &H::Review,
        response: Result<H::Review, ReviewError>,
    ) -> Fetched<Verdict<H>> {
        let error = match response {
            Ok(response) => match self.handler.interpret(review, response) {
                Some(fetched) => return fetched,
                // Not a denial: a failure is cached for a moment only.
                None => ReviewFailure::NoStatus.into(),
            },
            Err(error) => error,
        };
        // An outage keeps cached verdicts in use; a refusal does not, because the API was reached.
        match &error {
            ReviewError::Rejected(_) => Fetched::NotSent {
                error: Err(error.into()),
            },
            ReviewError::Failed(failure) if failure.is_unreachable() => Fetched::Unreachable {
                error: Err(error.into()),
            },
            ReviewError::Failed(_) => Fetched::Failed {
                error: Err(error.into()),
            },
        }
    }
}

/// Hash of a cache key: keys of any length use the same memory, and no token is stored.
pub type KeyHash = u128;

/// Hashes cache keys by SipHash-2-4 with 128 bits of output, under a random key of this process.
/// Colliding keys would share a verdict; a caller cannot search for a collision, because the key is
/// random and no hash leaves the process. SHA-256 needs no key, but costs more for every request.
pub struct KeyHasher(SipHasher24);

impl Default for KeyHasher {
    fn default() -> Self {
        let mut key = [0; 16];
        rand::fill(&mut key).expect("the system provides random bytes");
        Self(SipHasher24::new_with_key(&key))
    }
}

impl KeyHasher {
    pub fn hash(&self, key: impl Hash) -> KeyHash {
        // A copy of the state after the key was mixed in, which saves that work per hash.
        let mut hasher = self.0;
        // `Hash` of strings adds a terminator, so that neighboring fields cannot be shifted into
        // each other.
        key.hash(&mut hasher);
        hasher.finish128().as_u128()
    }
}

/// Omits the key.
impl Debug for KeyHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHasher")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::model::{Attributes, Identity, Verb};

    #[test]
    fn hashes_fields_of_keys_separately() {
        let identity = |user| Identity::new(user, "", vec![], Default::default());
        let (jane, joe) = (identity("jane"), identity("joe"));
        let attributes = |subresource, namespace, name| Attributes {
            verb: Verb::Get,
            group: "",
            resource: "pods",
            subresource,
            namespace,
            name,
        };
        let get = attributes("proxy", "ab", "c");
        let keys = [
            (&jane, get),
            (&jane, attributes("proxy", "a", "bc")),
            (&jane, attributes("proxyab", "", "c")),
            (&jane, attributes("proxy", "", "abc")),
            (
                &jane,
                Attributes {
                    verb: Verb::List,
                    ..get
                },
            ),
            (
                &jane,
                Attributes {
                    resource: "services",
                    ..get
                },
            ),
            (&joe, get),
        ];
        let hasher = KeyHasher::default();
        let hash = |(identity, attributes): (&Identity, _)| {
            hasher.hash((identity.fingerprint(), attributes))
        };
        assert_eq!(
            keys.map(hash),
            keys.map(hash),
            "equal keys have equal hashes"
        );
        assert_eq!(HashSet::from(keys.map(hash)).len(), keys.len());
        assert_ne!(
            KeyHasher::default().hash("token"),
            hasher.hash("token"),
            "each process has its own key"
        );
    }
}
