//! A bounded cache of answers that each have an expiry of their own, with one fetch per key however
//! many callers miss it at the same time, refreshes ahead of the expiry, and stale answers while
//! the source cannot be reached.

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use quick_cache::sync::{Cache, DefaultLifecycle, EntryAction, EntryResult, PlaceholderGuard};
use quick_cache::{DefaultHashBuilder, UnitWeighter};

use crate::metrics::CacheCounters;

/// Time for which the failure to fetch an answer stands for the answer, so that callers who wait in
/// line for the same key do not each wait for a timeout of their own.
const FAILURE_TTL: Duration = Duration::from_millis(500);
/// The longest time that anything is cached, so that no setting overflows a clock.
const MAX_TTL: Duration = Duration::from_hours(24 * 365);
/// Pause between two refreshes of one entry while the source cannot be reached.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// Caches values `V` by key `K`.
#[derive(Debug)]
pub struct TtlCache<K: Hash + Eq, V> {
    entries: Cache<K, Entry<V>>,
    /// The keys whose refresh runs. Beside the entries, so that a hit copies plain data and touches
    /// no shared counter.
    refreshing: Arc<DashMap<K, ()>>,
    /// Time past its expiry for which an answer serves while the source cannot be reached. Zero
    /// turns it off.
    stale_on_error: Duration,
    counters: CacheCounters,
}

#[derive(Clone, Debug)]
struct Entry<V> {
    value: V,
    lifetime: Lifetime,
}

/// The three clocks of an entry, in ascending order.
#[derive(Clone, Copy, Debug)]
struct Lifetime {
    /// The next hit from here on refreshes the entry.
    refresh_at: Instant,
    /// The entry serves without a question until here.
    expires: Instant,
    /// The entry serves until here while the source cannot be reached.
    stale_until: Instant,
}

/// The outcome of a fetch.
#[derive(Debug)]
pub enum Fetched<V> {
    /// An answer that serves for `ttl`, is refreshed before that ends, and may serve as a stale one
    /// after it.
    Answer {
        value: V,
        ttl: Duration,
        /// The time for which the answer may be used at most, whatever happens to the source.
        usable_for: Duration,
    },
    /// An answer that serves for `ttl` and no longer.
    Denial { value: V, ttl: Duration },
    /// The source was not reached. `error` is the answer where there is no older one.
    Unreachable { error: V },
    /// The source did not answer the question, and would not answer it again: an older answer does
    /// not stand in.
    Failed { error: V },
    /// The source was not asked: nothing changes for others.
    NotAsked { error: V },
}

/// The outcome of a look-up that asks nothing.
#[derive(Debug)]
pub enum Lookup<K: Hash + Eq, V> {
    Hit(V),
    /// A hit whose entry is due: the caller refreshes it in the background by
    /// [`TtlCache::refresh`].
    Due(V, Ticket<K>),
    Miss,
}

/// The right to refresh an entry: one at a time for each key.
#[derive(Debug)]
pub struct Ticket<K: Hash + Eq> {
    key: K,
    /// The expiry of the entry that is due: an entry with another one was fetched meanwhile, and is
    /// newer.
    expires: Instant,
    refreshing: Arc<DashMap<K, ()>>,
}

impl<K: Hash + Eq> Drop for Ticket<K> {
    fn drop(&mut self) {
        self.refreshing.remove(&self.key);
    }
}

impl<K, V> TtlCache<K, V>
where
    K: Hash + Eq + Clone,
    V: Clone,
{
    pub fn new(capacity: usize, stale_on_error: Duration, counters: CacheCounters) -> Self {
        Self {
            entries: Cache::new(capacity),
            refreshing: Arc::default(),
            stale_on_error,
            counters,
        }
    }

    /// Looks `key` up. An expired entry serves as long as it may while the source is `unreachable`;
    /// and while a refresh of it runs, which has a deadline: by its end there is an answer, or the
    /// source is known to be unreachable.
    pub fn get(&self, key: &K, unreachable: impl FnOnce() -> bool) -> Lookup<K, V> {
        let Some(Entry { value, lifetime }) = self.entries.get(key) else {
            return Lookup::Miss;
        };
        let now = Instant::now();
        if now >= lifetime.expires {
            if now >= lifetime.stale_until || !(unreachable() || self.refreshing.contains_key(key))
            {
                return Lookup::Miss;
            }
            self.counters.stale.inc();
        }
        self.counters.hits.inc();
        // A look costs less than the lock of an insertion, for every hit while a refresh runs.
        let due = now >= lifetime.refresh_at && !self.refreshing.contains_key(key);
        if due && self.refreshing.insert(key.clone(), ()).is_none() {
            let refreshing = Arc::clone(&self.refreshing);
            return Lookup::Due(
                value,
                Ticket {
                    key: key.clone(),
                    expires: lifetime.expires,
                    refreshing,
                },
            );
        }
        Lookup::Hit(value)
    }

    /// Fetches on a miss; concurrent callers of one key share one fetch. A caller that is dropped
    /// half-way leaves the fetch to the next in line, and the older answer in its place.
    pub async fn get_or_fetch(&self, key: &K, fetch: impl Future<Output = Fetched<V>>) -> V {
        let now = Instant::now();
        let entry = self.entries.entry_async(key, |_, entry| {
            if entry.lifetime.expires > now {
                EntryAction::Retain(entry.value.clone())
            } else {
                EntryAction::ReplaceWithGuard
            }
        });
        let place = match entry.await {
            EntryResult::Retained(value) => {
                self.counters.hits.inc();
                return value;
            }
            EntryResult::Vacant(guard) => Place {
                guard: Some(guard),
                before: None,
            },
            EntryResult::Replaced(guard, before) => Place {
                guard: Some(guard),
                before: Some(before),
            },
            EntryResult::Removed(..) | EntryResult::Timeout => {
                unreachable!("nothing is removed above, and entry_async has no timeout")
            }
        };
        self.counters.misses.inc();
        match self.entry(fetch.await, place.before.as_ref()) {
            Ok(entry) => {
                let value = entry.value.clone();
                place.fill(entry);
                value
            }
            Err(error) => error,
        }
    }

    /// Replaces the entry of the ticket's key by the answer that `fetch` brings. Without an answer
    /// the old one stays until its own end.
    pub async fn refresh(&self, ticket: Ticket<K>, fetch: impl Future<Output = Fetched<V>>) {
        match fetch.await {
            answer @ (Fetched::Answer { .. } | Fetched::Denial { .. }) => {
                if let Ok(answer) = self.entry(answer, None) {
                    self.replace(&ticket, |entry| *entry = answer);
                }
            }
            Fetched::Unreachable { .. } | Fetched::Failed { .. } | Fetched::NotAsked { .. } => {
                self.postpone(&ticket);
            }
        }
    }

    /// Lets the entry of the ticket's key be for a moment, so that hits do not try to refresh it
    /// one after the other.
    pub fn postpone(&self, ticket: &Ticket<K>) {
        self.replace(ticket, |entry| {
            entry.lifetime.refresh_at = Instant::now() + REFRESH_PAUSE;
        });
    }

    /// Changes the entry that the ticket was given for. One that another caller has fetched
    /// meanwhile stays: it is newer, and may be a denial.
    fn replace(&self, ticket: &Ticket<K>, change: impl FnOnce(&mut Entry<V>)) {
        // Without an entry, or with one that is being fetched, there is nothing to change. The
        // guard of a vacant place is dropped, which leaves it vacant.
        let _ = self
            .entries
            .entry(&ticket.key, Some(Duration::ZERO), |_, entry| {
                if entry.lifetime.expires == ticket.expires {
                    change(entry);
                }
                EntryAction::Retain(())
            });
    }

    /// Removes the entries that can serve no more. Called from time to time, so that memory follows
    /// use, not capacity.
    pub fn purge(&self) {
        let now = Instant::now();
        self.entries
            .retain(|_, entry| entry.lifetime.stale_until > now);
    }

    /// The number of entries, expired ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry that a fetch leaves; else what its caller gets.
    fn entry(&self, fetched: Fetched<V>, before: Option<&Entry<V>>) -> Result<Entry<V>, V> {
        let now = Instant::now();
        // Not due before it expires, and of no use after it.
        let until = |value, ttl: Duration| {
            let expires = now + ttl.min(MAX_TTL);
            Entry {
                value,
                lifetime: Lifetime {
                    refresh_at: expires,
                    expires,
                    stale_until: expires,
                },
            }
        };
        Ok(match (fetched, before) {
            (
                Fetched::Answer {
                    value,
                    ttl,
                    usable_for,
                },
                _,
            ) => {
                let ttl = ttl.min(usable_for).min(MAX_TTL);
                let stale_until = now
                    + usable_for
                        .min(ttl.saturating_add(self.stale_on_error))
                        .min(MAX_TTL);
                Entry {
                    value,
                    lifetime: Lifetime {
                        refresh_at: now + ttl / 2,
                        expires: now + ttl,
                        stale_until,
                    },
                }
            }
            (Fetched::Denial { value, ttl }, _) => until(value, ttl),
            (Fetched::Unreachable { .. }, Some(Entry { value, lifetime }))
                if lifetime.stale_until > now =>
            {
                self.counters.stale.inc();
                let expires = (now + FAILURE_TTL).min(lifetime.stale_until);
                Entry {
                    value: value.clone(),
                    lifetime: Lifetime {
                        refresh_at: expires,
                        expires,
                        ..*lifetime
                    },
                }
            }
            (Fetched::Unreachable { error } | Fetched::Failed { error }, _) => {
                until(error, FAILURE_TTL)
            }
            (Fetched::NotAsked { error }, _) => return Err(error),
        })
    }
}

type Guard<'c, K, V> = PlaceholderGuard<
    'c,
    K,
    Entry<V>,
    UnitWeighter,
    DefaultHashBuilder,
    DefaultLifecycle<K, Entry<V>>,
>;

/// The place of an entry that is being fetched.
struct Place<'c, K: Hash + Eq + Clone, V: Clone> {
    guard: Option<Guard<'c, K, V>>,
    /// The expired entry that stood there.
    before: Option<Entry<V>>,
}

impl<K: Hash + Eq + Clone, V: Clone> Place<'_, K, V> {
    fn fill(mut self, entry: Entry<V>) {
        if let Some(guard) = self.guard.take() {
            // Full of placeholders, the cache may refuse the entry: its value serves this caller
            // all the same.
            let _ = guard.insert(entry);
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Drop for Place<'_, K, V> {
    /// Puts the old entry back where the caller left before the fetch ended: it may have to serve
    /// as a stale one.
    fn drop(&mut self) {
        if let (Some(guard), Some(before)) = (self.guard.take(), self.before.take()) {
            let _ = guard.insert(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const LONG: Duration = Duration::from_mins(1);

    fn cache(stale_on_error: Duration) -> TtlCache<&'static str, Result<u32, &'static str>> {
        TtlCache::new(16, stale_on_error, CacheCounters::default())
    }

    fn answer(value: u32, ttl: Duration) -> Fetched<Result<u32, &'static str>> {
        Fetched::Answer {
            value: Ok(value),
            ttl,
            usable_for: Duration::MAX,
        }
    }

    fn unreachable() -> Fetched<Result<u32, &'static str>> {
        Fetched::Unreachable {
            error: Err("unreachable"),
        }
    }

    fn hit(
        lookup: Lookup<&'static str, Result<u32, &'static str>>,
    ) -> Option<Result<u32, &'static str>> {
        match lookup {
            Lookup::Hit(value) => Some(value),
            Lookup::Due(value, _ticket) => Some(value),
            Lookup::Miss => None,
        }
    }

    #[tokio::test]
    async fn concurrent_misses_share_one_fetch() {
        let (cache, fetches) = (cache(Duration::ZERO), Cell::new(0));
        let fetch = || async {
            fetches.set(fetches.get() + 1);
            tokio::task::yield_now().await;
            answer(7, LONG)
        };
        let values = tokio::join!(
            cache.get_or_fetch(&"k", fetch()),
            cache.get_or_fetch(&"k", fetch()),
            cache.get_or_fetch(&"k", fetch()),
        );
        assert_eq!((values, fetches.get()), ((Ok(7), Ok(7), Ok(7)), 1));
        assert_eq!(hit(cache.get(&"k", || false)), Some(Ok(7)));
        assert_eq!(
            (cache.counters.hits.get(), cache.counters.misses.get()),
            (3, 1)
        );
    }

    #[tokio::test]
    async fn an_expired_answer_is_fetched_again() {
        let cache = cache(LONG);
        cache
            .get_or_fetch(&"k", async { answer(1, Duration::ZERO) })
            .await
            .unwrap();
        assert_eq!(hit(cache.get(&"k", || false)), None);
        assert_eq!(
            cache.get_or_fetch(&"k", async { answer(2, LONG) }).await,
            Ok(2)
        );
    }

    #[tokio::test]
    async fn a_caller_that_is_dropped_leaves_the_fetch_to_the_next_and_the_old_answer_in_place() {
        let cache = cache(LONG);
        let drop_half_way = async || {
            tokio::select! {
                biased;
                _ = cache.get_or_fetch(&"k", std::future::pending()) => unreachable!("pending never ends"),
                () = tokio::task::yield_now() => {}
            }
        };
        drop_half_way().await;
        assert_eq!(
            cache
                .get_or_fetch(&"k", async { answer(3, Duration::ZERO) })
                .await,
            Ok(3)
        );
        drop_half_way().await;
        assert_eq!(
            cache.get_or_fetch(&"k", async { unreachable() }).await,
            Ok(3),
            "it serves as a stale answer"
        );
        let (left, next) = tokio::join!(
            async {
                tokio::select! {
                    biased;
                    _ = cache.get_or_fetch(&"other", std::future::pending()) => unreachable!("pending never ends"),
                    () = tokio::task::yield_now() => {}
                }
            },
            cache.get_or_fetch(&"other", async { answer(4, LONG) }),
        );
        assert_eq!((left, next), ((), Ok(4)));
    }

    #[tokio::test]
    async fn an_answer_serves_past_its_expiry_only_while_the_source_is_unreachable() {
        for (stale_on_error, served) in [(LONG, Ok(1)), (Duration::ZERO, Err("unreachable"))] {
            let cache = cache(stale_on_error);
            cache
                .get_or_fetch(&"k", async { answer(1, Duration::ZERO) })
                .await
                .unwrap();
            assert_eq!(
                hit(cache.get(&"k", || true)),
                served.ok().map(Ok),
                "{stale_on_error:?}"
            );
            assert_eq!(
                cache.get_or_fetch(&"k", async { unreachable() }).await,
                served
            );
        }
        let cache = cache(LONG);
        cache
            .get_or_fetch(&"k", async { answer(1, Duration::ZERO) })
            .await
            .unwrap();
        let failed = cache.get_or_fetch(&"k", async {
            Fetched::Failed {
                error: Err("refused"),
            }
        });
        assert_eq!(
            failed.await,
            Err("refused"),
            "a source that refuses is not one that cannot be reached"
        );
    }

    #[tokio::test]
    async fn a_denial_is_neither_refreshed_nor_served_past_its_expiry() {
        let cache = cache(LONG);
        cache
            .get_or_fetch(&"k", async {
                Fetched::Denial {
                    value: Err("denied"),
                    ttl: LONG,
                }
            })
            .await
            .unwrap_err();
        assert!(matches!(
            cache.get(&"k", || true),
            Lookup::Hit(Err("denied"))
        ));
        cache
            .get_or_fetch(&"l", async {
                Fetched::Denial {
                    value: Err("denied"),
                    ttl: Duration::ZERO,
                }
            })
            .await
            .unwrap_err();
        assert_eq!(hit(cache.get(&"l", || true)), None);
    }

    #[tokio::test]
    async fn a_question_that_was_not_asked_changes_nothing() {
        let cache = cache(LONG);
        let not_asked = || async {
            Fetched::NotAsked {
                error: Err("overloaded"),
            }
        };
        assert_eq!(
            cache.get_or_fetch(&"k", not_asked()).await,
            Err("overloaded")
        );
        assert!(cache.is_empty());
        cache
            .get_or_fetch(&"k", async { answer(1, Duration::ZERO) })
            .await
            .unwrap();
        assert_eq!(
            cache.get_or_fetch(&"k", not_asked()).await,
            Err("overloaded")
        );
        assert_eq!(
            hit(cache.get(&"k", || true)),
            Some(Ok(1)),
            "the old answer is still there"
        );
    }

    #[tokio::test]
    async fn an_answer_never_serves_past_the_time_for_which_it_is_usable() {
        let cache = cache(LONG);
        let fetch = async {
            Fetched::Answer {
                value: Ok(1),
                ttl: LONG,
                usable_for: Duration::ZERO,
            }
        };
        assert_eq!(cache.get_or_fetch(&"k", fetch).await, Ok(1));
        assert_eq!(hit(cache.get(&"k", || true)), None);
        assert_eq!(
            cache.get_or_fetch(&"k", async { unreachable() }).await,
            Err("unreachable")
        );
    }

    #[tokio::test]
    async fn one_hit_refreshes_an_entry_that_is_due() {
        let cache = cache(LONG);
        cache
            .get_or_fetch(&"k", async { answer(1, Duration::ZERO) })
            .await
            .unwrap();
        let Lookup::Due(Ok(1), ticket) = cache.get(&"k", || true) else {
            panic!("the entry is due")
        };
        assert!(
            matches!(cache.get(&"k", || true), Lookup::Hit(Ok(1))),
            "one refresh at a time"
        );
        cache.refresh(ticket, async { answer(2, LONG) }).await;
        assert!(matches!(cache.get(&"k", || false), Lookup::Hit(Ok(2))));
    }

    #[tokio::test]
    async fn a_refresh_without_an_answer_keeps_the_old_one_and_one_with_a_denial_replaces_it() {
        let cache = cache(LONG);
        cache
            .get_or_fetch(&"k", async { answer(1, Duration::ZERO) })
            .await
            .unwrap();
        let due = |cache: &TtlCache<_, _>| match cache.get(&"k", || true) {
            Lookup::Due(_, ticket) => ticket,
            other => panic!("the entry is due: {other:?}"),
        };
        cache.refresh(due(&cache), async { unreachable() }).await;
        assert!(
            matches!(cache.get(&"k", || true), Lookup::Hit(Ok(1))),
            "the next refresh pauses"
        );
        cache.entries.insert(
            "k",
            Entry {
                value: Ok(1),
                lifetime: lifetime_due(),
            },
        );
        let denial = async {
            Fetched::Denial {
                value: Err("denied"),
                ttl: LONG,
            }
        };
        cache.refresh(due(&cache), denial).await;
        assert_eq!(hit(cache.get(&"k", || true)), Some(Err("denied")));
    }

    #[tokio::test]
    async fn an_expired_entry_serves_while_its_refresh_runs_unless_stale_answers_are_off() {
        for (stale_on_error, served) in [(LONG, Some(Ok(1))), (Duration::ZERO, None)] {
            let cache = cache(stale_on_error);
            cache
                .get_or_fetch(&"k", async { answer(1, Duration::ZERO) })
                .await
                .unwrap();
            cache.refreshing.insert("k", ());
            assert_eq!(hit(cache.get(&"k", || false)), served);
            cache.refreshing.remove("k");
            assert_eq!(hit(cache.get(&"k", || false)), None);
        }
    }

    #[tokio::test]
    async fn a_slow_refresh_does_not_overwrite_a_newer_denial() {
        let cache = cache(LONG);
        cache
            .get_or_fetch(&"k", async { answer(1, Duration::ZERO) })
            .await
            .unwrap();
        let Lookup::Due(_, ticket) = cache.get(&"k", || true) else {
            panic!("the entry is due")
        };
        cache
            .get_or_fetch(&"k", async {
                Fetched::Denial {
                    value: Err("denied"),
                    ttl: LONG,
                }
            })
            .await
            .unwrap_err();
        cache.refresh(ticket, async { answer(1, LONG) }).await;
        assert_eq!(hit(cache.get(&"k", || true)), Some(Err("denied")));
    }

    #[tokio::test]
    async fn a_refresh_of_an_entry_that_is_gone_leaves_nothing() {
        let cache = cache(LONG);
        cache
            .get_or_fetch(&"k", async { answer(1, Duration::ZERO) })
            .await
            .unwrap();
        let Lookup::Due(_, ticket) = cache.get(&"k", || true) else {
            panic!("the entry is due")
        };
        cache.entries.remove(&"k");
        cache.refresh(ticket, async { answer(2, LONG) }).await;
        assert!(cache.is_empty() && cache.refreshing.is_empty());
    }

    fn lifetime_due() -> Lifetime {
        let now = Instant::now();
        Lifetime {
            refresh_at: now,
            expires: now + LONG,
            stale_until: now + LONG,
        }
    }

    #[tokio::test]
    async fn what_can_serve_no_more_is_purged() {
        let cache = cache(Duration::ZERO);
        cache
            .get_or_fetch(&"gone", async { answer(1, Duration::ZERO) })
            .await
            .unwrap();
        cache
            .get_or_fetch(&"kept", async { answer(2, LONG) })
            .await
            .unwrap();
        cache.purge();
        assert_eq!(cache.len(), 1);
    }
}
