//! Bounded table of UDP flows that replaces the least recently used.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::loadbalancer::ListenerKey;
use crate::model::ClientAddress;

/// Age from which a use moves a flow to the end of the order. A flow of thousands of datagrams per
/// second moves once.
const GRANULARITY: Duration = Duration::from_secs(1);
/// Part of the table that one client address may have.
const CLIENT_PART: usize = 4;

/// Identity of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub listener: ListenerKey,
    pub client: SocketAddr,
    /// Address that the client used, from which it expects the answers. `None` for a listener with
    /// one address.
    pub local: Option<IpAddr>,
}

/// Flows of a worker.
#[derive(Debug)]
pub(super) struct FlowTable<F> {
    flows: HashMap<FlowKey, Entry<F>>,
    /// Flows in the order of their last use.
    order: BTreeMap<u64, FlowKey>,
    by_client: BTreeMap<(ClientAddress, u64), FlowKey>,
    counts: HashMap<ClientAddress, usize>,
    next: u64,
    limit: usize,
}

#[derive(Debug)]
struct Entry<F> {
    flow: F,
    /// Position in the order.
    position: u64,
    moved: Instant,
}

impl<F> FlowTable<F> {
    /// Creates a table for `limit` flows, a quarter of them per client address.
    pub fn new(limit: usize) -> Self {
        Self {
            flows: HashMap::new(),
            order: BTreeMap::new(),
            by_client: BTreeMap::new(),
            counts: HashMap::new(),
            next: 0,
            limit,
        }
    }

    /// Returns a flow, which becomes the most recently used.
    pub fn touch(&mut self, key: &FlowKey, now: Instant) -> Option<&F> {
        let entry = self.flows.get_mut(key)?;
        if now.duration_since(entry.moved) >= GRANULARITY {
            let client = key.client.ip().into();
            self.order.remove(&entry.position);
            self.by_client.remove(&(client, entry.position));
            entry.position = self.next;
            entry.moved = now;
            self.next += 1;
            self.order.insert(entry.position, *key);
            self.by_client.insert((client, entry.position), *key);
        }
        Some(&entry.flow)
    }

    /// Returns a flow without effect on the order.
    pub fn peek(&self, key: &FlowKey) -> Option<&F> {
        self.flows.get(key).map(|entry| &entry.flow)
    }

    /// Adds a flow, which must not be in the table. Returns the flow that it replaces: the least
    /// recently used of its client address or, if that has less than its part, of all.
    pub fn insert(&mut self, key: FlowKey, flow: F, now: Instant) -> Option<F> {
        let client = ClientAddress::from(key.client.ip());
        let count = self.counts.get(&client).copied().unwrap_or_default();
        let replaced = if count >= (self.limit / CLIENT_PART).max(1) {
            let mut own = self.by_client.range((client, 0)..=(client, u64::MAX));
            own.next().map(|(_, key)| *key)
        } else if self.flows.len() >= self.limit {
            self.order.first_key_value().map(|(_, key)| *key)
        } else {
            None
        };
        let replaced = replaced.and_then(|key| self.remove(&key));
        let position = self.next;
        self.next += 1;
        self.order.insert(position, key);
        self.by_client.insert((client, position), key);
        *self.counts.entry(client).or_default() += 1;
        let entry = Entry {
            flow,
            position,
            moved: now,
        };
        self.flows.insert(key, entry);
        replaced
    }

    /// Removes a flow.
    pub fn remove(&mut self, key: &FlowKey) -> Option<F> {
        let Entry { flow, position, .. } = self.flows.remove(key)?;
        let client = key.client.ip().into();
        self.order.remove(&position);
        self.by_client.remove(&(client, position));
        if let Some(count) = self.counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&client);
            }
        }
        if self.flows.is_empty() {
            // The memory of a flood.
            self.flows = HashMap::new();
            self.counts = HashMap::new();
        }
        Some(flow)
    }

    /// Removes all flows for which `keep` returns false.
    pub fn retain(&mut self, keep: impl Fn(&FlowKey) -> bool) {
        let ended: Vec<_> = self
            .flows
            .keys()
            .filter(|key| !keep(key))
            .copied()
            .collect();
        for key in ended {
            self.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadbalancer::Protocol;

    fn key(client: u8, port: u16) -> FlowKey {
        FlowKey {
            listener: ListenerKey {
                address: IpAddr::from([127, 0, 0, 1]),
                port: 53,
                protocol: Protocol::Udp,
            },
            client: SocketAddr::from(([192, 0, 2, client], port)),
            local: None,
        }
    }

    #[test]
    fn replaces_the_least_recently_used_flow() {
        let (mut table, start) = (FlowTable::new(3), Instant::now());
        for client in 1..=3 {
            assert_eq!(table.insert(key(client, 1), client, start), None);
        }
        // Within the granularity, the order stays.
        assert_eq!(table.touch(&key(2, 1), start), Some(&2));
        assert_eq!(table.touch(&key(1, 1), start + GRANULARITY), Some(&1));
        assert_eq!(table.insert(key(4, 1), 4, start), Some(2));
        assert_eq!(table.insert(key(5, 1), 5, start), Some(3));
        assert_eq!(table.insert(key(6, 1), 6, start), Some(1));
        assert_eq!(table.peek(&key(1, 1)), None);
    }

    #[test]
    fn client_with_its_part_replaces_its_own_flow() {
        let (mut table, now) = (FlowTable::new(8), Instant::now());
        assert_eq!(table.insert(key(9, 1), 0, now), None);
        assert_eq!(table.insert(key(1, 1), 1, now), None);
        assert_eq!(table.insert(key(1, 2), 2, now), None);
        assert_eq!(table.insert(key(1, 3), 3, now), Some(1));
        assert_eq!(table.insert(key(1, 4), 4, now), Some(2));
        assert_eq!(table.insert(key(2, 1), 5, now), None);
    }

    #[test]
    fn removed_flows_leave_nothing() {
        let (mut table, now) = (FlowTable::new(8), Instant::now());
        for port in 1..100 {
            table.insert(key(1, port), port, now);
            table.insert(key(2, port), port, now);
        }
        assert_eq!(table.remove(&key(1, 99)), Some(99));
        assert_eq!(table.remove(&key(1, 99)), None);
        table.retain(|_| false);
        assert!(table.flows.is_empty() && table.order.is_empty());
        assert!(table.by_client.is_empty() && table.counts.is_empty());
    }
}
