//! Connections and datagrams of the listeners for Services of `type: LoadBalancer`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::OpenGauge;
use super::register_counters;

/// Data path of load balancers.
#[derive(Clone, Debug)]
pub struct LoadBalancerMetrics {
    pub connections: OpenGauge,
    pub accepted: AcceptedConnections,
    /// Bytes from clients to endpoints.
    pub received: Counter,
    /// Bytes from endpoints to clients.
    pub sent: Counter,
    pub flows: OpenGauge,
    /// Flows that were replaced because the limit on flows was reached.
    pub evicted_flows: Counter,
    /// Datagrams from clients to endpoints.
    pub datagrams_received: Counter,
    /// Datagrams from endpoints to clients.
    pub datagrams_sent: Counter,
    pub dropped: DroppedDatagrams,
}

/// Connections that were accepted, by result.
#[derive(Clone, Debug)]
pub struct AcceptedConnections {
    /// Both sides ended the connection in order.
    pub completed: Counter,
    /// A side reset the connection, or the bastion closed it.
    pub reset: Counter,
    /// The client is outside of `loadBalancerSourceRanges`.
    pub source_range: Counter,
    /// The client has used a published address that the Service has not asked for.
    pub address: Counter,
    /// The client address had its share of connections.
    pub client_share: Counter,
    pub no_endpoint: Counter,
    /// No endpoint accepted the connection.
    pub dial_failed: Counter,
}

/// Datagrams of clients that were dropped, by reason.
#[derive(Clone, Debug)]
pub struct DroppedDatagrams {
    /// The client is outside of `loadBalancerSourceRanges`.
    pub source_range: Counter,
    /// The client has used a published address that the Service has not asked for.
    pub address: Counter,
    /// The source is a listener of the process, or has no port.
    pub source_address: Counter,
    pub no_endpoint: Counter,
    /// No socket for another flow, as without free file descriptors, or beyond the limit on flows.
    pub no_socket: Counter,
    /// The system did not take the datagram, in either direction.
    pub not_sent: Counter,
}

impl LoadBalancerMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("load_balancer");
        let accepted = register_counters(
            registry,
            "connections_accepted",
            "Connections to listeners of load balancers, by result",
            "result",
        );
        let bytes = register_counters(
            registry,
            "bytes",
            "Bytes of connections and datagrams of load balancers, by direction",
            "direction",
        );
        let datagrams = register_counters(
            registry,
            "datagrams",
            "Datagrams of load balancers, by direction",
            "direction",
        );
        let dropped = register_counters(
            registry,
            "datagrams_dropped",
            "Datagrams of load balancers that were dropped, by reason",
            "reason",
        );
        let evicted_flows = Counter::default();
        registry.register(
            "flows_evicted",
            "UDP flows of load balancers replaced because the limit on flows was reached",
            evicted_flows.clone(),
        );
        Self {
            connections: OpenGauge::register(
                registry,
                "connections_open",
                "Open connections of clients to load balancers",
            ),
            accepted: AcceptedConnections {
                completed: accepted("completed"),
                reset: accepted("reset"),
                source_range: accepted("source_range"),
                address: accepted("address"),
                client_share: accepted("client_share"),
                no_endpoint: accepted("no_endpoint"),
                dial_failed: accepted("dial_failed"),
            },
            received: bytes("received"),
            sent: bytes("sent"),
            flows: OpenGauge::register(registry, "flows_open", "Open UDP flows of load balancers"),
            evicted_flows,
            datagrams_received: datagrams("received"),
            datagrams_sent: datagrams("sent"),
            dropped: DroppedDatagrams {
                source_range: dropped("source_range"),
                address: dropped("address"),
                source_address: dropped("source_address"),
                no_endpoint: dropped("no_endpoint"),
                no_socket: dropped("no_socket"),
                not_sent: dropped("not_sent"),
            },
        }
    }
}
