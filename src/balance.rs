//! Which endpoint now? Strict round-robin per service port; endpoints that just failed rest for a short, growing
//! time while others can serve (CONFORMANCE C50).

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use crate::cluster::Affinity;
use crate::model::Endpoint;
use crate::resolve::Candidates;

/// How long an endpoint rests after its first failure; each further one doubles it.
const FIRST_REST: Duration = Duration::from_secs(1);
/// The longest rest, and how long a failure is held against an endpoint that nobody tried since.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// With more endpoints than this unwell, those that rested out long ago are forgotten.
const MANY: usize = 1024;

/// Knows which endpoints are unwell. One per process, so that what one worker learns spares the others.
#[derive(Debug, Default)]
pub struct Balance {
    unwell: DashMap<SocketAddr, Rest>,
    /// The size of `unwell`, so that the common case, nobody is, costs one load.
    count: AtomicUsize,
    hasher: RandomState,
}

#[derive(Debug)]
struct Rest {
    failures: u32,
    until: Instant,
    /// It had rested out, and one request is trying it.
    tried: bool,
}

impl Balance {
    /// The order in which to try the candidates for one request. Takes a turn of the rotation.
    pub fn order<'r>(&self, candidates: &'r Candidates, client: IpAddr) -> Order<'r> {
        let endpoints = candidates.endpoints();
        let awake = self.awake(endpoints);
        let among = awake.as_ref().map_or(endpoints.len(), |order| order.awake);
        let turn = match candidates {
            Candidates::One(_) => 0,
            Candidates::Port { rotation, affinity: Affinity::None, .. } => rotation.advance() % among,
            Candidates::Port { affinity: Affinity::ClientIp, .. } => self.home(
                client,
                (0..among).map(|i| awake.as_ref().map_or(&endpoints[i], |order| &endpoints[order.indices[i]]).address),
            ),
        };
        let indices = awake.map(|mut order| {
            order.indices[..among].rotate_left(turn);
            order.indices
        });
        let order = Order { endpoints, turn, indices, taken: 0 };
        if self.count.load(Ordering::Relaxed) > 0
            && let Some(first) = order.clone().next()
        {
            self.tries(first.address);
        }
        order
    }

    /// An endpoint could not be dialled, or broke before it answered: it rests, the longer the more often. Requests
    /// that failed on it together are one failure.
    pub fn failed(&self, endpoint: &Endpoint) {
        let now = Instant::now();
        let mut rest = self.unwell.entry(endpoint.address).or_insert(Rest { failures: 0, until: now, tried: true });
        if rest.tried {
            rest.until = now + FIRST_REST.saturating_mul(1 << rest.failures.min(8)).min(LONGEST_REST);
            rest.failures += 1;
            rest.tried = false;
        }
        drop(rest);
        if self.unwell.len() > MANY {
            self.unwell.retain(|_, rest| rest.until + LONGEST_REST > now);
        }
        self.count.store(self.unwell.len(), Ordering::Relaxed);
    }

    /// An endpoint answered: what was held against it is forgotten.
    pub fn succeeded(&self, endpoint: &Endpoint) {
        if self.count.load(Ordering::Relaxed) > 0 && self.unwell.remove(&endpoint.address).is_some() {
            self.count.store(self.unwell.len(), Ordering::Relaxed);
        }
    }

    /// None where all are awake, or none is: then the plain ring serves.
    fn awake(&self, endpoints: &[Endpoint]) -> Option<Awake> {
        if endpoints.len() < 2 || self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let now = Instant::now();
        let (mut indices, asleep): (Vec<_>, Vec<_>) =
            (0..endpoints.len()).partition(|i| !self.rests(endpoints[*i].address, now));
        let awake = indices.len();
        indices.extend(asleep);
        (1..endpoints.len()).contains(&awake).then_some(Awake { indices, awake })
    }

    fn rests(&self, address: SocketAddr, now: Instant) -> bool {
        self.unwell.get(&address).is_some_and(|rest| rest.until > now)
    }

    /// An endpoint that has rested out is tried by one request; the others keep away a little longer.
    fn tries(&self, address: SocketAddr) {
        if let Some(mut rest) = self.unwell.get_mut(&address) {
            let now = Instant::now();
            if rest.until <= now {
                rest.until = now + FIRST_REST;
                rest.tried = true;
            }
        }
    }

    /// Where a client of a service with `sessionAffinity: ClientIP` is at home: the endpoint with the highest hash of
    /// both (rendezvous hashing), so that an endpoint that comes or goes moves only the clients it takes or leaves.
    fn home(&self, client: IpAddr, endpoints: impl Iterator<Item = SocketAddr>) -> usize {
        let best = endpoints.enumerate().max_by_key(|(_, address)| self.hasher.hash_one((client, address)));
        best.map_or(0, |(index, _)| index)
    }
}

struct Awake {
    /// Those awake first.
    indices: Vec<usize>,
    awake: usize,
}

/// Endpoints in the order in which to try them, each once.
#[derive(Clone, Debug)]
pub struct Order<'r> {
    endpoints: &'r [Endpoint],
    turn: usize,
    /// Set where some rest: the order, those awake first.
    indices: Option<Vec<usize>>,
    taken: usize,
}

impl<'r> Iterator for Order<'r> {
    type Item = &'r Endpoint;

    fn next(&mut self) -> Option<&'r Endpoint> {
        if self.taken == self.endpoints.len() {
            return None;
        }
        let index = match &self.indices {
            Some(indices) => indices[self.taken],
            None => (self.turn + self.taken) % self.endpoints.len(),
        };
        self.taken += 1;
        Some(&self.endpoints[index])
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.endpoints.len() - self.taken;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Order<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::Arc;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint { address: ([10, 0, 0, last], 80).into(), name: last.to_string().into() }
    }

    fn port(count: u8, affinity: Affinity) -> Candidates {
        let endpoints = (1..=count).map(endpoint).collect();
        Candidates::Port { endpoints, rotation: Arc::default(), affinity }
    }

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn names(order: Order<'_>) -> String {
        order.map(|endpoint| &*endpoint.name).collect()
    }

    #[test]
    fn every_request_takes_the_next_and_can_fall_back_on_all() {
        let (balance, port) = (Balance::default(), port(3, Affinity::None));
        let orders: Vec<_> = (0..4).map(|_| names(balance.order(&port, client(1)))).collect();
        assert_eq!(orders, ["123", "231", "312", "123"]);
    }

    #[test]
    fn who_failed_rests_and_the_others_share_its_turns() {
        let (balance, port) = (Balance::default(), port(3, Affinity::None));
        balance.failed(&endpoint(2));
        let orders: Vec<_> = (0..4).map(|_| names(balance.order(&port, client(1)))).collect();
        assert_eq!(orders, ["132", "312", "132", "312"], "the resting one stands last, for when all else fails");
        balance.succeeded(&endpoint(2));
        assert_eq!(names(balance.order(&port, client(1))).len(), 3);
        assert_eq!(balance.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn where_all_rest_all_are_tried() {
        let (balance, port) = (Balance::default(), port(2, Affinity::None));
        balance.failed(&endpoint(1));
        balance.failed(&endpoint(2));
        assert_eq!(names(balance.order(&port, client(1))), "12");
    }

    #[test]
    fn rests_grow_and_failures_at_once_are_one() {
        let (balance, address) = (Balance::default(), endpoint(1).address);
        let mut lengths = Vec::new();
        for _ in 0..7 {
            let before = Instant::now();
            balance.failed(&endpoint(1));
            balance.failed(&endpoint(1));
            let mut rest = balance.unwell.get_mut(&address).unwrap();
            lengths.push((rest.until - before + Duration::from_millis(500)).as_secs());
            // It rests out, and somebody tries it again.
            rest.until = before;
            drop(rest);
            balance.tries(address);
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn who_has_rested_out_is_tried_by_one() {
        let (balance, port) = (Balance::default(), port(2, Affinity::None));
        balance.failed(&endpoint(1));
        balance.unwell.get_mut(&endpoint(1).address).unwrap().until = Instant::now();
        let firsts: String = (0..4).map(|_| names(balance.order(&port, client(1))).remove(0)).collect();
        assert_eq!(firsts, "1222", "the first tries it, the next keep away until it is known to be well");
    }

    #[test]
    fn a_client_with_affinity_stays_and_moves_only_when_it_must() {
        let balance = Balance::default();
        let (three, four) = (port(3, Affinity::ClientIp), port(4, Affinity::ClientIp));
        let home = |candidates, last| balance.order(candidates, client(last)).next().unwrap().name.to_string();
        let mut users: HashMap<String, u32> = HashMap::new();
        for last in 0..=255 {
            let at = home(&three, last);
            assert_eq!(home(&three, last), at);
            let moved = home(&four, last);
            assert!(moved == at || moved == "4", "client {last} moved from {at} to {moved}");
            *users.entry(at).or_default() += 1;
        }
        assert!(users.len() == 3 && users.values().all(|count| *count > 40), "{users:?}");
        balance.failed(&endpoint(1));
        assert!((0..=255).all(|last| home(&three, last) != "1"), "who rests is nobody's home");
    }
}
