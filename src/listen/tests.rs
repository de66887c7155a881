//! Idle connections.

use super::*;
use tokio::time::{Instant, timeout};

use crate::metrics::OpenGauge;

const TIMEOUT: Duration = Duration::from_secs(90);

fn guard() -> ConnectionGuard {
    ConnectionGuard::new(OpenGauge::default().enter(), None)
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
