//! Answers that may be used again for a while: bounded, with an expiry of each answer's own, and one flight per
//! question however many ask it at once.

use std::hash::Hash;
use std::time::{Duration, Instant};

use quick_cache::Equivalent;
use quick_cache::sync::{Cache, EntryAction, EntryResult};

use crate::metrics::CacheCounters;

/// Remembers answers `V` to questions `K`.
#[derive(Debug)]
pub struct Remembered<K, V> {
    answers: Cache<K, Answer<V>>,
    counters: CacheCounters,
}

#[derive(Clone, Debug)]
struct Answer<V> {
    value: V,
    expires: Instant,
}

impl<K, V> Remembered<K, V>
where
    K: Hash + Eq + Clone,
    V: Clone,
{
    pub fn new(capacity: usize, counters: CacheCounters) -> Self {
        Self { answers: Cache::new(capacity), counters }
    }

    /// The answer, where there is one that has not expired. Takes the question in borrowed form.
    pub fn recall<Q: Hash + Equivalent<K> + ?Sized>(&self, question: &Q) -> Option<V> {
        let answer = self.answers.get(question).filter(|answer| answer.expires > Instant::now())?;
        self.counters.hits.inc();
        Some(answer.value)
    }

    /// Asks, unless somebody else asks the same just now: then their answer is waited for. `ask` tells how long its
    /// answer holds. When the asker gives up half-way, the next in line asks again.
    pub async fn recall_or_ask(&self, question: &K, ask: impl Future<Output = (V, Duration)>) -> V {
        let now = Instant::now();
        let entry = self.answers.entry_async(question, |_, answer| {
            if answer.expires > now { EntryAction::Retain(answer.value.clone()) } else { EntryAction::ReplaceWithGuard }
        });
        let guard = match entry.await {
            EntryResult::Retained(value) => {
                self.counters.hits.inc();
                return value;
            }
            EntryResult::Vacant(guard) | EntryResult::Replaced(guard, _) => guard,
            EntryResult::Removed(..) | EntryResult::Timeout => {
                unreachable!("nothing is removed above, and entry_async knows no timeout")
            }
        };
        self.counters.misses.inc();
        let (value, holds) = ask.await;
        // Full of placeholders, the cache may refuse the answer: it is good for this caller all the same.
        let _ = guard.insert(Answer { value: value.clone(), expires: Instant::now() + holds });
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn remembered() -> Remembered<String, u32> {
        let counters = CacheCounters { hits: Default::default(), misses: Default::default() };
        Remembered::new(16, counters)
    }

    #[tokio::test]
    async fn one_flight_however_many_ask() {
        let (memory, key, asked) = (remembered(), "k".to_owned(), Cell::new(0));
        let ask = || async {
            asked.set(asked.get() + 1);
            tokio::task::yield_now().await;
            (7, Duration::from_mins(1))
        };
        let answers = tokio::join!(
            memory.recall_or_ask(&key, ask()),
            memory.recall_or_ask(&key, ask()),
            memory.recall_or_ask(&key, ask()),
        );
        assert_eq!((answers, asked.get()), ((7, 7, 7), 1));
        assert_eq!(memory.recall("k"), Some(7));
        assert_eq!((memory.counters.hits.get(), memory.counters.misses.get()), (3, 1));
    }

    #[tokio::test]
    async fn an_expired_answer_is_asked_for_again() {
        let (memory, key) = (remembered(), "k".to_owned());
        memory.recall_or_ask(&key, async { (1, Duration::ZERO) }).await;
        assert_eq!(memory.recall("k"), None);
        assert_eq!(memory.recall_or_ask(&key, async { (2, Duration::from_mins(1)) }).await, 2);
    }

    #[tokio::test]
    async fn an_asker_who_gives_up_leaves_the_question_to_the_next() {
        let (memory, key) = (remembered(), "k".to_owned());
        tokio::select! {
            biased;
            _ = memory.recall_or_ask(&key, std::future::pending()) => unreachable!("pending never ends"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(memory.recall_or_ask(&key, async { (3, Duration::from_mins(1)) }).await, 3);
    }
}
