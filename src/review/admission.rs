//! Admission of reviews: a bounded number in flight, a bounded queue behind them, and round-robin
//! between client addresses, so that no caller can exhaust the API or starve the others.
//!
//! All state is behind one mutex. A review costs a round trip to the API, so the lock is not
//! contended. Two rules keep it free of deadlocks and lost slots: destructors that take the lock
//! ([`Slot`], [`QueueEntry`]) never run while it is held, and a slot is always owned by a value
//! whose drop returns it, also while it is in the channel to a waiter.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config;
use crate::metrics::ReviewMetrics;
use crate::model::ClientAddress;

/// Fraction (1/n) of the in-flight slots that one client address may use.
const IN_FLIGHT_SHARE: usize = 2;
/// Fraction (1/n) of the in-flight slots reserved for refreshes: a flood of unknown callers must
/// not expire the cached permissions of known ones.
const REFRESH_SHARE: usize = 4;
/// Fraction (1/n) of the queue that one client address may use.
const QUEUE_SHARE: usize = 8;

/// Admits reviews. Clones share the state.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Limit for reviews that callers wait for.
    max_in_flight: usize,
    max_refreshes: usize,
    max_queued: usize,
    /// Maximum time in the queue.
    timeout: Duration,
    metrics: ReviewMetrics,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Reviews in flight that callers wait for.
    in_flight: usize,
    refreshes: usize,
    queued: usize,
    /// Identifies waiters, so that one that leaves finds its entry in the queue.
    next_ticket: u64,
    /// Addresses with a review in flight or queued; others are removed, which bounds the map.
    clients: HashMap<ClientAddress, Client>,
    /// Addresses with waiters, in round-robin order; each occurs once.
    turns: VecDeque<ClientAddress>,
}

#[derive(Debug, Default)]
struct Client {
    in_flight: usize,
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    admitted: oneshot::Sender<Slot>,
}

/// Reason why a review is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("too many reviews are queued for this client address; retry later")]
    ClientShare,
    #[error("too many reviews are queued; retry later")]
    QueueFull,
    #[error("no review could be started in time; retry later")]
    Timeout,
}

/// Slot of one review in flight. Dropping it admits the next review.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    /// `None` for a refresh, which does not count against a client's share.
    client: Option<ClientAddress>,
}

impl Admission {
    pub fn new(settings: &config::Reviews, metrics: ReviewMetrics) -> Self {
        let max_refreshes = (settings.max_in_flight / REFRESH_SHARE).max(1);
        Self(Arc::new(Shared {
            max_in_flight: settings.max_in_flight - max_refreshes,
            max_refreshes,
            max_queued: settings.max_queued,
            timeout: settings.queue_timeout,
            metrics,
            state: Mutex::default(),
        }))
    }

    /// Waits for a slot. A caller that is dropped leaves the queue.
    ///
    /// # Errors
    /// [`Rejection`] if the queue or the client's share of it is full, or if the wait times out.
    pub async fn enter(&self, client: ClientAddress) -> Result<Slot, Rejection> {
        let (mut entry, admitted) = match self.enter_or_queue(client)? {
            Entered::Admitted(slot) => return Ok(slot),
            Entered::Queued(entry, admitted) => (entry, admitted),
        };
        match tokio::time::timeout(self.0.timeout, admitted).await {
            Ok(Ok(slot)) => {
                entry.ticket = None;
                Ok(slot)
            }
            // The sender was dropped: `displace` gave the entry to an address with fewer waiters.
            Ok(Err(_)) => {
                self.0.metrics.rejected_queue_full.inc();
                Err(Rejection::QueueFull)
            }
            Err(_) => {
                self.0.metrics.rejected_timeout.inc();
                Err(Rejection::Timeout)
            }
        }
    }

    /// Returns a slot for a refresh if one is free. Refreshes do not queue: a later cache hit tries
    /// again.
    pub fn try_enter(&self) -> Option<Slot> {
        let mut state = self.0.state();
        (state.refreshes < self.0.max_refreshes).then(|| self.0.occupy(&mut state, None))
    }

    fn enter_or_queue(&self, client: ClientAddress) -> Result<Entered, Rejection> {
        let shared = &self.0;
        let mut state = shared.state();
        // Waiters of the same client go first. Waiters of others cannot be overtaken: with a free
        // slot, they wait only because their own client is at its share.
        let has_waiters = state
            .clients
            .get(&client)
            .is_some_and(|client| !client.waiters.is_empty());
        if !has_waiters && shared.has_slot(&state, client) {
            return Ok(Entered::Admitted(shared.occupy(&mut state, Some(client))));
        }
        if state.queued >= shared.max_queued && !shared.displace(&mut state, client) {
            shared.metrics.rejected_queue_full.inc();
            return Err(Rejection::QueueFull);
        }
        let ticket = state.next_ticket;
        let waiters = &mut state.clients.entry(client).or_default().waiters;
        if waiters.len() >= (shared.max_queued / QUEUE_SHARE).max(1) {
            shared.metrics.rejected_client_share.inc();
            return Err(Rejection::ClientShare);
        }
        let (sender, admitted) = oneshot::channel();
        waiters.push_back(Waiter {
            ticket,
            admitted: sender,
        });
        if waiters.len() == 1 {
            state.turns.push_back(client);
        }
        state.next_ticket += 1;
        state.queued += 1;
        shared.metrics.queued.inc();
        Ok(Entered::Queued(
            QueueEntry {
                shared: Arc::clone(shared),
                client,
                ticket: Some(ticket),
            },
            admitted,
        ))
    }
}

enum Entered {
    Admitted(Slot),
    Queued(QueueEntry, oneshot::Receiver<Slot>),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_slot(&self, state: &State, client: ClientAddress) -> bool {
        let share = (self.max_in_flight / IN_FLIGHT_SHARE).max(1);
        state.in_flight < self.max_in_flight
            && state
                .clients
                .get(&client)
                .is_none_or(|client| client.in_flight < share)
    }

    fn occupy(self: &Arc<Self>, state: &mut State, client: Option<ClientAddress>) -> Slot {
        match client {
            Some(client) => {
                state.in_flight += 1;
                state.clients.entry(client).or_default().in_flight += 1;
            }
            None => state.refreshes += 1,
        }
        self.metrics.in_flight.inc();
        Slot {
            shared: Arc::clone(self),
            client,
        }
    }

    /// Removes a waiter from a full queue in favor of `client`, if another address has more
    /// waiters. Returns true if there is room now. Without this, `QUEUE_SHARE` addresses that fill
    /// their shares would lock out all others.
    fn displace(&self, state: &mut State, client: ClientAddress) -> bool {
        let waiting = |client: &Client| client.waiters.len();
        let own = state.clients.get(&client).map_or(0, waiting);
        let longest = state
            .clients
            .values_mut()
            .max_by_key(|client| waiting(client));
        // `own + 1`: at equal lengths after the swap, the two addresses would displace each other
        // forever. The longest therefore keeps at least one waiter, and its turn.
        let Some(longest) = longest.filter(|longest| waiting(longest) > own + 1) else {
            return false;
        };
        // The last waiter has waited the shortest time. Dropping its sender wakes it with an error.
        longest.waiters.pop_back();
        state.queued -= 1;
        self.metrics.queued.dec();
        true
    }

    /// Gives free slots to waiters, one client address after the other.
    fn admit(self: &Arc<Self>) {
        // A waiter may have been dropped without its destructor having run yet: the send fails and
        // returns the slot. Dropping the slot takes the lock, so it has to wait until after the
        // loop; its own call of `admit` then serves the next waiter.
        let mut unclaimed = Vec::new();
        let mut state = self.state();
        // Number of consecutive addresses at their share. Once it reaches the number of addresses,
        // no waiter can be admitted.
        let mut skipped = 0;
        while skipped < state.turns.len() {
            let Some(client) = state.turns.pop_front() else {
                break;
            };
            if !self.has_slot(&state, client) {
                state.turns.push_back(client);
                skipped += 1;
                continue;
            }
            skipped = 0;
            let waiters = state
                .clients
                .get_mut(&client)
                .map(|client| &mut client.waiters);
            let Some(waiter) = waiters.and_then(VecDeque::pop_front) else {
                continue;
            };
            state.queued -= 1;
            self.metrics.queued.dec();
            if state
                .clients
                .get(&client)
                .is_some_and(|client| !client.waiters.is_empty())
            {
                state.turns.push_back(client);
            }
            let slot = self.occupy(&mut state, Some(client));
            unclaimed.extend(waiter.admitted.send(slot).err());
        }
        drop(state);
        drop(unclaimed);
    }

    fn leave(self: &Arc<Self>, client: Option<ClientAddress>) {
        let mut state = self.state();
        self.metrics.in_flight.dec();
        // Refreshes have their own slots, for which nothing waits.
        let Some(client) = client else {
            state.refreshes -= 1;
            return;
        };
        state.in_flight -= 1;
        if let Some(known) = state.clients.get_mut(&client) {
            known.in_flight -= 1;
        }
        state.remove_idle(client);
        drop(state);
        self.admit();
    }
}

impl State {
    fn remove_idle(&mut self, client: ClientAddress) {
        if self
            .clients
            .get(&client)
            .is_some_and(|client| client.in_flight == 0 && client.waiters.is_empty())
        {
            self.clients.remove(&client);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.leave(self.client);
    }
}

/// Entry of a waiter in the queue. Dropping it removes the waiter.
struct QueueEntry {
    shared: Arc<Shared>,
    client: ClientAddress,
    /// `None` after admission.
    ticket: Option<u64>,
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        // After `admit` has sent the slot and before the waiter is polled, the entry is not found
        // here: the slot in the channel returns itself when the receiver is dropped.
        let Some(ticket) = self.ticket else { return };
        let mut state = self.shared.state();
        let Some(client) = state.clients.get_mut(&self.client) else {
            return;
        };
        let Some(index) = client
            .waiters
            .iter()
            .position(|waiter| waiter.ticket == ticket)
        else {
            return;
        };
        let waiter = client.waiters.remove(index);
        if client.waiters.is_empty() {
            state.turns.retain(|turn| *turn != self.client);
        }
        state.queued -= 1;
        self.shared.metrics.queued.dec();
        state.remove_idle(self.client);
        // The waiter's sender is dropped without the lock: it may wake a task.
        drop(state);
        drop(waiter);
    }
}

#[cfg(test)]
mod tests;
