//! Watches of the cluster source.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: &'static str,
}

/// State and activity of the watches, by resource.
#[derive(Clone, Debug, Default)]
pub(super) struct WatchMetrics {
    up: Family<ResourceLabel, Gauge>,
    events: Family<ResourceLabel, Counter>,
    malformed: Family<ResourceLabel, Counter>,
    last_event: Family<ResourceLabel, Gauge<f64, AtomicU64>>,
    endpoint_lag: Gauge<f64, AtomicU64>,
}

impl WatchMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "watch_up",
            "1 while the watch of a resource is connected, 0 otherwise",
            metrics.up.clone(),
        );
        registry.register(
            "watch_events",
            "Objects received by the watch of a resource",
            metrics.events.clone(),
        );
        registry.register(
            "watch_malformed_objects",
            "Objects skipped as malformed",
            metrics.malformed.clone(),
        );
        registry.register_with_unit(
            "watch_last_event_timestamp",
            "Unix time of the last event of the watch of a resource",
            Unit::Seconds,
            metrics.last_event.clone(),
        );
        registry.register_with_unit(
            "watch_endpoint_lag",
            "Time from the last change of a pod to the use of its endpoint",
            Unit::Seconds,
            metrics.endpoint_lag.clone(),
        );
        metrics
    }

    pub fn set_up(&self, resource: &'static str, up: bool) {
        let gauge = self.up.get_or_create(&ResourceLabel { resource });
        gauge.set(up.into());
    }

    pub fn count_event(&self, resource: &'static str) {
        let label = ResourceLabel { resource };
        self.events.get_or_create(&label).inc();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let last_event = self.last_event.get_or_create(&label);
        last_event.set(now.as_secs_f64());
    }

    pub fn count_malformed(&self, resource: &'static str) {
        let counter = self.malformed.get_or_create(&ResourceLabel { resource });
        counter.inc();
    }

    pub fn set_endpoint_lag(&self, seconds: f64) {
        self.endpoint_lag.set(seconds);
    }
}
