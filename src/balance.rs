//! Load balancing: strict round-robin per service port. Ejected endpoints get no requests while
//! healthy ones exist (CONFORMANCE C50).

mod ejection;
mod endpoint_iter;
mod last_response;

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use dashmap::DashMap;

use crate::cluster::Affinity;
use crate::metrics::EjectionMetrics;
use crate::model::Endpoint;
use crate::resolve::{Candidates, Transport};
use ejection::{Ejections, Reason};
pub use endpoint_iter::EndpointIter;
pub use last_response::LastResponse;

/// Endpoint and the transport used for it. Health is tracked per transport: a caller can request
/// HTTPS from a plain HTTP endpoint, and its failure must not affect the requests of other callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    pub address: SocketAddr,
    pub transport: Transport,
}

/// Selects endpoints and tracks ejected ones. One per process, so that workers share ejections.
///
/// Targets with a single endpoint are not tracked: they must be tried anyway.
#[derive(Debug)]
pub struct LoadBalancer {
    ejections: Ejections,
    /// Endpoints to which a worker has connections or requests.
    last_responses: DashMap<EndpointKey, Arc<LastResponse>>,
    started: Instant,
    hasher: RandomState,
}

impl LoadBalancer {
    pub fn new(metrics: EjectionMetrics) -> Self {
        Self {
            ejections: Ejections::new(metrics),
            last_responses: DashMap::default(),
            started: Instant::now(),
            hasher: RandomState::default(),
        }
    }

    /// Returns the candidates in the order in which to try them for one request. Advances the
    /// round-robin counter.
    pub fn select<'r>(
        &self,
        candidates: &'r Candidates,
        transport: Transport,
        client: IpAddr,
    ) -> EndpointIter<'r> {
        self.select_at(candidates, transport, client, Instant::now)
    }

    /// As [`Self::select`], for datagrams: an ejection is that of connections, and the result of a
    /// probe would never be reported.
    pub fn select_for_datagrams<'r>(
        &self,
        candidates: &'r Candidates,
        client: IpAddr,
    ) -> EndpointIter<'r> {
        self.order(candidates, client, None)
    }

    fn select_at<'r>(
        &self,
        candidates: &'r Candidates,
        transport: Transport,
        client: IpAddr,
        now: impl FnOnce() -> Instant,
    ) -> EndpointIter<'r> {
        let endpoints = candidates.endpoints();
        let key = |endpoint: &Endpoint| EndpointKey {
            address: endpoint.address,
            transport,
        };
        // The common case, no ejection in the whole process, costs one atomic load. If only
        // endpoints of other services are ejected, it costs a lookup per endpoint, and neither a
        // clock reading nor an allocation is wasted on the order.
        let now = (endpoints.len() > 1
            && !self.ejections.is_empty()
            && endpoints
                .iter()
                .any(|endpoint| self.ejections.has(key(endpoint))))
        .then(now);
        let healthy = now.and_then(|now| self.healthy_first(endpoints, transport, now));
        let order = self.order(candidates, client, healthy);
        if let (Some(now), Some(first)) = (now, order.peek()) {
            self.ejections.probe(key(first), now);
        }
        order
    }

    /// Returns the candidates from that whose turn it is. `healthy` is `None` if all endpoints take
    /// turns.
    fn order<'r>(
        &self,
        candidates: &'r Candidates,
        client: IpAddr,
        healthy: Option<HealthyFirst>,
    ) -> EndpointIter<'r> {
        let endpoints = candidates.endpoints();
        let healthy_count = healthy
            .as_ref()
            .map_or(endpoints.len(), |order| order.healthy);
        let turn = match candidates {
            Candidates::One(_) => 0,
            Candidates::Port {
                rotation,
                affinity: Affinity::None,
                ..
            } => rotation.advance() % healthy_count,
            Candidates::Port {
                affinity: Affinity::ClientIp,
                ..
            } => self.rendezvous_pick(
                client,
                (0..healthy_count).map(|i| {
                    healthy
                        .as_ref()
                        .map_or(&endpoints[i], |order| &endpoints[order.indices[i]])
                        .address
                }),
            ),
        };
        // Only the healthy endpoints rotate, so that they share the requests of ejected ones
        // evenly; the ejected ones stay behind them as a last resort.
        let indices = healthy.map(|mut order| {
            order.indices[..healthy_count].rotate_left(turn);
            order.indices
        });
        EndpointIter::new(endpoints, turn, indices)
    }

    /// Returns false if connects to the endpoint have failed lately. For a client that keeps its
    /// endpoint.
    pub fn admits_connection(&self, key: EndpointKey) -> bool {
        self.ejections.is_empty() || self.ejections.admits_connection(key, Instant::now())
    }

    /// Ejects an endpoint after a failed connect.
    pub fn record_connect_failure(&self, key: EndpointKey) {
        self.ejections.eject(key, Reason::Connect, Instant::now());
    }

    /// Ejects an endpoint that sends no responses while requests wait. Called repeatedly while the
    /// stall lasts.
    pub fn record_stall(&self, key: EndpointKey, now: Instant) {
        self.ejections.eject(key, Reason::Stalled, now);
    }

    /// Ends an ejection for failed connects after a successful one.
    pub fn record_connect(&self, key: EndpointKey) {
        self.ejections.connected(key);
    }

    /// Ends any ejection of an endpoint that sent a response.
    pub fn record_response(&self, key: EndpointKey) {
        self.ejections.responded(key);
    }

    /// Returns the time of the last response of an endpoint, shared by all workers.
    pub fn last_response(&self, key: EndpointKey) -> Arc<LastResponse> {
        Arc::clone(
            &self
                .last_responses
                .entry(key)
                .or_insert_with(|| Arc::new(LastResponse::new(self.started))),
        )
    }

    /// Removes state of unused endpoints. Called every few seconds, off the request path.
    pub fn sweep(&self) {
        self.ejections.sweep(Instant::now());
        // Other references belong to workers with connections or requests to the endpoint. There
        // is no race with `health`: it clones the `Arc` under the same lock of the shard.
        self.last_responses
            .retain(|_, last_response| Arc::strong_count(last_response) > 1);
    }

    /// Returns the endpoints with the healthy ones first. `None` if all are healthy, or none is:
    /// then all endpoints rotate.
    fn healthy_first(
        &self,
        endpoints: &[Endpoint],
        transport: Transport,
        now: Instant,
    ) -> Option<HealthyFirst> {
        let (mut indices, ejected): (Vec<_>, Vec<_>) = (0..endpoints.len()).partition(|i| {
            !self.ejections.contains(
                EndpointKey {
                    address: endpoints[*i].address,
                    transport,
                },
                now,
            )
        });
        let healthy = indices.len();
        indices.extend(ejected);
        (1..endpoints.len())
            .contains(&healthy)
            .then_some(HealthyFirst { indices, healthy })
    }

    /// Picks the endpoint of a client of a service with `sessionAffinity: ClientIP`: the one with
    /// the highest hash of client and endpoint (rendezvous hashing). An added or removed endpoint
    /// moves only the clients that it gains or loses.
    fn rendezvous_pick(
        &self,
        client: IpAddr,
        endpoints: impl Iterator<Item = SocketAddr>,
    ) -> usize {
        let best = endpoints
            .enumerate()
            .max_by_key(|(_, address)| self.hasher.hash_one((client, address)));
        best.map_or(0, |(index, _)| index)
    }
}

struct HealthyFirst {
    /// Indices of all endpoints, those of the healthy ones first.
    indices: Vec<usize>,
    /// Number of healthy endpoints.
    healthy: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::time::Duration;

    fn balance() -> LoadBalancer {
        LoadBalancer::new(EjectionMetrics::default())
    }

    fn endpoint(last: u8) -> Endpoint {
        Endpoint {
            address: ([10, 0, 0, last], 80).into(),
            name: last.to_string().into(),
        }
    }

    fn key(last: u8) -> EndpointKey {
        EndpointKey {
            address: endpoint(last).address,
            transport: Transport::Http,
        }
    }

    fn port(count: u8, affinity: Affinity) -> Candidates {
        let endpoints = (1..=count).map(endpoint).collect();
        Candidates::Port {
            endpoints,
            rotation: Arc::default(),
            affinity,
        }
    }

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn names(order: EndpointIter<'_>) -> String {
        order.map(|endpoint| &*endpoint.name).collect()
    }

    fn orders(balance: &LoadBalancer, port: &Candidates, transport: Transport) -> [String; 4] {
        [(); 4].map(|()| names(balance.select(port, transport, client(1))))
    }

    #[test]
    fn rotates_first_endpoint_and_lists_all() {
        let (balance, port) = (balance(), port(3, Affinity::None));
        assert_eq!(
            orders(&balance, &port, Transport::Http),
            ["123", "231", "312", "123"]
        );
    }

    #[test]
    fn ejected_endpoint_is_last_and_others_share_its_turns() {
        let (balance, port) = (balance(), port(3, Affinity::None));
        balance.record_connect_failure(key(2));
        assert_eq!(
            orders(&balance, &port, Transport::Http),
            ["132", "312", "132", "312"]
        );
        balance.record_response(key(2));
        assert_eq!(
            orders(&balance, &port, Transport::Http),
            ["231", "312", "123", "231"]
        );
        assert!(balance.ejections.is_empty());
    }

    #[test]
    fn transports_do_not_share_ejections() {
        let (balance, port) = (balance(), port(3, Affinity::None));
        for last in 1..=3 {
            balance.record_connect_failure(EndpointKey {
                transport: Transport::Https,
                ..key(last)
            });
        }
        balance.record_connect_failure(EndpointKey {
            transport: Transport::Https,
            ..key(2)
        });
        assert_eq!(
            orders(&balance, &port, Transport::Http),
            ["123", "231", "312", "123"]
        );
    }

    #[test]
    fn rotates_over_all_if_all_are_ejected() {
        let (balance, port) = (balance(), port(2, Affinity::None));
        balance.record_connect_failure(key(1));
        balance.record_stall(key(2), Instant::now());
        assert_eq!(
            orders(&balance, &port, Transport::Http),
            ["12", "21", "12", "21"]
        );
    }

    #[test]
    fn only_one_request_probes_after_ejection() {
        let (balance, port) = (balance(), port(2, Affinity::None));
        balance.record_connect_failure(key(1));
        let later = || Instant::now() + Duration::from_secs(1);
        let first = || names(balance.select_at(&port, Transport::Http, client(1), later)).remove(0);
        let firsts: String = (0..4).map(|_| first()).collect();
        assert_eq!(
            firsts, "1222",
            "other requests avoid it until the probe succeeds"
        );
    }

    #[test]
    fn sweep_removes_health_of_unused_endpoints() {
        let balance = balance();
        let used = balance.last_response(key(1));
        drop(balance.last_response(key(2)));
        balance.sweep();
        assert_eq!(balance.last_responses.len(), 1);
        drop(used);
        balance.sweep();
        assert!(balance.last_responses.is_empty());
    }

    #[test]
    fn health_keeps_latest_response_of_any_worker() {
        let (balance, now) = (balance(), Instant::now());
        let (mine, others) = (balance.last_response(key(1)), balance.last_response(key(1)));
        assert!(!mine.has_responded_since(now));
        others.publish_response(now + Duration::from_secs(1));
        others.publish_response(now);
        assert!(mine.has_responded_since(now + Duration::from_secs(1)));
        assert!(!mine.has_responded_since(now + Duration::from_millis(1001)));
    }

    /// CONFORMANCE C47.
    #[test]
    fn client_with_affinity_moves_only_if_its_endpoint_changes() {
        let balance = balance();
        let (three, four) = (port(3, Affinity::ClientIp), port(4, Affinity::ClientIp));
        let pick = |candidates, last| {
            balance
                .select(candidates, Transport::Http, client(last))
                .next()
                .unwrap()
                .name
                .to_string()
        };
        let mut users: HashMap<String, u32> = HashMap::new();
        for last in 0..=255 {
            let endpoint = pick(&three, last);
            assert_eq!(pick(&three, last), endpoint);
            let a_day_later = || Instant::now() + Duration::from_hours(24);
            let mut later = balance.select_at(&three, Transport::Http, client(last), a_day_later);
            assert_eq!(*later.next().unwrap().name, endpoint, "no timeout");
            let moved = pick(&four, last);
            assert!(
                moved == endpoint || moved == "4",
                "client {last} moved from {endpoint} to {moved}"
            );
            *users.entry(endpoint).or_default() += 1;
        }
        assert!(
            users.len() == 3 && users.values().all(|count| *count > 40),
            "{users:?}"
        );
        balance.record_connect_failure(key(1));
        assert!(
            (0..=255).all(|last| pick(&three, last) != "1"),
            "an ejected endpoint gets no clients"
        );
    }
}
