//! Rewriting of HTML pages.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::register_counters;

/// Memory of rewriting, and pages that passed unmodified.
#[derive(Clone, Debug)]
pub struct PageMetrics {
    /// Bytes of `rewriting.maxMemory` that pages in flight have reserved.
    pub reserved: Gauge<i64, AtomicI64>,
    pub passed: PagesPassed,
}

/// Pages that passed unmodified, completely or from some point on, by the limit that they reached.
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
    pub(super) fn register(registry: &mut Registry) -> Self {
        let reserved = Gauge::default();
        registry.register_with_unit(
            "rewriting_reserved",
            "Memory reserved for the rewriting of HTML pages",
            Unit::Bytes,
            reserved.clone(),
        );
        let passed = register_counters(
            registry,
            "rewriting_pages_passed",
            "HTML pages that passed unmodified, completely or in part, by the limit reached",
            "limit",
        );
        let passed = PagesPassed {
            memory: passed("memory"),
            tag: passed("tag"),
            attribute: passed("attribute"),
            attributes: passed("attributes"),
            name: passed("name"),
            depth: passed("depth"),
            candidates: passed("candidates"),
            growth: passed("growth"),
        };
        Self { reserved, passed }
    }
}
