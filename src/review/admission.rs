//! Admission of reviews: a bounded number in flight, a bounded queue behind them, and fair turns
//! between the addresses of clients, so that no caller can exhaust the API or lock the others out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config;
use crate::metrics::ReviewMetrics;
use crate::model::ClientAddress;

/// The part of the places in flight that one client address may have.
const IN_FLIGHT_SHARE: usize = 2;
/// The part of the places in flight that is kept for refreshes: callers who are known already must
/// not lose their rights to a flood of strangers.
const REFRESH_SHARE: usize = 4;
/// The part of the queue that one client address may have.
const QUEUE_SHARE: usize = 8;

/// Admits reviews. Clones share the state.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Of reviews that callers wait for.
    max_in_flight: usize,
    max_refreshes: usize,
    max_queued: usize,
    timeout: Duration,
    metrics: ReviewMetrics,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_flight: usize,
    refreshes: usize,
    queued: usize,
    /// Distinguishes the waiters, so that one that leaves finds its place in the queue.
    next_ticket: u64,
    /// Only the addresses that have a review in flight or queued.
    clients: HashMap<ClientAddress, Client>,
    /// The addresses with waiters, in the order of their turns.
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
    admitted: oneshot::Sender<Place>,
}

/// The reason for rejecting a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("too many requests of this client address wait for a review")]
    ClientShare,
    #[error("too many requests wait for a review")]
    QueueFull,
    #[error("no review could begin in time")]
    Timeout,
}

/// The place of one review in flight. Dropping it admits the next.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    /// None for a refresh, which takes no client's share.
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

    /// Waits for a place among those in flight. A caller that is dropped leaves the queue.
    ///
    /// # Errors
    /// [`Rejection`] where the queue, or the client's share of it, is full, or the wait took too
    /// long.
    pub async fn enter(&self, client: ClientAddress) -> Result<Place, Rejection> {
        let (mut queued, admitted) = match self.enter_or_queue(client)? {
            Entered::Admitted(place) => return Ok(place),
            Entered::Queued(queued, admitted) => (queued, admitted),
        };
        match tokio::time::timeout(self.0.timeout, admitted).await {
            Ok(Ok(place)) => {
                queued.ticket = None;
                Ok(place)
            }
            // Its place in the queue went to an address with fewer waiters.
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

    /// A place for a refresh, where one is free: a refresh that has none is left to a later hit.
    pub fn try_enter(&self) -> Option<Place> {
        let mut state = self.0.state();
        (state.refreshes < self.0.max_refreshes).then(|| self.0.occupy(&mut state, None))
    }

    fn enter_or_queue(&self, client: ClientAddress) -> Result<Entered, Rejection> {
        let shared = &self.0;
        let mut state = shared.state();
        // Waiters of the same client go first; those of others are over their share, else they
        // would not wait.
        let waits = state
            .clients
            .get(&client)
            .is_some_and(|client| !client.waiters.is_empty());
        if !waits && shared.has_place(&state, client) {
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
            Queued {
                shared: Arc::clone(shared),
                client,
                ticket: Some(ticket),
            },
            admitted,
        ))
    }
}

enum Entered {
    Admitted(Place),
    Queued(Queued, oneshot::Receiver<Place>),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_place(&self, state: &State, client: ClientAddress) -> bool {
        let share = (self.max_in_flight / IN_FLIGHT_SHARE).max(1);
        state.in_flight < self.max_in_flight
            && state
                .clients
                .get(&client)
                .is_none_or(|client| client.in_flight < share)
    }

    fn occupy(self: &Arc<Self>, state: &mut State, client: Option<ClientAddress>) -> Place {
        match client {
            Some(client) => {
                state.in_flight += 1;
                state.clients.entry(client).or_default().in_flight += 1;
            }
            None => state.refreshes += 1,
        }
        self.metrics.in_flight.inc();
        Place {
            shared: Arc::clone(self),
            client,
        }
    }

    /// Makes room in a full queue for an address that has fewer waiters than another: else as many
    /// addresses as there are shares could keep all others out.
    fn displace(&self, state: &mut State, client: ClientAddress) -> bool {
        let waiting = |client: &Client| client.waiters.len();
        let own = state.clients.get(&client).map_or(0, waiting);
        let longest = state
            .clients
            .values_mut()
            .max_by_key(|client| waiting(client));
        let Some(longest) = longest.filter(|longest| waiting(longest) > own + 1) else {
            return false;
        };
        // Its last waiter has waited least. Dropping the sender wakes it.
        longest.waiters.pop_back();
        state.queued -= 1;
        self.metrics.queued.dec();
        true
    }

    /// Gives free places to the waiters, one client address after the other.
    fn admit(self: &Arc<Self>) {
        // A waiter that left without a word gives its place back here, and must find the lock free.
        let mut unclaimed = Vec::new();
        let mut state = self.state();
        let mut passed_over = 0;
        while passed_over < state.turns.len() {
            let Some(client) = state.turns.pop_front() else {
                break;
            };
            if !self.has_place(&state, client) {
                state.turns.push_back(client);
                passed_over += 1;
                continue;
            }
            passed_over = 0;
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
            let place = self.occupy(&mut state, Some(client));
            unclaimed.extend(waiter.admitted.send(place).err());
        }
        drop(state);
        drop(unclaimed);
    }

    fn leave(self: &Arc<Self>, client: Option<ClientAddress>) {
        let mut state = self.state();
        self.metrics.in_flight.dec();
        let Some(client) = client else {
            state.refreshes -= 1;
            return;
        };
        state.in_flight -= 1;
        if let Some(known) = state.clients.get_mut(&client) {
            known.in_flight -= 1;
        }
        state.forget_idle(client);
        drop(state);
        self.admit();
    }
}

impl State {
    fn forget_idle(&mut self, client: ClientAddress) {
        if self
            .clients
            .get(&client)
            .is_some_and(|client| client.in_flight == 0 && client.waiters.is_empty())
        {
            self.clients.remove(&client);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.leave(self.client);
    }
}

/// The place of a waiter in the queue.
struct Queued {
    shared: Arc<Shared>,
    client: ClientAddress,
    /// None once the waiter was admitted.
    ticket: Option<u64>,
}

impl Drop for Queued {
    fn drop(&mut self) {
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
        state.forget_idle(self.client);
        drop(state);
        drop(waiter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::pin::Pin;

    fn admission(max_in_flight: usize, max_queued: usize) -> Admission {
        let settings = config::Reviews {
            max_in_flight,
            max_queued,
            ..config::Reviews::default()
        };
        Admission::new(&settings, ReviewMetrics::default())
    }

    fn client(last: u8) -> ClientAddress {
        ClientAddress::from(std::net::IpAddr::from([192, 0, 2, last]))
    }

    type Entering<'a> = Pin<Box<dyn Future<Output = Result<Place, Rejection>> + 'a>>;

    /// Enters, which does not come to an end yet.
    fn waiting(admission: &Admission, of: ClientAddress) -> Entering<'_> {
        let mut entering: Entering<'_> = Box::pin(admission.enter(of));
        assert!(entering.as_mut().now_or_never().is_none(), "it waits");
        entering
    }

    fn admitted(entering: &mut Entering<'_>) -> Option<Place> {
        entering
            .as_mut()
            .now_or_never()
            .map(|entered| entered.expect("it was admitted"))
    }

    #[tokio::test]
    async fn a_client_address_has_at_most_its_share_in_flight_and_the_others_find_a_place() {
        let admission = admission(6, 64);
        let _hers = [
            admission.enter(client(1)).await.unwrap(),
            admission.enter(client(1)).await.unwrap(),
        ];
        let _waits = waiting(&admission, client(1));
        let _his = admission.enter(client(2)).await.unwrap();
        assert_eq!(
            (
                admission.0.metrics.in_flight.get(),
                admission.0.metrics.queued.get()
            ),
            (3, 1)
        );
    }

    #[tokio::test]
    async fn a_flood_leaves_places_for_refreshes() {
        let admission = admission(4, 64);
        let _flood = [client(1), client(2), client(3)]
            .map(|client| admission.enter(client).now_or_never().unwrap());
        let _waits = waiting(&admission, client(4));
        let refresh = admission.try_enter().expect("a place is kept");
        assert!(
            admission.try_enter().is_none(),
            "refreshes have a limit of their own"
        );
        drop(refresh);
        assert_eq!(
            admission.0.metrics.in_flight.get(),
            3,
            "the waiter does not get it"
        );
    }

    #[tokio::test]
    async fn free_places_go_to_client_addresses_in_turn() {
        let admission = admission(3, 64);
        let (first, second) = (
            admission.enter(client(1)).await.unwrap(),
            admission.enter(client(2)).await.unwrap(),
        );
        let mut flood: Vec<_> = (0..5).map(|_| waiting(&admission, client(1))).collect();
        let mut late = waiting(&admission, client(3));
        drop(first);
        let next = admitted(&mut flood[0]).expect("first come, first served");
        drop(second);
        assert!(admitted(&mut flood[1]).is_none());
        let other = admitted(&mut late).expect("the next turn is of the other address");
        drop(next);
        assert!(admitted(&mut flood[1]).is_some());
        drop(other);
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_leaves_nothing_behind() {
        let admission = admission(3, 64);
        let places = [
            admission.enter(client(1)).await.unwrap(),
            admission.enter(client(2)).await.unwrap(),
        ];
        let (gone, mut stays) = (
            waiting(&admission, client(1)),
            waiting(&admission, client(1)),
        );
        drop(gone);
        assert_eq!(admission.0.metrics.queued.get(), 1);
        drop(places);
        drop(admitted(&mut stays).expect("the one that left takes no place"));
        drop(stays);
        let state = admission.0.state();
        assert!(
            state.clients.is_empty() && state.turns.is_empty(),
            "{state:?}"
        );
        assert_eq!((state.in_flight, state.queued), (0, 0));
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_between_its_admission_and_its_next_poll_passes_its_place_on() {
        let admission = admission(3, 64);
        let places = [
            admission.enter(client(1)).await.unwrap(),
            admission.enter(client(2)).await.unwrap(),
        ];
        let (gone, mut next) = (
            waiting(&admission, client(3)),
            waiting(&admission, client(3)),
        );
        drop(places);
        drop(gone);
        assert!(admitted(&mut next).is_some());
        drop(next);
        assert_eq!(admission.0.state().in_flight, 0);
    }

    #[tokio::test]
    async fn the_queue_and_each_share_of_it_are_bounded() {
        let admission = admission(3, 16);
        let _places = [
            admission.enter(client(1)).await.unwrap(),
            admission.enter(client(2)).await.unwrap(),
        ];
        let mut waiters = Vec::new();
        for last in 1..=8 {
            waiters.extend((0..2).map(|_| waiting(&admission, client(last))));
            let rejected = admission
                .enter(client(last))
                .now_or_never()
                .expect("it does not wait")
                .unwrap_err();
            let full = if last == 8 {
                Rejection::QueueFull
            } else {
                Rejection::ClientShare
            };
            assert_eq!(rejected, full, "client {last}");
        }
        let metrics = &admission.0.metrics;
        assert_eq!(
            (
                metrics.rejected_client_share.get(),
                metrics.rejected_queue_full.get()
            ),
            (7, 1)
        );
    }

    #[tokio::test]
    async fn an_address_without_waiters_gets_a_place_in_a_full_queue() {
        let admission = admission(3, 16);
        let places = [
            admission.enter(client(1)).await.unwrap(),
            admission.enter(client(2)).await.unwrap(),
        ];
        let lasts = (1..=8).flat_map(|last| [last, last]);
        let mut waiters: Vec<_> = lasts
            .map(|last| waiting(&admission, client(last)))
            .collect();
        let mut ninth = waiting(&admission, client(9));
        let mut displaced = Vec::new();
        waiters.retain_mut(|waiter| match waiter.as_mut().now_or_never() {
            Some(entered) => {
                displaced.push(entered.unwrap_err());
                false
            }
            None => true,
        });
        assert_eq!(displaced, [Rejection::QueueFull]);
        assert_eq!(
            (admission.0.metrics.queued.get(), admission.0.state().queued),
            (16, 16)
        );
        drop(places);
        // Each place is left as soon as it is given: the ninth has its turn after those of the
        // eight.
        let mut rounds = 0;
        while admitted(&mut ninth).is_none() {
            rounds += 1;
            assert!(rounds <= 8, "its turn comes");
            waiters.retain_mut(|waiter| waiter.as_mut().now_or_never().is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_bounded() {
        let admission = admission(3, 16);
        let _places = [
            admission.enter(client(1)).await.unwrap(),
            admission.enter(client(2)).await.unwrap(),
        ];
        assert_eq!(
            admission.enter(client(3)).await.unwrap_err(),
            Rejection::Timeout
        );
        let state = admission.0.state();
        assert_eq!(
            (state.queued, state.turns.len(), state.clients.len()),
            (0, 0, 2)
        );
    }
}
