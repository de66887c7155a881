//! Resources of a client's connection: socket options, limits, and the guard that holds them.

use std::cell::Cell;
use std::hash::Hash;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use socket2::{SockRef, TcpKeepalive};
use tokio::sync::OwnedSemaphorePermit;

use crate::metrics::OpenGuard;
use crate::model::ClientAddress;

/// TCP keepalive, with Go's defaults: idle time before the first probe, which is also the interval
/// of the probes, and the number of lost probes after which the connection is closed. Without it a
/// peer that disappeared would hold its permits, and the other side of its tunnel, forever.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 9;

/// Sets the socket options of a connection on either side, or of a listener, from which its
/// connections inherit them.
///
/// # Errors
/// An I/O error if the peer has already reset the connection.
pub fn configure_socket<'s, S>(socket: &'s S) -> io::Result<()>
where
    SockRef<'s>: From<&'s S>,
{
    let socket = SockRef::from(socket);
    // With Nagle's algorithm a small message waits for the acknowledgement of the previous one.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_INTERVAL)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Number of open connections per client address, shared by all workers. Accessed when a connection
/// is accepted and when it ends, not by requests.
pub type ClientShares = Shares<ClientAddress>;

/// One connection of a client address; dropping it releases the share.
pub type ClientShare = Share<ClientAddress>;

/// Number of connections or tunnels per holder, each at most a limit.
#[derive(Debug)]
pub struct Shares<K: Eq + Hash> {
    limit: usize,
    /// Contains only holders of shares, so that its size is bounded by the number of shares.
    open: DashMap<K, usize>,
}

/// One share of a holder; dropping it releases the share.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    shares: Arc<Shares<K>>,
    holder: K,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// Allows `limit` shares per holder.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: DashMap::new(),
        })
    }

    /// Adds a share. `None` if the holder is at its limit.
    pub fn take(self: &Arc<Self>, holder: K) -> Option<Share<K>> {
        let mut open = self.open.entry(holder.clone()).or_insert(0);
        if *open >= self.limit {
            return None;
        }
        *open += 1;
        Some(Share {
            shares: Arc::clone(self),
            holder,
        })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        // The entry exists as long as there is a share.
        if let Some(mut open) = self.shares.open.get_mut(&self.holder) {
            *open -= 1;
        }
        self.shares
            .open
            .remove_if(&self.holder, |_, open| *open == 0);
    }
}

/// Permits that a connection holds under the connection limits.
#[derive(Debug, Default)]
pub struct ConnectionPermits {
    /// Permit of the limit on all connections. `None` without that limit.
    pub permit: Option<OwnedSemaphorePermit>,
    /// Share of its client address. `None` without that limit.
    pub share: Option<ClientShare>,
}

/// Permits and metrics of an open connection, released when the last clone is dropped. The
/// connection holds one clone, each request another until the last byte of its response, and each
/// tunnel another, because it may outlive the connection's task.
#[derive(Clone, Debug)]
pub struct ConnectionGuard(Rc<Tracked>);

#[derive(Debug)]
struct Tracked {
    _open: OpenGuard,
    _permits: Option<ConnectionPermits>,
    /// Number of requests so far.
    requests: Cell<u64>,
}

impl ConnectionGuard {
    pub fn new(open: OpenGuard, permits: Option<ConnectionPermits>) -> Self {
        Self(Rc::new(Tracked {
            _open: open,
            _permits: permits,
            requests: Cell::new(0),
        }))
    }

    /// Counts a request and returns the guard that it holds.
    pub fn track_request(&self) -> Self {
        self.0.requests.set(self.0.requests.get() + 1);
        self.clone()
    }

    /// Returns the number of requests so far if none is open, else `None`. Two equal values mean
    /// that the connection was idle between the calls.
    pub fn idle_after(&self) -> Option<u64> {
        (Rc::strong_count(&self.0) == 1).then(|| self.0.requests.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    use crate::metrics::OpenGauge;

    #[test]
    fn limits_connections_per_client_address() {
        let shares = ClientShares::new(2);
        let take = |client: &str| shares.take(client.parse::<IpAddr>().unwrap().into());
        let (first, second) = (take("192.0.2.1"), take("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some() && take("192.0.2.1").is_none());
        let other = take("192.0.2.2");
        assert!(other.is_some(), "other addresses have shares of their own");
        drop(first);
        let third = take("192.0.2.1");
        assert!(third.is_some() && take("192.0.2.1").is_none());
        drop((second, third, other));
        assert!(
            shares.open.is_empty(),
            "an address without connections is removed"
        );
    }

    #[test]
    fn guard_is_idle_only_between_requests() {
        let guard = ConnectionGuard::new(OpenGauge::default().enter(), None);
        assert_eq!(guard.idle_after(), Some(0));
        let request = guard.track_request();
        assert_eq!(guard.idle_after(), None);
        drop(request);
        assert_eq!(guard.idle_after(), Some(1), "a request came in between");
    }
}
