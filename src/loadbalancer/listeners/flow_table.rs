//! Bounded table of UDP flows that replaces the least recently used.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::client_connection::{ClientShare, ClientShares};
use crate::loadbalancer::ListenerKey;
use crate::model::ClientAddress;

/// Age from which a use moves a flow to the end of the order. A flow of thousands of datagrams per
/// second moves once.
const GRANULARITY: Duration = Duration::from_secs(1);
/// Part of the budget that one client address may have.
const CLIENT_PART: usize = 4;
/// Flows that each worker may have beyond the budget, so that the listeners of a worker are served
/// while those of another use the budget up.
const RESERVED: usize = 64;

/// Identity of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub listener: ListenerKey,
    pub client: SocketAddr,
    /// Address that the client used, from which it expects the answers. `None` for a listener with
    /// one address.
    pub local: Option<IpAddr>,
}

/// Budget of flows, shared by the workers.
#[derive(Debug)]
pub struct FlowBudget {
    flows: Arc<Semaphore>,
    clients: Arc<ClientShares>,
}

impl FlowBudget {
    /// Allows `limit` flows, a quarter of them per client address.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            flows: Arc::new(Semaphore::new(limit)),
            clients: ClientShares::new((limit / CLIENT_PART).max(1)),
        })
    }

    /// Number of flows that may be added.
    #[cfg(test)]
    pub fn free(&self) -> usize {
        self.flows.available_permits()
    }
}

/// Permission for a flow; dropping it returns it to the budget.
#[derive(Debug)]
pub(super) struct Slot {
    _share: ClientShare,
    /// `None` for one of the flows that each worker may have beyond the budget.
    permit: Option<OwnedSemaphorePermit>,
    /// Another flow had to end for it.
    pub replaces: bool,
}

/// Flows of a worker.
#[derive(Debug)]
pub(super) struct FlowTable<F> {
    flows: HashMap<FlowKey, Entry<F>>,
    /// Flows in the order of their last use.
    order: BTreeMap<u64, FlowKey>,
    by_client: BTreeMap<(ClientAddress, u64), FlowKey>,
    next: u64,
    budget: Arc<FlowBudget>,
    /// Number of flows beyond the budget.
    beyond: usize,
}

#[derive(Debug)]
struct Entry<F> {
    flow: F,
    slot: Slot,
    /// Position in the order.
    position: u64,
    moved: Instant,
}

impl<F> FlowTable<F> {
    pub fn new(budget: Arc<FlowBudget>) -> Self {
        Self {
            flows: HashMap::new(),
            order: BTreeMap::new(),
            by_client: BTreeMap::new(),
            next: 0,
            budget,
            beyond: 0,
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

    /// Returns the permission for a flow of a client. If the budget is used up, the least recently
    /// used flow of this table ends: that of the client address if it has its part, else of all.
    /// `None` if the flows of the client address are those of other workers.
    pub fn reserve(&mut self, client: ClientAddress) -> Option<Slot> {
        let budget = Arc::clone(&self.budget);
        let mut replaces = false;
        let share = budget.clients.take(client).or_else(|| {
            let mut own = self.by_client.range((client, 0)..=(client, u64::MAX));
            let oldest = own.next().map(|(_, key)| *key)?;
            self.remove(&oldest);
            replaces = true;
            budget.clients.take(client)
        })?;
        let permit = || Arc::clone(&budget.flows).try_acquire_owned().ok();
        let mut permit_or_none = permit();
        if permit_or_none.is_none() && self.beyond >= RESERVED {
            let (_, oldest) = self.order.first_key_value()?;
            let oldest = *oldest;
            self.remove(&oldest);
            replaces = true;
            permit_or_none = permit();
            if permit_or_none.is_none() && self.beyond >= RESERVED {
                // Another worker was faster.
                return None;
            }
        }
        Some(Slot {
            _share: share,
            permit: permit_or_none,
            replaces,
        })
    }

    /// Adds a flow, which must not be in the table.
    pub fn insert(&mut self, key: FlowKey, flow: F, slot: Slot, now: Instant) {
        let position = self.next;
        self.next += 1;
        self.order.insert(position, key);
        self.by_client
            .insert((key.client.ip().into(), position), key);
        self.beyond += usize::from(slot.permit.is_none());
        let entry = Entry {
            flow,
            slot,
            position,
            moved: now,
        };
        self.flows.insert(key, entry);
    }

    /// Removes a flow.
    pub fn remove(&mut self, key: &FlowKey) -> Option<F> {
        let Entry {
            flow,
            slot,
            position,
            ..
        } = self.flows.remove(key)?;
        self.order.remove(&position);
        self.by_client.remove(&(key.client.ip().into(), position));
        self.beyond -= usize::from(slot.permit.is_none());
        if self.flows.is_empty() {
            // The memory of a flood.
            self.flows = HashMap::new();
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

    /// Adds a flow. Returns whether another one had to end for it.
    fn insert(table: &mut FlowTable<u16>, key: FlowKey, now: Instant) -> Option<bool> {
        let slot = table.reserve(key.client.ip().into())?;
        let replaces = slot.replaces;
        table.insert(key, key.client.port(), slot, now);
        Some(replaces)
    }

    /// Returns a table that has the flows beyond the budget, of a client per part.
    fn full(limit: usize) -> FlowTable<u16> {
        let mut table = FlowTable::new(FlowBudget::new(limit));
        table.beyond = RESERVED;
        table
    }

    #[test]
    fn replaces_the_least_recently_used_flow() {
        let (mut table, start) = (full(3), Instant::now());
        for client in 1..=3 {
            assert_eq!(insert(&mut table, key(client, 1), start), Some(false));
        }
        // Within the granularity, the order stays.
        assert_eq!(table.touch(&key(2, 1), start), Some(&1));
        assert_eq!(table.touch(&key(1, 1), start + GRANULARITY), Some(&1));
        for (client, replaced) in [(4, 2), (5, 3), (6, 1)] {
            assert!(table.peek(&key(replaced, 1)).is_some());
            assert_eq!(insert(&mut table, key(client, 1), start), Some(true));
            assert_eq!(table.peek(&key(replaced, 1)), None);
        }
    }

    #[test]
    fn client_with_its_part_replaces_its_own_flow() {
        let (mut table, now) = (full(8), Instant::now());
        for key in [key(9, 1), key(1, 1), key(1, 2)] {
            assert_eq!(insert(&mut table, key, now), Some(false));
        }
        for port in [3, 4] {
            assert_eq!(insert(&mut table, key(1, port), now), Some(true));
            assert_eq!(table.peek(&key(1, port - 2)), None);
        }
        assert_eq!(insert(&mut table, key(2, 1), now), Some(false));
        assert!(table.peek(&key(9, 1)).is_some());
    }

    #[test]
    fn workers_share_a_budget_and_have_a_few_flows_beyond() {
        let (budget, now) = (FlowBudget::new(8), Instant::now());
        let mut tables = [(); 2].map(|()| FlowTable::new(Arc::clone(&budget)));
        // One worker may use all.
        for client in 1..=8 {
            assert_eq!(insert(&mut tables[0], key(client, 1), now), Some(false));
        }
        assert_eq!(tables[0].beyond, 0);
        let reserved = u8::try_from(RESERVED).unwrap();
        for client in 1..=reserved {
            assert_eq!(insert(&mut tables[1], key(client, 2), now), Some(false));
        }
        assert_eq!(insert(&mut tables[1], key(100, 2), now), Some(true));
        assert_eq!(
            (tables[1].flows.len(), tables[1].beyond),
            (RESERVED, RESERVED)
        );
        // Each has two flows already, and none can end in the first table.
        tables[0].retain(|key| key.client.port() != 1);
        assert_eq!(insert(&mut tables[1], key(100, 3), now), Some(false));
        assert_eq!(insert(&mut tables[0], key(100, 4), now), None);
        assert_eq!(insert(&mut tables[0], key(101, 4), now), Some(false));
    }

    #[test]
    fn removed_flows_leave_nothing() {
        let budget = FlowBudget::new(8);
        let (mut table, now) = (FlowTable::new(Arc::clone(&budget)), Instant::now());
        for port in 1..100 {
            insert(&mut table, key(1, port), now);
            insert(&mut table, key(2, port), now);
        }
        assert_eq!(table.remove(&key(1, 99)), Some(99));
        assert_eq!(table.remove(&key(1, 99)), None);
        table.retain(|_| false);
        assert!(table.order.is_empty() && table.by_client.is_empty());
        assert_eq!((table.flows.capacity(), table.beyond), (0, 0));
        assert_eq!(budget.free(), 8);
        for _ in 0..2 {
            assert_eq!(insert(&mut table, key(1, 1), now), Some(false));
            table.retain(|_| false);
        }
    }
}
