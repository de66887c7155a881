//! Resources of a client's connection: socket options, limits, and the guard that holds them.

use std::cell::Cell;
use std::hash::Hash;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use socket2::{SockRef, TcpKeepalive};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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

/// Limits on connections, shared by the workers.
#[derive(Clone, Debug)]
pub struct ConnectionQuota {
    /// Of all connections. `None` for no limit.
    connections: Option<Arc<Semaphore>>,
    /// Of each client address. `None` for no limit.
    clients: Option<Arc<ClientShares>>,
}

impl ConnectionQuota {
    /// Allows a number of connections, and a number for each client address; 0 for no limit.
    pub fn new(connections: usize, per_client: usize) -> Self {
        Self {
            connections: (connections > 0).then(|| Arc::new(Semaphore::new(connections))),
            clients: (per_client > 0).then(|| ClientShares::new(per_client)),
        }
    }

    /// Acquires the permits for a connection that was accepted from `client`. `None` if the address
    /// is at its limit and the connection must be closed. `delayed` is called if it must wait.
    pub async fn admit(
        &self,
        client: ClientAddress,
        delayed: impl FnOnce(),
    ) -> Option<ConnectionPermits> {
        let mut permits = ConnectionPermits::default();
        // Checked before the wait below, so that a client over its limit does not make others wait
        // behind it; and before TLS, so that it costs no more than the accept.
        if let Some(clients) = &self.clients {
            permits.share = Some(clients.take(client)?);
        }
        // The permit is acquired after the accept, so that an idle listener holds none. While one
        // accepted connection waits here, the others wait in the kernel's queue.
        if let Some(connections) = &self.connections {
            permits.permit = if let Ok(permit) = Arc::clone(connections).try_acquire_owned() {
                Some(permit)
            } else {
                delayed();
                Arc::clone(connections).acquire_owned().await.ok()
            };
        }
        Some(permits)
    }

    /// Exchanges the share of a load balancer's address for one of the client that it names.
    /// Returns false if the client is at its limit.
    #[must_use]
    pub fn transfer(&self, permits: &mut ConnectionPermits, client: ClientAddress) -> bool {
        let Some(clients) = &self.clients else {
            return true;
        };
        let share = clients.take(client);
        let is_taken = share.is_some();
        if is_taken {
            permits.share = share;
        }
        is_taken
    }
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

    use std::pin::pin;

    use tokio::time::timeout;

    use crate::metrics::OpenGauge;
    use crate::testing::client;

    const TIMEOUT: Duration = Duration::from_secs(90);

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

    #[tokio::test]
    async fn connection_of_client_at_its_limit_is_not_admitted() {
        let quota = ConnectionQuota::new(0, 1);
        let admit = async |last| quota.admit(client(last), || panic!("no wait")).await;
        let first = admit(1).await;
        assert!(first.is_some());
        assert!(admit(1).await.is_none());
        assert!(admit(2).await.is_some());
        drop(first);
        assert!(admit(1).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn connection_over_total_limit_waits_for_permit() {
        let quota = ConnectionQuota::new(1, 0);
        let first = quota.admit(client(1), || panic!("no wait")).await;
        let waits = Cell::new(false);
        let mut second = pin!(quota.admit(client(2), || waits.set(true)));
        assert!(timeout(TIMEOUT, second.as_mut()).await.is_err());
        assert!(waits.get());
        drop(first);
        assert!(second.await.unwrap().permit.is_some());
    }

    #[tokio::test]
    async fn client_at_its_limit_takes_no_permit() {
        let quota = ConnectionQuota::new(2, 1);
        let admit = async |last| quota.admit(client(last), || panic!("no wait")).await;
        let _first = admit(1).await;
        assert!(admit(1).await.is_none());
        assert!(admit(2).await.is_some());
    }

    #[tokio::test]
    async fn share_passes_from_load_balancer_to_its_client() {
        let quota = ConnectionQuota::new(0, 1);
        let (balancer, named) = (client(1), client(2));
        let admit = async || quota.admit(balancer, || panic!("no wait")).await;
        let mut first = admit().await.unwrap();
        assert!(quota.transfer(&mut first, named));
        let mut second = admit().await.unwrap();
        assert!(!quota.transfer(&mut second, named));
        assert!(
            admit().await.is_none(),
            "a rejected transfer keeps the share of the load balancer until the connection ends"
        );
        drop((first, second));
        let mut third = admit().await.unwrap();
        assert!(quota.transfer(&mut third, named));
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
