//! Client connections and tunnels.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::register_counters;

/// Number of open connections of a kind.
#[derive(Clone, Debug, Default)]
pub struct OpenGauge(Gauge<i64, AtomicI64>);

impl OpenGauge {
    pub(super) fn register(
        registry: &mut Registry,
        name: &'static str,
        help: &'static str,
    ) -> Self {
        let gauge = Self::default();
        registry.register(name, help, gauge.0.clone());
        gauge
    }

    /// Counts a connection until the guard is dropped.
    pub fn enter(&self) -> OpenGuard {
        self.0.inc();
        OpenGuard(self.0.clone())
    }
}

/// Counts an open connection while it exists.
#[derive(Debug)]
pub struct OpenGuard(Gauge<i64, AtomicI64>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Client connections that were closed or delayed when they were accepted.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Closed because the client address had its share.
    pub over_share: Counter,
    /// Closed because of a missing, invalid or unexpected header of the PROXY protocol.
    pub proxy_header: Counter,
    /// Delayed because `serving.maxConnections` was reached.
    pub delayed: Counter,
}

impl ConnectionLimits {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let rejected = register_counters(
            registry,
            "connections_rejected",
            "Client connections closed when they were accepted, by reason",
            "reason",
        );
        let delayed = Counter::default();
        registry.register(
            "connections_delayed",
            "Client connections that waited because serving.maxConnections was reached",
            delayed.clone(),
        );
        Self {
            over_share: rejected("client_share"),
            proxy_header: rejected("proxy_header"),
            delayed,
        }
    }
}

/// Tunnels closed by the bastion, by reason.
#[derive(Clone, Debug)]
pub struct TunnelsClosed {
    /// The credentials or the permission of the caller ended.
    pub revoked: Counter,
    /// The permission could not be checked for longer than results stay valid.
    pub unverified: Counter,
    /// The tunnel reached `serving.tunnelMaxAge`.
    pub max_age: Counter,
    /// The endpoint of a flow of datagrams is gone.
    pub endpoint_gone: Counter,
}

impl TunnelsClosed {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let closed = register_counters(
            registry,
            "tunnels_closed",
            "Tunnels closed by the bastion, by reason",
            "reason",
        );
        Self {
            revoked: closed("permit_revoked"),
            unverified: closed("unverified"),
            max_age: closed("max_age"),
            endpoint_gone: closed("endpoint_gone"),
        }
    }
}
