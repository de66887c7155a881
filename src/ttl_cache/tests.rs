use super::*;
use std::cell::Cell;

const LONG: Duration = Duration::from_mins(1);

fn cache(stale_on_error: Duration) -> TtlCache<&'static str, Result<u32, &'static str>> {
    TtlCache::new(16, stale_on_error, CacheCounters::default())
}

fn fetched(value: u32, ttl: Duration) -> Fetched<Result<u32, &'static str>> {
    Fetched::Value {
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
        fetched(7, LONG)
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
async fn fetches_expired_value_again() {
    let cache = cache(LONG);
    cache
        .get_or_fetch(&"k", async { fetched(1, Duration::ZERO) })
        .await
        .unwrap();
    assert_eq!(hit(cache.get(&"k", || false)), None);
    assert_eq!(
        cache.get_or_fetch(&"k", async { fetched(2, LONG) }).await,
        Ok(2)
    );
}

#[tokio::test]
async fn dropped_fetch_restores_old_value_and_wakes_next_caller() {
    let cache = cache(LONG);
    let cancel_fetch = async || {
        tokio::select! {
            biased;
            _ = cache.get_or_fetch(&"k", std::future::pending()) => unreachable!("pending never ends"),
            () = tokio::task::yield_now() => {}
        }
    };
    cancel_fetch().await;
    assert_eq!(
        cache
            .get_or_fetch(&"k", async { fetched(3, Duration::ZERO) })
            .await,
        Ok(3)
    );
    cancel_fetch().await;
    assert_eq!(
        cache.get_or_fetch(&"k", async { unreachable() }).await,
        Ok(3),
        "the restored value is used as stale"
    );
    let (cancelled, next) = tokio::join!(
        async {
            tokio::select! {
                biased;
                _ = cache.get_or_fetch(&"other", std::future::pending()) => unreachable!("pending never ends"),
                () = tokio::task::yield_now() => {}
            }
        },
        cache.get_or_fetch(&"other", async { fetched(4, LONG) }),
    );
    assert_eq!((cancelled, next), ((), Ok(4)));
}

#[tokio::test]
async fn uses_expired_value_only_while_source_is_unreachable() {
    for (stale_on_error, expected) in [(LONG, Ok(1)), (Duration::ZERO, Err("unreachable"))] {
        let cache = cache(stale_on_error);
        cache
            .get_or_fetch(&"k", async { fetched(1, Duration::ZERO) })
            .await
            .unwrap();
        assert_eq!(
            hit(cache.get(&"k", || true)),
            expected.ok().map(Ok),
            "{stale_on_error:?}"
        );
        assert_eq!(
            cache.get_or_fetch(&"k", async { unreachable() }).await,
            expected
        );
    }
    let cache = cache(LONG);
    cache
        .get_or_fetch(&"k", async { fetched(1, Duration::ZERO) })
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
        "a failure of the source is returned, not the stale value"
    );
}

#[tokio::test]
async fn neither_refreshes_denial_nor_uses_it_past_its_expiry() {
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
async fn keeps_old_value_if_request_was_not_sent() {
    let cache = cache(LONG);
    let not_sent = || async {
        Fetched::NotSent {
            error: Err("overloaded"),
        }
    };
    assert_eq!(
        cache.get_or_fetch(&"k", not_sent()).await,
        Err("overloaded")
    );
    assert!(cache.is_empty());
    cache
        .get_or_fetch(&"k", async { fetched(1, Duration::ZERO) })
        .await
        .unwrap();
    assert_eq!(
        cache.get_or_fetch(&"k", not_sent()).await,
        Err("overloaded")
    );
    assert_eq!(
        hit(cache.get(&"k", || true)),
        Some(Ok(1)),
        "the old value is restored"
    );
}

#[tokio::test]
async fn never_uses_value_past_its_usable_time() {
    let cache = cache(LONG);
    let fetch = async {
        Fetched::Value {
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
async fn gives_ticket_for_due_entry_to_one_hit() {
    let cache = cache(LONG);
    cache
        .get_or_fetch(&"k", async { fetched(1, Duration::ZERO) })
        .await
        .unwrap();
    let Lookup::Due(Ok(1), ticket) = cache.get(&"k", || true) else {
        panic!("the entry is due")
    };
    assert!(
        matches!(cache.get(&"k", || true), Lookup::Hit(Ok(1))),
        "one refresh at a time"
    );
    cache.refresh(ticket, async { fetched(2, LONG) }).await;
    assert!(matches!(cache.get(&"k", || false), Lookup::Hit(Ok(2))));
}

#[tokio::test]
async fn refresh_keeps_value_on_error_and_replaces_it_by_denial() {
    let cache = cache(LONG);
    cache
        .get_or_fetch(&"k", async { fetched(1, Duration::ZERO) })
        .await
        .unwrap();
    let due = |cache: &TtlCache<_, _>| match cache.get(&"k", || true) {
        Lookup::Due(_, ticket) => ticket,
        other => panic!("the entry is due: {other:?}"),
    };
    cache.refresh(due(&cache), async { unreachable() }).await;
    assert!(
        matches!(cache.get(&"k", || true), Lookup::Hit(Ok(1))),
        "the next refresh is delayed"
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
async fn uses_expired_value_during_refresh_unless_stale_values_are_disabled() {
    for (stale_on_error, expected) in [(LONG, Some(Ok(1))), (Duration::ZERO, None)] {
        let cache = cache(stale_on_error);
        cache
            .get_or_fetch(&"k", async { fetched(1, Duration::ZERO) })
            .await
            .unwrap();
        cache.refreshing.insert("k", ());
        assert_eq!(hit(cache.get(&"k", || false)), expected);
        cache.refreshing.remove("k");
        assert_eq!(hit(cache.get(&"k", || false)), None);
    }
}

#[tokio::test]
async fn slow_refresh_does_not_overwrite_newer_denial() {
    let cache = cache(LONG);
    cache
        .get_or_fetch(&"k", async { fetched(1, Duration::ZERO) })
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
    cache.refresh(ticket, async { fetched(1, LONG) }).await;
    assert_eq!(hit(cache.get(&"k", || true)), Some(Err("denied")));
}

#[tokio::test]
async fn refresh_does_not_restore_removed_entry() {
    let cache = cache(LONG);
    cache
        .get_or_fetch(&"k", async { fetched(1, Duration::ZERO) })
        .await
        .unwrap();
    let Lookup::Due(_, ticket) = cache.get(&"k", || true) else {
        panic!("the entry is due")
    };
    cache.entries.remove(&"k");
    cache.refresh(ticket, async { fetched(2, LONG) }).await;
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
async fn purges_entries_that_can_no_longer_be_used() {
    let cache = cache(Duration::ZERO);
    cache
        .get_or_fetch(&"expired", async { fetched(1, Duration::ZERO) })
        .await
        .unwrap();
    cache
        .get_or_fetch(&"valid", async { fetched(2, LONG) })
        .await
        .unwrap();
    cache.purge();
    assert_eq!(cache.len(), 1);
}
