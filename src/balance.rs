//! Load balancing: strict round-robin per service port. Ejected endpoints get no requests while
//! others can serve (CONFORMANCE C50).

mod ejection;
mod health;

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
pub use health::Health;

/// An endpoint as it is connected to. What is learned by one transport says nothing about another:
/// a caller can ask a plain HTTP endpoint for HTTPS, and its failure must not steer the requests of
/// other callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    pub address: SocketAddr,
    pub transport: Transport,
}

/// Selects endpoints and tracks ejected ones. One per process, so that what one worker learns
/// spares the others.
///
/// Nothing is recorded for a target without a choice of endpoints: it has to be tried anyway.
#[derive(Debug)]
pub struct LoadBalancer {
    ejections: Ejections,
    /// Endpoints that some worker has connections or requests at.
    health: DashMap<EndpointKey, Arc<Health>>,
    started: Instant,
    hasher: RandomState,
}

impl LoadBalancer {
    pub fn new(metrics: EjectionMetrics) -> Self {
        Self {
            ejections: Ejections::new(metrics),
            health: DashMap::default(),
            started: Instant::now(),
            hasher: RandomState::default(),
        }
    }

    /// The order in which to try the candidates for one request. Takes a turn of the rotation.
    pub fn select<'r>(
        &self,
        candidates: &'r Candidates,
        transport: Transport,
        client: IpAddr,
    ) -> EndpointIter<'r> {
        self.order_at(candidates, transport, client, Instant::now)
    }

    fn order_at<'r>(
        &self,
        candidates: &'r Candidates,
        transport: Transport,
        client: IpAddr,
        now: impl FnOnce() -> Instant,
    ) -> EndpointIter<'r> {
        let endpoints = candidates.endpoints();
        // The common case, none is ejected, costs one load.
        let now = (endpoints.len() > 1 && !self.ejections.is_empty())
            .then(now)
            .filter(|_| {
                // While endpoints of other services are ejected: a look at each, and nothing else.
                endpoints.iter().any(|it| {
                    self.ejections.has(EndpointKey {
                        address: it.address,
                        transport,
                    })
                })
            });
        let healthy = now.and_then(|now| self.healthy(endpoints, transport, now));
        let among = healthy
            .as_ref()
            .map_or(endpoints.len(), |order| order.healthy);
        let turn = match candidates {
            Candidates::One(_) => 0,
            Candidates::Port {
                rotation,
                affinity: Affinity::None,
                ..
            } => rotation.advance() % among,
            Candidates::Port {
                affinity: Affinity::ClientIp,
                ..
            } => self.rendezvous_pick(
                client,
                (0..among).map(|i| {
                    healthy
                        .as_ref()
                        .map_or(&endpoints[i], |order| &endpoints[order.indices[i]])
                        .address
                }),
            ),
        };
        let indices = healthy.map(|mut order| {
            order.indices[..among].rotate_left(turn);
            order.indices
        });
        let order = EndpointIter {
            endpoints,
            turn,
            indices,
            taken: 0,
        };
        if let (Some(now), Some(first)) = (now, order.peek()) {
            self.ejections.probe(
                EndpointKey {
                    address: first.address,
                    transport,
                },
                now,
            );
        }
        order
    }

    /// Ejects an endpoint after a failed connect.
    pub fn connect_failed(&self, key: EndpointKey) {
        self.ejections.eject(key, Reason::Connect, Instant::now());
    }

    /// Ejects an endpoint on which requests wait and that answers none. To be called again while
    /// that is so.
    pub fn stalled(&self, key: EndpointKey, now: Instant) {
        self.ejections.eject(key, Reason::Stalled, now);
    }

    /// An endpoint accepted a connection.
    pub fn connected(&self, key: EndpointKey) {
        self.ejections.connected(key);
    }

    /// An endpoint answered a request.
    pub fn answered(&self, key: EndpointKey) {
        self.ejections.answered(key);
    }

    /// The answers of an endpoint as all workers know them.
    pub fn health(&self, key: EndpointKey) -> Arc<Health> {
        Arc::clone(
            &self
                .health
                .entry(key)
                .or_insert_with(|| Arc::new(Health::new(self.started))),
        )
    }

    /// Forgets endpoints that are gone. To be called every few seconds, off the request path.
    pub fn sweep(&self) {
        self.ejections.sweep(Instant::now());
        // Who else holds one is a worker with connections or requests there. A worker that asks for
        // it in this very moment does so under the lock of the entry.
        self.health
            .retain(|_, health| Arc::strong_count(health) > 1);
    }

    /// The healthy endpoints first. None where all are healthy, or none is: then the plain ring
    /// serves.
    fn healthy(
        &self,
        endpoints: &[Endpoint],
        transport: Transport,
        now: Instant,
    ) -> Option<Healthy> {
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
            .then_some(Healthy { indices, healthy })
    }

    /// Where a client of a service with `sessionAffinity: ClientIP` is at home: the endpoint with
    /// the highest hash of both (rendezvous hashing), so that an endpoint that comes or goes moves
    /// only the clients it takes or leaves.
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

struct Healthy {
    /// The healthy ones first.
    indices: Vec<usize>,
    healthy: usize,
}

/// Endpoints in the order in which to try them, each once.
#[derive(Clone, Debug)]
pub struct EndpointIter<'r> {
    endpoints: &'r [Endpoint],
    turn: usize,
    /// Set where some are ejected: the order, the healthy ones first.
    indices: Option<Vec<usize>>,
    taken: usize,
}

impl<'r> EndpointIter<'r> {
    fn peek(&self) -> Option<&'r Endpoint> {
        if self.taken == self.endpoints.len() {
            return None;
        }
        let index = match &self.indices {
            Some(indices) => indices[self.taken],
            None => (self.turn + self.taken) % self.endpoints.len(),
        };
        Some(&self.endpoints[index])
    }
}

impl<'r> Iterator for EndpointIter<'r> {
    type Item = &'r Endpoint;

    fn next(&mut self) -> Option<&'r Endpoint> {
        let next = self.peek()?;
        self.taken += 1;
        Some(next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.endpoints.len() - self.taken;
        (left, Some(left))
    }
}

impl ExactSizeIterator for EndpointIter<'_> {}

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
    fn every_request_takes_the_next_and_can_fall_back_on_all() {
        let (balance, port) = (balance(), port(3, Affinity::None));
        assert_eq!(
            orders(&balance, &port, Transport::Http),
            ["123", "231", "312", "123"]
        );
    }

    #[test]
    fn an_ejected_endpoint_stands_last_and_the_others_share_its_turns() {
        let (balance, port) = (balance(), port(3, Affinity::None));
        balance.connect_failed(key(2));
        assert_eq!(
            orders(&balance, &port, Transport::Http),
            ["132", "312", "132", "312"]
        );
        balance.answered(key(2));
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
            balance.connect_failed(EndpointKey {
                transport: Transport::Https,
                ..key(last)
            });
        }
        balance.connect_failed(EndpointKey {
            transport: Transport::Https,
            ..key(2)
        });
        assert_eq!(
            orders(&balance, &port, Transport::Http),
            ["123", "231", "312", "123"]
        );
    }

    #[test]
    fn where_all_are_ejected_the_plain_ring_serves() {
        let (balance, port) = (balance(), port(2, Affinity::None));
        balance.connect_failed(key(1));
        balance.stalled(key(2), Instant::now());
        assert_eq!(
            orders(&balance, &port, Transport::Http),
            ["12", "21", "12", "21"]
        );
    }

    #[test]
    fn one_request_probes_an_endpoint_whose_ejection_has_ended() {
        let (balance, port) = (balance(), port(2, Affinity::None));
        balance.connect_failed(key(1));
        let later = || Instant::now() + Duration::from_secs(1);
        let first = || names(balance.order_at(&port, Transport::Http, client(1), later)).remove(0);
        let firsts: String = (0..4).map(|_| first()).collect();
        assert_eq!(
            firsts, "1222",
            "the others keep away until it is known to be healthy"
        );
    }

    #[test]
    fn the_sweep_forgets_endpoints_that_no_worker_uses() {
        let balance = balance();
        let used = balance.health(key(1));
        drop(balance.health(key(2)));
        balance.sweep();
        assert_eq!(balance.health.len(), 1);
        drop(used);
        balance.sweep();
        assert!(balance.health.is_empty());
    }

    #[test]
    fn answers_of_any_worker_count_from_the_moment_they_came() {
        let (balance, now) = (balance(), Instant::now());
        let (mine, others) = (balance.health(key(1)), balance.health(key(1)));
        assert!(!mine.has_answered_since(now));
        others.publish_answer(now + Duration::from_secs(1));
        others.publish_answer(now);
        assert!(mine.has_answered_since(now + Duration::from_secs(1)));
        assert!(!mine.has_answered_since(now + Duration::from_millis(1001)));
    }

    #[test]
    fn a_client_with_affinity_stays_and_moves_only_when_it_must() {
        let balance = balance();
        let (three, four) = (port(3, Affinity::ClientIp), port(4, Affinity::ClientIp));
        let home = |candidates, last| {
            balance
                .select(candidates, Transport::Http, client(last))
                .next()
                .unwrap()
                .name
                .to_string()
        };
        let mut users: HashMap<String, u32> = HashMap::new();
        for last in 0..=255 {
            let at = home(&three, last);
            assert_eq!(home(&three, last), at);
            let moved = home(&four, last);
            assert!(
                moved == at || moved == "4",
                "client {last} moved from {at} to {moved}"
            );
            *users.entry(at).or_default() += 1;
        }
        assert!(
            users.len() == 3 && users.values().all(|count| *count > 40),
            "{users:?}"
        );
        balance.connect_failed(key(1));
        assert!(
            (0..=255).all(|last| home(&three, last) != "1"),
            "an ejected endpoint has no clients"
        );
    }
}
