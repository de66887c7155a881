//! Servers that do not respond over HTTP/1.1, which has no PING that finds a frozen one.

use std::io;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tokio::time::sleep;

use crate::apiservers::{ApiServer, Health};
use crate::forward::ConnectionError;
use crate::forward::classify::Classified;
use crate::forward::request::Pending;
use crate::forward::retry::RetrySafety;
use crate::http::h1::ExchangeError;

/// Interval at which the health of a server is read while a request waits for its response.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// Number of intervals in [`RESPONSE_TIMEOUT`].
const MAX_INTERVALS: u32 = 15;
/// Maximum wait for a response. API servers end requests after 60 s, except for those whose response
/// begins immediately.
const RESPONSE_TIMEOUT: Duration = HEALTH_INTERVAL.saturating_mul(MAX_INTERVALS);

/// Waits until a server has not responded to a request for [`RESPONSE_TIMEOUT`]. Unless `is_limited`,
/// only the time counts in which the server has the complete request and its health checks fail: an
/// application behind a healthy server may take longer.
///
/// Boxed, so that the futures of requests stay small.
pub(super) fn frozen<'a>(
    server: &'a ApiServer,
    pending: &'a Pending<'_>,
    is_limited: bool,
) -> LocalBoxFuture<'a, ()> {
    if is_limited {
        return Box::pin(sleep(RESPONSE_TIMEOUT));
    }
    Box::pin(async move {
        let mut failed = 0;
        for interval in 1_u32.. {
            sleep(HEALTH_INTERVAL).await;
            let is_sent = pending.body().is_none_or(|body| body.ended().is_some());
            failed = if is_sent && server.health() == Health::Unreachable {
                failed + 1
            } else {
                0
            };
            if failed == MAX_INTERVALS {
                break;
            }
            if interval.is_multiple_of(MAX_INTERVALS) {
                // The only server of a set may have no other health checks.
                server.suspect();
            }
        }
    })
}

/// Returns the failure of a server that does not respond.
pub(super) fn no_response() -> Classified {
    let source = io::Error::new(io::ErrorKind::TimedOut, "no response in time");
    Classified::Broken {
        source: ConnectionError::Http1(ExchangeError::Io { source, sent: true }),
        safety: RetrySafety::IfSafe,
        requires_http1: false,
    }
}
