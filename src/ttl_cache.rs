//! Bounded cache with an expiry for each entry, one fetch per key for concurrent misses, refreshes
//! ahead of the expiry, and stale values while the source is unreachable.
//!
//! # Concurrency
//! `quick_cache` serializes fetches: the first caller that misses a key holds a placeholder, later
//! callers wait for it. A refresh holds a [`Ticket`] instead, because hits continue to use the
//! entry while it runs. A fetch and a refresh of one key can therefore overlap; the fetch wins (see
//! [`TtlCache::refresh`]).

mod entry;

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use quick_cache::sync::{Cache, DefaultLifecycle, EntryAction, EntryResult, PlaceholderGuard};
use quick_cache::{DefaultHashBuilder, UnitWeighter};

use self::entry::{Entry, FAILURE_TTL, Lifetime};
use crate::metrics::CacheCounters;

/// Pause between two refreshes of one entry after a refresh without a result.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// Caches values `V` by key `K`.
#[derive(Debug)]
pub struct TtlCache<K: Hash + Eq, V> {
    entries: Cache<K, Entry<V>>,
    /// Keys with a running refresh. Not part of the entries, so that a hit copies plain data and
    /// does not write to a shared reference count.
    refreshing: Arc<DashMap<K, ()>>,
    /// Time past its expiry for which a value is used while the source is unreachable. Zero
    /// disables it.
    stale_on_error: Duration,
    counters: CacheCounters,
}

/// Result of a fetch.
#[derive(Debug)]
pub enum Fetched<V> {
    /// Value that is cached for `ttl`, is refreshed before that ends, and may be used past it while
    /// the source is unreachable.
    Value {
        value: V,
        ttl: Duration,
        /// Maximum time for which the value may be used, also while the source is unreachable.
        usable_for: Duration,
    },
    /// Value that is cached for `ttl` and never used longer.
    Denial { value: V, ttl: Duration },
    /// The source was not reached. `error` is returned if there is no older value.
    Unreachable { error: V },
    /// The source was reached and returned no value. A retry would fail again, so an older value is
    /// not used instead.
    Failed { error: V },
    /// The request was not sent. The cache stays as it is.
    NotSent { error: V },
}

/// Result of a lookup.
#[derive(Debug)]
pub enum Lookup<K: Hash + Eq, V> {
    Hit(V),
    /// A hit that is due for a refresh: the caller runs [`TtlCache::refresh`] in the background.
    Due(V, Ticket<K>),
    Miss,
}

/// Permission to refresh an entry; at most one exists for each key.
#[derive(Debug)]
pub struct Ticket<K: Hash + Eq> {
    key: K,
    /// Expiry of the entry that is due. Serves as its version: an entry with another expiry was
    /// fetched after the ticket was issued.
    expires: Instant,
    refreshing: Arc<DashMap<K, ()>>,
}

impl<K: Hash + Eq> Drop for Ticket<K> {
    /// Runs also if the refresh is cancelled or panics, so that the key can be refreshed again.
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

    /// Returns the value of `key` without waiting. An expired value is used, within its limit, in
    /// two cases: while the source is `unreachable`, and while its refresh runs. A refresh has a
    /// deadline; after it there is a new value, or the source is known to be unreachable.
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
        // While a refresh runs, every hit of the key gets here. `contains_key` takes a read lock,
        // `insert` would take a write lock. The insert decides the race of two hits.
        let due = now >= lifetime.refresh_at && !self.refreshing.contains_key(key);
        if due && self.refreshing.insert(key.clone(), ()).is_none() {
            // If another refresh succeeded since the entry was read, this one is redundant but
            // harmless: its ticket has the old expiry, and `update` ignores it.
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

    /// Returns the value of `key`, fetched on a miss; concurrent callers share one fetch. If the
    /// caller that fetches is dropped, the next one in line fetches, and the older value stays
    /// available.
    pub async fn get_or_fetch(&self, key: &K, fetch: impl Future<Output = Fetched<V>>) -> V {
        // Before the wait for the fetch of another caller, so that its entry is accepted even if
        // its TTL is shorter than the wait of this one.
        let now = Instant::now();
        // An expired entry is replaced by a placeholder, not served as a stale value: `get` has
        // decided already that the source must be queried.
        let entry = self.entries.entry_async(key, |_, entry| {
            if entry.lifetime.expires > now {
                EntryAction::Retain(entry.value.clone())
            } else {
                EntryAction::ReplaceWithGuard
            }
        });
        let guard = match entry.await {
            // Another caller has fetched the value while this one waited.
            EntryResult::Retained(value) => {
                self.counters.hits.inc();
                return value;
            }
            EntryResult::Vacant(placeholder) => FetchGuard {
                placeholder: Some(placeholder),
                expired: None,
            },
            EntryResult::Replaced(placeholder, expired) => FetchGuard {
                placeholder: Some(placeholder),
                expired: Some(expired),
            },
            EntryResult::Removed(..) | EntryResult::Timeout => {
                unreachable!("nothing is removed above, and entry_async has no timeout")
            }
        };
        self.counters.misses.inc();
        match self.entry(fetch.await, guard.expired.as_ref()) {
            Ok(entry) => {
                let value = entry.value.clone();
                guard.complete(entry);
                value
            }
            // Dropping the guard restores the expired entry, if any, and wakes the next caller.
            Err(error) => error,
        }
    }

    /// Replaces the entry of the ticket by the fetched value. Without a value, the entry stays
    /// until its own end.
    ///
    /// A caller may have fetched the key while the refresh ran, because the entry expired. That
    /// entry stays: its fetch began later, and it may be a denial.
    pub async fn refresh(&self, ticket: Ticket<K>, fetch: impl Future<Output = Fetched<V>>) {
        match fetch.await {
            fetched @ (Fetched::Value { .. } | Fetched::Denial { .. }) => {
                if let Ok(fresh) = self.entry(fetched, None) {
                    self.update(&ticket, |entry| *entry = fresh);
                }
            }
            Fetched::Unreachable { .. } | Fetched::Failed { .. } | Fetched::NotSent { .. } => {
                self.postpone(&ticket);
            }
        }
    }

    /// Delays the next refresh of the ticket's entry, so that hits do not retry one after the
    /// other.
    pub fn postpone(&self, ticket: &Ticket<K>) {
        self.update(ticket, |entry| {
            entry.lifetime.refresh_at = Instant::now() + REFRESH_PAUSE;
        });
    }

    /// Changes the entry that the ticket was issued for, unless it was replaced or removed since.
    fn update(&self, ticket: &Ticket<K>, change: impl FnOnce(&mut Entry<V>)) {
        // The timeout of zero avoids waiting for a fetch of the same key: its result is newer. If
        // the key is vacant, a placeholder is returned and dropped here, which leaves it vacant.
        let _ = self
            .entries
            .entry(&ticket.key, Some(Duration::ZERO), |_, entry| {
                if entry.lifetime.expires == ticket.expires {
                    change(entry);
                }
                EntryAction::Retain(())
            });
    }

    /// Removes entries that can no longer be used. Called at an interval, so that memory follows
    /// use, not capacity.
    pub fn purge(&self) {
        let now = Instant::now();
        self.entries
            .retain(|_, entry| entry.lifetime.stale_until > now);
    }

    /// Number of entries, including expired ones.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the entry to store for the result of a fetch, or the error to return without
    /// storing it.
    fn entry(&self, fetched: Fetched<V>, expired: Option<&Entry<V>>) -> Result<Entry<V>, V> {
        let now = Instant::now();
        let (value, lifetime) = match fetched {
            Fetched::Value {
                value,
                ttl,
                usable_for,
            } => {
                let lifetime = Lifetime::refreshable(now, ttl, usable_for, self.stale_on_error);
                (value, lifetime)
            }
            Fetched::Denial { value, ttl } => (value, Lifetime::fixed(now, ttl)),
            Fetched::Unreachable { error } => {
                let stale = expired
                    .and_then(|entry| Some((&entry.value, entry.lifetime.extend_stale(now)?)));
                match stale {
                    Some((value, lifetime)) => {
                        self.counters.stale.inc();
                        (value.clone(), lifetime)
                    }
                    None => (error, Lifetime::fixed(now, FAILURE_TTL)),
                }
            }
            Fetched::Failed { error } => (error, Lifetime::fixed(now, FAILURE_TTL)),
            Fetched::NotSent { error } => return Err(error),
        };
        Ok(Entry { value, lifetime })
    }
}

type Placeholder<'c, K, V> = PlaceholderGuard<
    'c,
    K,
    Entry<V>,
    UnitWeighter,
    DefaultHashBuilder,
    DefaultLifecycle<K, Entry<V>>,
>;

/// Placeholder of a key that is being fetched.
struct FetchGuard<'c, K: Hash + Eq + Clone, V: Clone> {
    placeholder: Option<Placeholder<'c, K, V>>,
    /// Expired entry that the placeholder replaced.
    expired: Option<Entry<V>>,
}

impl<K: Hash + Eq + Clone, V: Clone> FetchGuard<'_, K, V> {
    fn complete(mut self, entry: Entry<V>) {
        if let Some(placeholder) = self.placeholder.take() {
            // A cache that is full of placeholders may reject the entry. The caller has its value
            // already; the next one fetches again.
            let _ = placeholder.insert(entry);
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Drop for FetchGuard<'_, K, V> {
    /// Restores the expired entry if the fetch was cancelled: it may be needed as a stale value.
    /// The next caller in line finds it expired and fetches.
    fn drop(&mut self) {
        if let (Some(placeholder), Some(expired)) = (self.placeholder.take(), self.expired.take()) {
            let _ = placeholder.insert(expired);
        }
    }
}

#[cfg(test)]
mod tests;
