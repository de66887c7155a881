//! Metrics. All labels have a closed set of values.
//!
//! The request path updates atomics only; names, labels and text are produced when Prometheus
//! scrapes.

mod certificates;
mod connections;
mod load_balancer;
mod pages;
mod reviews;
mod table;
mod tasks;
mod upstream;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use certificates::CertificateExpiry;
pub use connections::{ConnectionLimits, OpenGauge, OpenGuard, TunnelsClosed};
pub use load_balancer::{AcceptedConnections, DroppedDatagrams, LoadBalancerMetrics};
pub use pages::{PageMetrics, PagesPassed};
pub use reviews::{CacheCounters, ReviewMetrics};
pub use table::{MethodLabel, RequestTable, TargetKind};
pub use tasks::LostLines;
pub use upstream::{DialFailures, EjectionMetric, EjectionMetrics, RetryCounters};

use tasks::TaskRestarts;
use watch::WatchMetrics;

/// Counter family with one label.
type Counters = Family<[(&'static str, &'static str); 1], Counter>;

/// Handles to all metrics, shared by the workers. One per process.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests, their durations and the bytes of their bodies.
    pub requests: Arc<RequestTable>,
    pub connections: OpenGauge,
    pub connection_limits: ConnectionLimits,
    pub upgrades: OpenGauge,
    pub dial_failures: DialFailures,
    pub retries: RetryCounters,
    /// Header lines of responses that were dropped for their invalid name.
    pub dropped_lines: Counter,
    pub ejections: EjectionMetrics,
    /// Cache of TokenReview results.
    pub tokens: CacheCounters,
    /// Cache of SubjectAccessReview results.
    pub reviews: CacheCounters,
    pub token_reviews: ReviewMetrics,
    pub access_reviews: ReviewMetrics,
    pub api_reachable: Gauge,
    pub tunnels_closed: TunnelsClosed,
    pub access_lines_lost: LostLines,
    pub pages: PageMetrics,
    pub load_balancer: LoadBalancerMetrics,
    pub certificates: CertificateExpiry,
    watch: WatchMetrics,
    task_restarts: TaskRestarts,
}

impl Metrics {
    /// Registers all metrics with the prefix `kube_bastion`.
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("kube_bastion");
        registry.register(
            "build",
            "Version of kube-bastion",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let requests = Arc::new(RequestTable::default());
        registry.register_collector(Box::new(table::TableCollector(Arc::clone(&requests))));
        let (tokens, reviews) = CacheCounters::register(registry);
        let (token_reviews, access_reviews) = ReviewMetrics::register(registry);
        Self {
            requests,
            connections: OpenGauge::register(
                registry,
                "connections_open",
                "Open client connections",
            ),
            connection_limits: ConnectionLimits::register(registry),
            upgrades: OpenGauge::register(
                registry,
                "upgrades_open",
                "Open upgraded connections (WebSocket, SPDY)",
            ),
            dial_failures: DialFailures::register(registry),
            retries: RetryCounters::register(registry),
            dropped_lines: upstream::register_dropped_lines(registry),
            ejections: EjectionMetrics::register(registry),
            tokens,
            reviews,
            token_reviews,
            access_reviews,
            api_reachable: reviews::register_api_reachable(registry),
            tunnels_closed: TunnelsClosed::register(registry),
            access_lines_lost: LostLines::register(registry),
            pages: PageMetrics::register(registry),
            load_balancer: LoadBalancerMetrics::register(registry),
            certificates: CertificateExpiry::register(registry),
            watch: WatchMetrics::register(registry),
            task_restarts: TaskRestarts::register(registry),
        }
    }

    /// Records if the watch of a resource is connected.
    pub fn watch_up(&self, resource: &'static str, up: bool) {
        self.watch.set_up(resource, up);
    }

    /// Counts an event of a watch.
    pub fn watch_event(&self, resource: &'static str) {
        self.watch.count_event(resource);
    }

    /// Counts an object that was skipped as malformed.
    pub fn watch_malformed(&self, resource: &'static str) {
        self.watch.count_malformed(resource);
    }

    /// Records the seconds from the change of a pod, as its EndpointSlice states it, to the use of
    /// its endpoint.
    pub fn endpoint_lag(&self, seconds: f64) {
        self.watch.set_endpoint_lag(seconds);
    }

    /// Exposes a supervised task, with no restarts yet.
    pub fn supervised_task(&self, task: &'static str) {
        self.task_restarts.expose(task);
    }

    /// Counts a restart of a supervised task.
    pub fn task_restarted(&self, task: &'static str) {
        self.task_restarts.count(task);
    }
}

/// Registers a family of counters and returns a constructor of its counters by label value.
fn register_counters(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    label: &'static str,
) -> impl Fn(&'static str) -> Counter + use<> {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    move |value| family.get_or_create_owned(&[(label, value)])
}

/// Sum to which several threads add.
#[derive(Debug, Default)]
struct Sum(AtomicU64);

impl Sum {
    fn add(&self, value: u64) {
        // Relaxed: no other memory depends on a sum, and a scrape may read sums of one request at
        // different moments.
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
