//! Every metric family, with closed labels. The hot path touches plain atomics; names, labels and text are made when
//! Prometheus asks.

mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use table::{MethodLabel, RequestTable, TargetKind};

/// Handles to all families. One per process, shared by the workers.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests and their durations, and bytes of bodies.
    pub requests: Arc<RequestTable>,
    pub connections: OpenGauge,
    pub upgrades: OpenGauge,
    pub dial_failures: DialFailures,
    pub tokens: CacheCounters,
    pub reviews: CacheCounters,
    pub access_lines_lost: Counter,
    pub pages: PageMetrics,
    watch_up: Family<ResourceLabel, Gauge>,
    watch_events: Family<ResourceLabel, Counter>,
    watch_malformed: Family<ResourceLabel, Counter>,
    watch_last_event: Family<ResourceLabel, Gauge<f64, AtomicU64>>,
    endpoint_lag: Gauge<f64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: &'static str,
}

/// A number of things that are open now.
#[derive(Clone, Debug, Default)]
pub struct OpenGauge(Gauge<i64, AtomicI64>);

impl OpenGauge {
    /// Counts one more until the guard is dropped.
    pub fn enter(&self) -> OpenGuard {
        self.0.inc();
        OpenGuard(self.0.clone())
    }
}

/// One open thing; dropping it closes the count.
#[derive(Debug)]
pub struct OpenGuard(Gauge<i64, AtomicI64>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Hits and misses of one cache.
#[derive(Clone, Debug)]
pub struct CacheCounters {
    pub hits: Counter,
    pub misses: Counter,
}

/// Dials that failed, by what failed.
#[derive(Clone, Debug)]
pub struct DialFailures {
    pub connect: Counter,
    pub timeout: Counter,
    pub tls: Counter,
}

/// Memory of rewriting, and pages that passed unmodified.
#[derive(Clone, Debug)]
pub struct PageMetrics {
    /// Bytes that pages in flight have reserved of `rewriting.maxMemory`.
    pub reserved: Gauge<i64, AtomicI64>,
    pub passed: PagesPassed,
}

/// Pages that passed unmodified, whole or from some point on, by the limit that they reached.
#[derive(Clone, Debug)]
pub struct PagesPassed {
    pub memory: Counter,
    pub tag: Counter,
    pub attribute: Counter,
    pub attributes: Counter,
    pub name: Counter,
    pub depth: Counter,
    pub candidates: Counter,
    pub growth: Counter,
}

impl PageMetrics {
    fn new(registry: &mut Registry) -> Self {
        let reserved = Gauge::default();
        registry.register_with_unit(
            "rewriting_reserved",
            "Memory that rewriting of HTML pages has reserved",
            Unit::Bytes,
            reserved.clone(),
        );
        let pages = Family::<[(&str, &str); 1], Counter>::default();
        registry.register(
            "rewriting_pages_passed",
            "HTML pages that passed unmodified, whole or in part, by the limit that they reached",
            pages.clone(),
        );
        let limit = |name| pages.get_or_create_owned(&[("limit", name)]);
        let passed = PagesPassed {
            memory: limit("memory"),
            tag: limit("tag"),
            attribute: limit("attribute"),
            attributes: limit("attributes"),
            name: limit("name"),
            depth: limit("depth"),
            candidates: limit("candidates"),
            growth: limit("growth"),
        };
        Self { reserved, passed }
    }
}

impl Metrics {
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("kube_bastion");
        registry.register(
            "build",
            "Version of the running bastion",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let requests = Arc::new(RequestTable::default());
        registry.register_collector(Box::new(table::Exposed(Arc::clone(&requests))));

        let connections = OpenGauge::default();
        registry.register("connections_open", "Client connections that are open", connections.0.clone());
        let upgrades = OpenGauge::default();
        registry.register("upgrades_open", "Upgraded connections (WebSocket, SPDY) that are open", upgrades.0.clone());

        let dials = Family::<[(&str, &str); 1], Counter>::default();
        registry.register("dial_failures", "Dials to endpoints that failed, by what failed", dials.clone());
        let dial = |what| dials.get_or_create_owned(&[("reason", what)]);
        let dial_failures = DialFailures { connect: dial("connect"), timeout: dial("timeout"), tls: dial("tls") };

        let caches = Family::<[(&str, &str); 2], Counter>::default();
        registry.register("cache_requests", "Look-ups in the caches of reviews, by outcome", caches.clone());
        let cache = |name| CacheCounters {
            hits: caches.get_or_create_owned(&[("cache", name), ("outcome", "hit")]),
            misses: caches.get_or_create_owned(&[("cache", name), ("outcome", "miss")]),
        };
        let (tokens, reviews) = (cache("token"), cache("review"));

        let access_lines_lost = Counter::default();
        registry.register(
            "access_log_lines_lost",
            "Access-log lines dropped because standard output did not take them",
            access_lines_lost.clone(),
        );
        let pages = PageMetrics::new(registry);
        let watch_up = Family::default();
        registry.register("watch_up", "1 while the watch of a resource is connected, else 0", watch_up.clone());
        let watch_events = Family::default();
        registry.register("watch_events", "Objects that the watch of a resource told of", watch_events.clone());
        let watch_malformed = Family::default();
        registry.register("watch_malformed_objects", "Objects skipped as malformed", watch_malformed.clone());
        let watch_last_event = Family::default();
        registry.register_with_unit(
            "watch_last_event_timestamp",
            "When the watch of a resource last told something, in Unix time",
            Unit::Seconds,
            watch_last_event.clone(),
        );
        let endpoint_lag = Gauge::default();
        registry.register_with_unit(
            "watch_endpoint_lag",
            "Time from the change of a pod to its endpoint being in use here, for the last change",
            Unit::Seconds,
            endpoint_lag.clone(),
        );

        Self {
            requests,
            connections,
            upgrades,
            dial_failures,
            tokens,
            reviews,
            access_lines_lost,
            pages,
            watch_up,
            watch_events,
            watch_malformed,
            watch_last_event,
            endpoint_lag,
        }
    }

    pub fn watch_up(&self, resource: &'static str, up: bool) {
        self.watch_up.get_or_create(&ResourceLabel { resource }).set(up.into());
    }

    pub fn watch_event(&self, resource: &'static str) {
        let label = ResourceLabel { resource };
        self.watch_events.get_or_create(&label).inc();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.watch_last_event.get_or_create(&label).set(now.as_secs_f64());
    }

    pub fn watch_malformed(&self, resource: &'static str) {
        self.watch_malformed.get_or_create(&ResourceLabel { resource }).inc();
    }

    /// `seconds` from the trigger that the EndpointSlice names to now.
    pub fn endpoint_lag(&self, seconds: f64) {
        self.endpoint_lag.set(seconds);
    }
}

/// A sum that several threads add to.
#[derive(Debug, Default)]
struct Sum(AtomicU64);

impl Sum {
    fn add(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
