//! Admission of connections.

use super::*;
use tokio::time::{Instant, timeout};

use crate::metrics::OpenGauge;
use crate::testing::client;

const TIMEOUT: Duration = Duration::from_secs(90);

fn guard() -> ConnectionGuard {
    ConnectionGuard::new(OpenGauge::default().enter(), None)
}

fn limits(connections: Option<usize>, per_client: Option<usize>) -> Limits {
    Limits {
        handshake_timeout: TIMEOUT,
        timeouts: Timeouts {
            idle: TIMEOUT,
            head: TIMEOUT,
            body: TIMEOUT,
            write: TIMEOUT,
        },
        head_memory: HeadMemory::new(0),
        connections: connections.map(|limit| Arc::new(Semaphore::new(limit))),
        clients: per_client.map(ClientShares::new),
    }
}

fn metrics() -> ConnectionLimits {
    ConnectionLimits {
        over_share: Default::default(),
        proxy_header: Default::default(),
        delayed: Default::default(),
    }
}

#[tokio::test]
async fn closes_connection_of_client_at_its_limit() {
    let (limits, metrics) = (limits(None, Some(1)), metrics());
    let first = limits.admit(client(1), &metrics).await;
    assert!(first.is_some());
    assert!(limits.admit(client(1), &metrics).await.is_none());
    assert!(limits.admit(client(2), &metrics).await.is_some());
    assert_eq!((metrics.over_share.get(), metrics.delayed.get()), (1, 0));
    drop(first);
    assert!(limits.admit(client(1), &metrics).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn connection_over_total_limit_waits_for_permit() {
    let (limits, metrics) = (limits(Some(1), None), metrics());
    let first = limits.admit(client(1), &metrics).await;
    let mut second = pin!(limits.admit(client(2), &metrics));
    assert!(timeout(TIMEOUT, second.as_mut()).await.is_err());
    drop(first);
    assert!(second.await.unwrap().permit.is_some());
    assert_eq!((metrics.over_share.get(), metrics.delayed.get()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn client_at_its_limit_takes_no_permit() {
    let (limits, metrics) = (limits(Some(2), Some(1)), metrics());
    let _first = limits.admit(client(1), &metrics).await;
    assert!(limits.admit(client(1), &metrics).await.is_none());
    assert!(limits.admit(client(2), &metrics).await.is_some());
    assert_eq!(metrics.delayed.get(), 0);
}

#[tokio::test]
async fn share_passes_from_load_balancer_to_its_client() {
    let (limits, metrics) = (limits(None, Some(1)), metrics());
    let (balancer, named): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let mut first = limits.admit(balancer.into(), &metrics).await.unwrap();
    assert!(limits.transfer(&mut first, named).is_ok());
    let mut second = limits.admit(balancer.into(), &metrics).await.unwrap();
    assert!(
        matches!(limits.transfer(&mut second, named), Err(OpenError::ClientShare(client)) if client == named)
    );
    assert!(
        limits.admit(balancer.into(), &metrics).await.is_none(),
        "a rejected transfer keeps the share of the load balancer until the connection ends"
    );
    drop((first, second));
    let mut third = limits.admit(balancer.into(), &metrics).await.unwrap();
    assert!(limits.transfer(&mut third, named).is_ok());
}

#[tokio::test(start_paused = true)]
async fn unused_connection_is_idle_after_timeout() {
    let start = Instant::now();
    wait_until_idle(&guard(), TIMEOUT).await;
    assert_eq!(start.elapsed(), TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn connection_with_requests_is_not_idle() {
    let guard = guard();
    let request = guard.track_request();
    let mut idle = pin!(wait_until_idle(&guard, TIMEOUT));
    assert!(timeout(10 * TIMEOUT, idle.as_mut()).await.is_err());
    drop(request);
    for _ in 0..3 {
        // Shorter than the interval: a request in each keeps the connection in use.
        assert!(timeout(TIMEOUT / 2, idle.as_mut()).await.is_err());
        drop(guard.track_request());
    }
    let last = Instant::now();
    idle.await;
    assert!((TIMEOUT..=2 * TIMEOUT).contains(&last.elapsed()));
}
