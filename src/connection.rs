//! What a client's connection takes up as long as anything of it is open.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::metrics::OpenGuard;
use crate::model::ClientAddress;

/// A peer that is silent for so long is asked whether it is there, as often again, and given up
/// after so many times: one that vanished must not hold its place, and its tunnel's other end, for
/// ever. They are Go's.
const SILENCE: Duration = Duration::from_secs(15);
const PROBES: u32 = 9;

/// Sets up a connection, of either side.
///
/// # Errors
/// Where the peer has reset it already.
pub fn configure_socket(stream: &TcpStream) -> io::Result<()> {
    // Without it a small message waits for the acknowledgement of the one before (Nagle).
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(SILENCE)
        .with_interval(SILENCE)
        .with_retries(PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Open connections of each client address, over all workers. It is touched when a connection is
/// accepted and when it ends, never by a request.
#[derive(Debug)]
pub struct ClientShares {
    limit: usize,
    /// Holds addresses with open connections only, so that it is no longer than there are
    /// connections.
    open: DashMap<ClientAddress, usize>,
}

/// One connection of a client address; dropping it gives its place back.
#[derive(Debug)]
pub struct ClientShare {
    shares: Arc<ClientShares>,
    client: ClientAddress,
}

impl ClientShares {
    /// `limit` connections for each address.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: DashMap::new(),
        })
    }

    /// A place for one more connection of `client`. None where it has its share.
    pub fn take(self: &Arc<Self>, client: ClientAddress) -> Option<ClientShare> {
        let mut open = self.open.entry(client).or_insert(0);
        if *open >= self.limit {
            return None;
        }
        *open += 1;
        Some(ClientShare {
            shares: Arc::clone(self),
            client,
        })
    }
}

impl Drop for ClientShare {
    fn drop(&mut self) {
        if let Entry::Occupied(mut open) = self.shares.open.entry(self.client) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// The places that a connection holds under the limits.
#[derive(Debug, Default)]
pub struct ConnectionPermits {
    /// Among all connections. None where there is no limit.
    pub permit: Option<OwnedSemaphorePermit>,
    /// Among those of its client address.
    pub share: Option<ClientShare>,
}

/// A place among the connections that may be open, and one in the metrics. The connection holds it,
/// and so does each of its requests until the answer's last byte, and each tunnel, which may
/// outlive the connection's own task.
#[derive(Clone, Debug)]
pub struct ConnectionGuard(Rc<Tracked>);

#[derive(Debug)]
struct Tracked {
    _counted: OpenGuard,
    _places: Option<ConnectionPermits>,
    /// How many times it was taken up.
    used: Cell<u64>,
}

impl ConnectionGuard {
    pub fn new(counted: OpenGuard, places: Option<ConnectionPermits>) -> Self {
        Self(Rc::new(Tracked {
            _counted: counted,
            _places: places,
            used: Cell::new(0),
        }))
    }

    /// For one more request.
    pub fn track_request(&self) -> Self {
        self.0.used.set(self.0.used.get() + 1);
        self.clone()
    }

    /// How many requests there have been, where none is open now and the connection alone holds its
    /// place.
    pub fn idle_since(&self) -> Option<u64> {
        (Rc::strong_count(&self.0) == 1).then(|| self.0.used.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn a_client_address_gets_its_share_and_no_more() {
        let shares = ClientShares::new(2);
        let take = |client: &str| shares.take(client.parse::<IpAddr>().unwrap().into());
        let (first, second) = (take("192.0.2.1"), take("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some() && take("192.0.2.1").is_none());
        let other = take("192.0.2.2");
        assert!(other.is_some(), "another address has its own");
        drop(first);
        let third = take("192.0.2.1");
        assert!(third.is_some() && take("192.0.2.1").is_none());
        drop((second, third, other));
        assert!(
            shares.open.is_empty(),
            "an address without connections takes no memory"
        );
    }
}
