use super::*;
use crate::testing::client;
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

type Entering<'a> = Pin<Box<dyn Future<Output = Result<Slot, Rejection>> + 'a>>;

/// Enters, and asserts that the call waits.
fn waiting(admission: &Admission, client: ClientAddress) -> Entering<'_> {
    let mut entering: Entering<'_> = Box::pin(admission.enter(client));
    assert!(entering.as_mut().now_or_never().is_none(), "the call waits");
    entering
}

fn admitted(entering: &mut Entering<'_>) -> Option<Slot> {
    entering
        .as_mut()
        .now_or_never()
        .map(|entered| entered.expect("admitted"))
}

#[tokio::test]
async fn limits_reviews_in_flight_per_client_address() {
    let admission = admission(6, 64);
    let _first = [
        admission.enter(client(1)).await.unwrap(),
        admission.enter(client(1)).await.unwrap(),
    ];
    let _waits = waiting(&admission, client(1));
    let _second = admission.enter(client(2)).await.unwrap();
    assert_eq!(
        (
            admission.0.metrics.in_flight.get(),
            admission.0.metrics.queued.get()
        ),
        (3, 1)
    );
}

#[tokio::test]
async fn reserves_slots_for_refreshes() {
    let admission = admission(4, 64);
    let _flood = [client(1), client(2), client(3)]
        .map(|client| admission.enter(client).now_or_never().unwrap());
    let _waits = waiting(&admission, client(4));
    let refresh = admission.try_enter().expect("a slot is reserved");
    assert!(admission.try_enter().is_none(), "refreshes are limited");
    drop(refresh);
    assert_eq!(
        admission.0.metrics.in_flight.get(),
        3,
        "the waiter does not get the reserved slot"
    );
}

#[tokio::test]
async fn admits_client_addresses_in_turn() {
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
    let other = admitted(&mut late).expect("the next turn belongs to the other address");
    drop(next);
    assert!(admitted(&mut flood[1]).is_some());
    drop(other);
}

#[tokio::test]
async fn removes_waiter_that_is_dropped() {
    let admission = admission(3, 64);
    let slots = [
        admission.enter(client(1)).await.unwrap(),
        admission.enter(client(2)).await.unwrap(),
    ];
    let (gone, mut stays) = (
        waiting(&admission, client(1)),
        waiting(&admission, client(1)),
    );
    drop(gone);
    assert_eq!(admission.0.metrics.queued.get(), 1);
    drop(slots);
    drop(admitted(&mut stays).expect("the dropped waiter takes no slot"));
    drop(stays);
    let state = admission.0.state();
    assert!(
        state.clients.is_empty() && state.turns.is_empty(),
        "{state:?}"
    );
    assert_eq!((state.in_flight, state.queued), (0, 0));
}

#[tokio::test]
async fn passes_on_slot_of_waiter_dropped_before_its_next_poll() {
    let admission = admission(3, 64);
    let slots = [
        admission.enter(client(1)).await.unwrap(),
        admission.enter(client(2)).await.unwrap(),
    ];
    let (gone, mut next) = (
        waiting(&admission, client(3)),
        waiting(&admission, client(3)),
    );
    drop(slots);
    drop(gone);
    assert!(admitted(&mut next).is_some());
    drop(next);
    assert_eq!(admission.0.state().in_flight, 0);
}

#[tokio::test]
async fn limits_queue_and_share_of_each_client_address() {
    let admission = admission(3, 16);
    let _slots = [
        admission.enter(client(1)).await.unwrap(),
        admission.enter(client(2)).await.unwrap(),
    ];
    let mut waiters = Vec::new();
    for last in 1..=8 {
        waiters.extend((0..2).map(|_| waiting(&admission, client(last))));
        let rejected = admission
            .enter(client(last))
            .now_or_never()
            .expect("rejected without waiting")
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
async fn evicts_waiter_of_longest_queue_for_new_address() {
    let admission = admission(3, 16);
    let slots = [
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
    drop(slots);
    // Each slot is dropped as soon as it is given: the ninth address has its turn after the other
    // eight.
    let mut rounds = 0;
    while admitted(&mut ninth).is_none() {
        rounds += 1;
        assert!(rounds <= 8, "the ninth address gets its turn");
        waiters.retain_mut(|waiter| waiter.as_mut().now_or_never().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn times_out_in_queue() {
    let admission = admission(3, 16);
    let _slots = [
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
