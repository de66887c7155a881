//! Counts of requests by kind of target, method and code.
//!
//! A table of atomics, because a family of `prometheus-client` takes a lock and hashes its labels
//! at every lookup.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::Sum;
use crate::model::Resource;

/// Kind of target as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    Node,
    Pod,
    Service,
    /// An API server, which gets all other paths.
    ApiServer,
    /// The path does not name a target, or the request was rejected before it was parsed.
    None,
}

impl TargetKind {
    const ALL: [Self; 5] = [
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::ApiServer,
        Self::None,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pod => "pod",
            Self::Service => "service",
            Self::ApiServer => "apiserver",
            Self::None => "none",
        }
    }
}

impl From<Option<Resource>> for TargetKind {
    fn from(resource: Option<Resource>) -> Self {
        match resource {
            Some(Resource::Nodes) => Self::Node,
            Some(Resource::Pods) => Self::Pod,
            Some(Resource::Services) => Self::Service,
            None => Self::None,
        }
    }
}

/// Method as a label: those of the Kubernetes API, and one value for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodLabel {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Other,
}

impl MethodLabel {
    const ALL: [Self; 8] = [
        Self::Get,
        Self::Head,
        Self::Post,
        Self::Put,
        Self::Patch,
        Self::Delete,
        Self::Options,
        Self::Other,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other => "other",
        }
    }
}

impl From<&Method> for MethodLabel {
    fn from(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            Method::OPTIONS => Self::Options,
            _ => Self::Other,
        }
    }
}

/// Number of status codes, from 100 to 599. A client that leaves before the response counts as 499,
/// as in nginx.
const CODE_COUNT: usize = 500;

/// Upper bounds of the duration histogram in seconds, from cached responses to long polls.
const DURATION_BOUNDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

/// Counts of requests, their durations and the bytes of their bodies.
#[derive(Debug)]
pub struct RequestTable {
    counts: Box<[Sum]>,
    per_kind: [PerKind; TargetKind::ALL.len()],
}

#[derive(Debug, Default)]
struct PerKind {
    buckets: [Sum; DURATION_BOUNDS.len() + 1],
    micros: Sum,
    received: Sum,
    sent: Sum,
}

impl Default for RequestTable {
    fn default() -> Self {
        // 20,000 counters take 156 KiB, once per process. A map with the codes in use would need a
        // lock or an allocation on the request path.
        let cells = TargetKind::ALL.len() * MethodLabel::ALL.len() * CODE_COUNT;
        Self {
            counts: (0..cells).map(|_| Sum::default()).collect(),
            per_kind: Default::default(),
        }
    }
}

impl RequestTable {
    /// Records a completed request. `received` and `sent` are the bytes of its bodies, from and to
    /// the client.
    pub fn record(
        &self,
        kind: TargetKind,
        method: MethodLabel,
        code: StatusCode,
        duration: Duration,
        received: u64,
        sent: u64,
    ) {
        self.counts[cell(kind, method, usize::from(code.as_u16()))].add(1);
        let per_kind = &self.per_kind[kind as usize];
        let seconds = duration.as_secs_f64();
        // Buckets are not cumulative here; the encoder sums them up at a scrape.
        let bucket = DURATION_BOUNDS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(DURATION_BOUNDS.len());
        per_kind.buckets[bucket].add(1);
        per_kind
            .micros
            .add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        per_kind.received.add(received);
        per_kind.sent.add(sent);
    }
}

fn cell(kind: TargetKind, method: MethodLabel, code: usize) -> usize {
    // `StatusCode` allows up to 999. Codes beyond 599 have no meaning and share the last cell.
    let code = code.clamp(100, 99 + CODE_COUNT) - 100;
    (kind as usize * MethodLabel::ALL.len() + method as usize) * CODE_COUNT + code
}

/// Collector that exposes the table.
#[derive(Debug)]
pub(super) struct TableCollector(pub Arc<RequestTable>);

impl Collector for TableCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut requests = encoder.encode_descriptor(
            "requests",
            "Requests, by kind of target, method and code.",
            None,
            MetricType::Counter,
        )?;
        for kind in TargetKind::ALL {
            for method in MethodLabel::ALL {
                for code in 100..100 + CODE_COUNT {
                    let count = self.0.counts[cell(kind, method, code)].total();
                    if count > 0 {
                        let code = code.to_string();
                        let labels = [
                            ("kind", kind.label()),
                            ("method", method.label()),
                            ("code", code.as_str()),
                        ];
                        requests
                            .encode_family(&labels)?
                            .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                    }
                }
            }
        }
        let mut durations = encoder.encode_descriptor(
            "request_duration",
            "Time from the head of a request to the last byte of its response.",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for kind in TargetKind::ALL {
            let per_kind = &self.0.per_kind[kind as usize];
            let bounds = DURATION_BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds
                .zip(per_kind.buckets.iter().map(Sum::total))
                .collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = Duration::from_micros(per_kind.micros.total()).as_secs_f64();
            durations
                .encode_family(&[("kind", kind.label())])?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        let mut bytes = encoder.encode_descriptor(
            "body",
            "Bytes of bodies and tunnels, received from and sent to clients.",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        for kind in TargetKind::ALL {
            let per_kind = &self.0.per_kind[kind as usize];
            for (direction, sum) in [("received", &per_kind.received), ("sent", &per_kind.sent)] {
                let labels = [("kind", kind.label()), ("direction", direction)];
                bytes
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&sum.total(), None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    #[test]
    fn exposes_recorded_requests() {
        let table = Arc::new(RequestTable::default());
        table.record(
            TargetKind::Pod,
            MethodLabel::Get,
            StatusCode::OK,
            Duration::from_millis(3),
            5,
            7,
        );
        table.record(
            TargetKind::Pod,
            MethodLabel::Get,
            StatusCode::OK,
            Duration::from_secs(90),
            0,
            1,
        );
        let odd = StatusCode::from_u16(999).unwrap();
        table.record(
            TargetKind::None,
            MethodLabel::Other,
            odd,
            Duration::ZERO,
            0,
            0,
        );
        let mut registry = Registry::default();
        registry.register_collector(Box::new(TableCollector(table)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"requests_total{kind="pod",method="GET",code="200"} 2"#,
            r#"requests_total{kind="none",method="other",code="599"} 1"#,
            r#"request_duration_seconds_bucket{le="0.0025",kind="pod"} 0"#,
            r#"request_duration_seconds_bucket{le="0.005",kind="pod"} 1"#,
            r#"request_duration_seconds_bucket{le="+Inf",kind="pod"} 2"#,
            r#"request_duration_seconds_count{kind="pod"} 2"#,
            r#"body_bytes_total{kind="pod",direction="sent"} 8"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
