//! Reviews whose verdicts are remembered for a while, asked again before they expire, and served
//! past their expiry while the API cannot be reached.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use siphasher::sip128::{Hasher128, SipHasher24};

use super::{NO_STATUS, ReviewError, Reviewable, Reviewer};
use crate::metrics::CacheCounters;
use crate::model::ClientAddress;
use crate::ttl_cache::{Fetched, Lookup, Ticket, TtlCache};

/// Judges the API's answers to reviews of one kind.
pub trait Judge: Debug + Send + Sync + 'static {
    type Review: Reviewable;
    type Outcome: Clone + Debug + Send + Sync + 'static;
    type Error: From<ReviewError> + Clone + Debug + Send + Sync + 'static;

    /// The meaning of `answer` to `review`, and the time for which it holds. None for an answer
    /// without a status.
    fn judge(&self, review: &Self::Review, answer: Self::Review) -> Option<Fetched<Verdict<Self>>>;
}

/// The outcome of a review, or why there is none.
pub type Verdict<J> = Result<<J as Judge>::Outcome, <J as Judge>::Error>;

/// Asks for reviews of one kind and remembers the verdicts.
#[derive(Debug)]
pub struct CachedReviews<J: Judge> {
    pub(crate) judge: J,
    reviewer: Reviewer<J::Review>,
    verdicts: TtlCache<QuestionHash, Verdict<J>>,
    hasher: QuestionHasher,
}

impl<J: Judge> CachedReviews<J> {
    /// `stale_on_error` is the time past its expiry for which a verdict serves while the API cannot
    /// be reached.
    pub fn new(
        judge: J,
        reviewer: Reviewer<J::Review>,
        capacity: usize,
        stale_on_error: Duration,
        counters: CacheCounters,
    ) -> Self {
        let verdicts = TtlCache::new(capacity, stale_on_error, counters);
        Self {
            judge,
            reviewer,
            verdicts,
            hasher: QuestionHasher::new(),
        }
    }

    /// The verdict on `question`, which must hold everything that the verdict depends on. `review`
    /// is made of it where the API has to be asked, or refuses without asking. `client` is the
    /// address whose share of the places is taken.
    ///
    /// # Errors
    /// The judge's, a review without a usable answer included.
    pub(crate) async fn verdict(
        self: &Arc<Self>,
        question: impl Hash,
        review: impl FnOnce() -> Result<J::Review, J::Error>,
        client: ClientAddress,
    ) -> Verdict<J> {
        let hash = self.hasher.hash(question);
        match self.verdicts.get(&hash, || self.reviewer.is_unreachable()) {
            Lookup::Hit(verdict) => return verdict,
            Lookup::Due(verdict, ticket) => {
                if let Ok(review) = review() {
                    self.refresh(review, ticket);
                }
                return verdict;
            }
            Lookup::Miss => {}
        }
        let review = review()?;
        let fetch = async { self.judged(&review, self.reviewer.ask(&review, client).await) };
        self.verdicts.get_or_fetch(&hash, fetch).await
    }

    /// Removes what can serve no more.
    pub fn purge(&self) {
        self.verdicts.purge();
    }

    /// Asks in the background while the old verdict still serves.
    fn refresh(self: &Arc<Self>, review: J::Review, ticket: Ticket<QuestionHash>) {
        let Some(place) = self.reviewer.try_enter() else {
            return self.verdicts.postpone(&ticket);
        };
        let this = Arc::clone(self);
        self.reviewer.control().spawn(async move {
            let fetch = async { this.judged(&review, this.reviewer.ask_in(&review, place).await) };
            this.verdicts.refresh(ticket, fetch).await;
        });
    }

    fn judged(
        &self,
        review: &J::Review,
        answer: Result<J::Review, ReviewError>,
    ) -> Fetched<Verdict<J>> {
        match answer {
            Ok(answer) => self
                .judge
                .judge(review, answer)
                .unwrap_or_else(|| Fetched::Failed {
                    error: Err(ReviewError::Refused(NO_STATUS.into()).into()),
                }),
            Err(error @ ReviewError::Rejected(_)) => Fetched::NotAsked {
                error: Err(error.into()),
            },
            Err(error @ ReviewError::Unreachable(_)) => Fetched::Unreachable {
                error: Err(error.into()),
            },
            Err(error @ ReviewError::Refused(_)) => Fetched::Failed {
                error: Err(error.into()),
            },
        }
    }
}

/// The hash of a question: questions of any length take the same memory, and no token is kept.
type QuestionHash = u128;

/// Hashes questions by SipHash-2-4 with 128 bits of output, under a key of this process. Two
/// questions with one hash would share a verdict. Nobody can look for such a pair: the key is
/// random, and no hash leaves the process. SHA-256, which needs no key, costs more for every
/// request.
struct QuestionHasher(SipHasher24);

impl QuestionHasher {
    fn new() -> Self {
        let mut key = [0; 16];
        rand::fill(&mut key).expect("the system gives random bytes");
        Self(SipHasher24::new_with_key(&key))
    }

    fn hash(&self, question: impl Hash) -> QuestionHash {
        let mut hasher = self.0;
        question.hash(&mut hasher);
        hasher.finish128().as_u128()
    }
}

/// Without the key.
impl Debug for QuestionHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuestionHasher")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::model::{Attributes, Identity, Verb};

    #[test]
    fn questions_with_the_same_letters_in_other_places_have_other_hashes() {
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
        let questions = [
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
        let hasher = QuestionHasher::new();
        let hash = |(identity, attributes): (&Identity, _)| {
            hasher.hash((identity.fingerprint(), attributes))
        };
        assert_eq!(
            questions.map(hash),
            questions.map(hash),
            "equal questions have equal hashes"
        );
        assert_eq!(HashSet::from(questions.map(hash)).len(), questions.len());
        assert_ne!(
            QuestionHasher::new().hash("token"),
            hasher.hash("token"),
            "each process has a key of its own"
        );
    }
}
