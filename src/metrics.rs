//! Every metric family, with closed labels. The hot path touches plain atomics; names, labels and
//! text are made when Prometheus asks.

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
    pub connection_limits: ConnectionLimits,
    pub upgrades: OpenGauge,
    pub dial_failures: DialFailures,
    pub retries: RetryCounters,
    pub ejections: EjectionMetrics,
    pub tokens: CacheCounters,
    pub reviews: CacheCounters,
    pub token_reviews: ReviewMetrics,
    pub access_reviews: ReviewMetrics,
    pub api_reachable: Gauge,
    pub tunnels_closed: TunnelsClosed,
    pub access_lines_lost: LostLines,
    pub pages: PageMetrics,
    watch_up: Family<ResourceLabel, Gauge>,
    watch_events: Family<ResourceLabel, Counter>,
    watch_malformed: Family<ResourceLabel, Counter>,
    watch_last_event: Family<ResourceLabel, Gauge<f64, AtomicU64>>,
    endpoint_lag: Gauge<f64, AtomicU64>,
    task_restarts: Family<TaskLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabel {
    task: &'static str,
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

/// Connections of clients that met a limit.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Closed, because their client address had its share.
    pub over_share: Counter,
    /// Waited, because there were as many as may be open.
    pub delayed: Counter,
}

/// Lines of the access log that were dropped.
#[derive(Clone, Debug)]
pub struct LostLines {
    /// Of callers who are known.
    pub authenticated: Counter,
    /// Of requests that were rejected before it was known who calls.
    pub unauthenticated: Counter,
}

/// Look-ups in one cache, by outcome.
#[derive(Clone, Debug, Default)]
pub struct CacheCounters {
    pub hits: Counter,
    pub misses: Counter,
    /// Hits and fetches that served an expired answer because the API could not be reached.
    pub stale: Counter,
}

/// Reviews of one kind.
#[derive(Clone, Debug, Default)]
pub struct ReviewMetrics {
    pub in_flight: Gauge,
    pub queued: Gauge,
    /// Rejected because the share of the client's address in the queue was full.
    pub rejected_client_share: Counter,
    /// Rejected because the queue was full.
    pub rejected_queue_full: Counter,
    /// Rejected because no place became free in time.
    pub rejected_timeout: Counter,
}

/// Tunnels that the bastion closed, by reason.
#[derive(Clone, Debug)]
pub struct TunnelsClosed {
    /// The caller's credentials or right are gone.
    pub revoked: Counter,
    /// It could not be found out for too long whether the caller still has the right.
    pub unverified: Counter,
    /// The tunnel reached `serving.tunnelMaxAge`.
    pub max_age: Counter,
}

/// Dials that failed, by what failed.
#[derive(Clone, Debug)]
pub struct DialFailures {
    pub connect: Counter,
    pub timeout: Counter,
    pub tls: Counter,
}

/// Repeated requests, and requests that were not repeated because of a limit.
#[derive(Clone, Debug, Default)]
pub struct RetryCounters {
    /// A reused connection was closed; the request goes out on a new one to the same endpoint.
    pub stale: Counter,
    pub granted: Counter,
    pub attempts_exhausted: Counter,
    pub deadline_exceeded: Counter,
    pub budget_exhausted: Counter,
}

/// Endpoints taken out of the rotation, by reason.
#[derive(Clone, Debug, Default)]
pub struct EjectionMetrics {
    pub connect: EjectionMetric,
    pub stalled: EjectionMetric,
}

/// Endpoints taken out of the rotation for one reason.
#[derive(Clone, Debug, Default)]
pub struct EjectionMetric {
    /// Ejections so far.
    pub total: Counter,
    /// Endpoints that are ejected now, or were and have not been tried successfully since.
    pub now: Gauge,
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
        registry.register(
            "connections_open",
            "Client connections that are open",
            connections.0.clone(),
        );
        let rejected = Family::<[(&str, &str); 1], Counter>::default();
        registry.register(
            "connections_rejected",
            "Client connections closed by a limit",
            rejected.clone(),
        );
        let delayed = Counter::default();
        registry.register(
            "connections_delayed",
            "Client connections that waited because serving.maxConnections was reached",
            delayed.clone(),
        );
        let over_share = rejected.get_or_create_owned(&[("reason", "client_share")]);
        let connection_limits = ConnectionLimits {
            over_share,
            delayed,
        };
        let upgrades = OpenGauge::default();
        registry.register(
            "upgrades_open",
            "Upgraded connections (WebSocket, SPDY) that are open",
            upgrades.0.clone(),
        );

        let dials = Family::<[(&str, &str); 1], Counter>::default();
        registry.register(
            "dial_failures",
            "Dials to endpoints that failed, by what failed",
            dials.clone(),
        );
        let dial = |what| dials.get_or_create_owned(&[("reason", what)]);
        let dial_failures = DialFailures {
            connect: dial("connect"),
            timeout: dial("timeout"),
            tls: dial("tls"),
        };

        let (retries, ejections) = (register_retries(registry), register_ejections(registry));

        let caches = Family::<[(&str, &str); 2], Counter>::default();
        registry.register(
            "cache_requests",
            "Look-ups in the caches of reviews, by outcome",
            caches.clone(),
        );
        let cache = |name| CacheCounters {
            hits: caches.get_or_create_owned(&[("cache", name), ("outcome", "hit")]),
            misses: caches.get_or_create_owned(&[("cache", name), ("outcome", "miss")]),
            stale: caches.get_or_create_owned(&[("cache", name), ("outcome", "stale")]),
        };
        let (tokens, reviews) = (cache("token"), cache("review"));
        let (token_reviews, access_reviews) = review_metrics(registry);
        let api_reachable = Gauge::default();
        registry.register(
            "review_api_reachable",
            "1 while the Kubernetes API answers reviews, 0 while cached results stand in",
            api_reachable.clone(),
        );
        api_reachable.set(1);
        let tunnels_closed = Family::<[(&str, &str); 1], Counter>::default();
        registry.register(
            "tunnels_closed",
            "Open tunnels closed by the bastion, by reason",
            tunnels_closed.clone(),
        );
        let closed = |reason| tunnels_closed.get_or_create_owned(&[("reason", reason)]);
        let tunnels_closed = TunnelsClosed {
            revoked: closed("permit_revoked"),
            unverified: closed("unverified"),
            max_age: closed("max_age"),
        };

        let lost = Family::<[(&str, &str); 1], Counter>::default();
        registry.register(
            "access_log_lines_lost",
            "Access-log lines dropped because standard output did not take them",
            lost.clone(),
        );
        let lost = |authenticated| lost.get_or_create_owned(&[("authenticated", authenticated)]);
        let access_lines_lost = LostLines {
            authenticated: lost("true"),
            unauthenticated: lost("false"),
        };
        let pages = PageMetrics::new(registry);
        let watch_up = Family::default();
        registry.register(
            "watch_up",
            "1 while the watch of a resource is connected, else 0",
            watch_up.clone(),
        );
        let watch_events = Family::default();
        registry.register(
            "watch_events",
            "Objects that the watch of a resource told of",
            watch_events.clone(),
        );
        let watch_malformed = Family::default();
        registry.register(
            "watch_malformed_objects",
            "Objects skipped as malformed",
            watch_malformed.clone(),
        );
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
        let task_restarts = Family::default();
        registry.register(
            "task_restarts",
            "Background tasks that ended unexpectedly and were restarted",
            task_restarts.clone(),
        );

        Self {
            requests,
            connections,
            connection_limits,
            upgrades,
            dial_failures,
            retries,
            ejections,
            tokens,
            reviews,
            token_reviews,
            access_reviews,
            api_reachable,
            tunnels_closed,
            access_lines_lost,
            pages,
            watch_up,
            watch_events,
            watch_malformed,
            watch_last_event,
            endpoint_lag,
            task_restarts,
        }
    }

    pub fn watch_up(&self, resource: &'static str, up: bool) {
        self.watch_up
            .get_or_create(&ResourceLabel { resource })
            .set(up.into());
    }

    pub fn watch_event(&self, resource: &'static str) {
        let label = ResourceLabel { resource };
        self.watch_events.get_or_create(&label).inc();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        self.watch_last_event
            .get_or_create(&label)
            .set(now.as_secs_f64());
    }

    pub fn watch_malformed(&self, resource: &'static str) {
        self.watch_malformed
            .get_or_create(&ResourceLabel { resource })
            .inc();
    }

    /// Shows a supervised task, with no restart yet.
    pub fn supervised_task(&self, task: &'static str) {
        drop(self.task_restarts.get_or_create(&TaskLabel { task }));
    }

    pub fn task_restarted(&self, task: &'static str) {
        self.task_restarts.get_or_create(&TaskLabel { task }).inc();
    }

    /// `seconds` from the trigger that the EndpointSlice names to now.
    pub fn endpoint_lag(&self, seconds: f64) {
        self.endpoint_lag.set(seconds);
    }
}

/// The metrics of TokenReviews and of SubjectAccessReviews.
fn review_metrics(registry: &mut Registry) -> (ReviewMetrics, ReviewMetrics) {
    let in_flight = Family::<[(&str, &str); 1], Gauge>::default();
    registry.register(
        "reviews_in_flight",
        "Reviews that the API has not answered yet, by kind",
        in_flight.clone(),
    );
    let queued = Family::<[(&str, &str); 1], Gauge>::default();
    registry.register(
        "reviews_queued",
        "Reviews that wait for one in flight to end, by kind",
        queued.clone(),
    );
    let rejected = Family::<[(&str, &str); 2], Counter>::default();
    registry.register(
        "reviews_rejected",
        "Reviews that were not sent, by kind and reason",
        rejected.clone(),
    );
    let of = |kind| {
        let rejected = |reason| rejected.get_or_create_owned(&[("kind", kind), ("reason", reason)]);
        ReviewMetrics {
            in_flight: in_flight.get_or_create_owned(&[("kind", kind)]),
            queued: queued.get_or_create_owned(&[("kind", kind)]),
            rejected_client_share: rejected("client_share"),
            rejected_queue_full: rejected("queue_full"),
            rejected_timeout: rejected("timeout"),
        }
    };
    (of("token"), of("access"))
}

fn register_retries(registry: &mut Registry) -> RetryCounters {
    let retries = Family::<[(&str, &str); 1], Counter>::default();
    registry.register(
        "retries",
        "Requests repeated after a failed attempt, and requests not repeated because of a limit, by outcome",
        retries.clone(),
    );
    let retry = |outcome| retries.get_or_create_owned(&[("outcome", outcome)]);
    RetryCounters {
        stale: retry("stale_connection"),
        granted: retry("granted"),
        attempts_exhausted: retry("attempts_exhausted"),
        deadline_exceeded: retry("deadline_exceeded"),
        budget_exhausted: retry("budget_exhausted"),
    }
}

fn register_ejections(registry: &mut Registry) -> EjectionMetrics {
    let total = Family::<[(&str, &str); 1], Counter>::default();
    registry.register(
        "ejections",
        "Ejections of endpoints from the rotation, by reason",
        total.clone(),
    );
    let now = Family::<[(&str, &str); 1], Gauge>::default();
    registry.register(
        "endpoints_ejected",
        "Endpoints that are ejected from the rotation, or were and have not been tried successfully since, by reason",
        now.clone(),
    );
    let metric = |reason| EjectionMetric {
        total: total.get_or_create_owned(&[("reason", reason)]),
        now: now.get_or_create_owned(&[("reason", reason)]),
    };
    EjectionMetrics {
        connect: metric("connect"),
        stalled: metric("stalled"),
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
