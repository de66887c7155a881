//! Reviews by the Kubernetes API, and the caches of their results.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Lookups in one cache, by outcome.
#[derive(Clone, Debug, Default)]
pub struct CacheCounters {
    pub hits: Counter,
    pub misses: Counter,
    /// Lookups that got an expired result because the API could not be reached.
    pub stale: Counter,
}

impl CacheCounters {
    /// Registers the counters of TokenReviews and of SubjectAccessReviews.
    pub(super) fn register(registry: &mut Registry) -> (Self, Self) {
        let lookups = Family::<[(&str, &str); 2], Counter>::default();
        registry.register(
            "cache_requests",
            "Lookups in the caches of review results, by cache and outcome",
            lookups.clone(),
        );
        let counter =
            |cache, outcome| lookups.get_or_create_owned(&[("cache", cache), ("outcome", outcome)]);
        let counters = |cache| Self {
            hits: counter(cache, "hit"),
            misses: counter(cache, "miss"),
            stale: counter(cache, "stale"),
        };
        (counters("token"), counters("review"))
    }
}

/// Admission of reviews of one kind.
#[derive(Clone, Debug, Default)]
pub struct ReviewMetrics {
    pub in_flight: Gauge,
    pub queued: Gauge,
    /// Rejected because the share of the client address in the queue was full.
    pub rejected_client_share: Counter,
    /// Rejected because the queue was full.
    pub rejected_queue_full: Counter,
    /// Rejected because the review was queued for longer than `reviews.queueTimeout`.
    pub rejected_timeout: Counter,
}

impl ReviewMetrics {
    /// Registers the metrics of TokenReviews and of SubjectAccessReviews.
    pub(super) fn register(registry: &mut Registry) -> (Self, Self) {
        let in_flight = Family::<[(&str, &str); 1], Gauge>::default();
        registry.register(
            "reviews_in_flight",
            "Reviews sent to the Kubernetes API and not completed, by kind",
            in_flight.clone(),
        );
        let queued = Family::<[(&str, &str); 1], Gauge>::default();
        registry.register("reviews_queued", "Queued reviews, by kind", queued.clone());
        let rejected = Family::<[(&str, &str); 2], Counter>::default();
        registry.register(
            "reviews_rejected",
            "Reviews rejected because of a limit, by kind and reason",
            rejected.clone(),
        );
        let metrics = |kind| {
            let rejected =
                |reason| rejected.get_or_create_owned(&[("kind", kind), ("reason", reason)]);
            Self {
                in_flight: in_flight.get_or_create_owned(&[("kind", kind)]),
                queued: queued.get_or_create_owned(&[("kind", kind)]),
                rejected_client_share: rejected("client_share"),
                rejected_queue_full: rejected("queue_full"),
                rejected_timeout: rejected("timeout"),
            }
        };
        (metrics("token"), metrics("access"))
    }
}

/// Registers the reachability of the Kubernetes API, which starts as reachable.
pub(super) fn register_api_reachable(registry: &mut Registry) -> Gauge {
    let reachable = Gauge::default();
    registry.register(
        "review_api_reachable",
        "1 while the Kubernetes API completes reviews, 0 while cached results replace it",
        reachable.clone(),
    );
    reachable.set(1);
    reachable
}
