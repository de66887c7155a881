//! `sessionAffinity: ClientIP`: the endpoint that a client address used last.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::loadbalancer::ListenerKey;

/// Maximum number of client addresses of all listeners. Beyond it, the least used are forgotten and
/// get an endpoint in turn.
const MAX_CLIENTS: usize = 64 * 1024;

/// Endpoints of client addresses, shared by the workers. Replicas of the bastion do not share it.
#[derive(Debug)]
pub struct AffinityTable(Cache<(ListenerKey, IpAddr), (SocketAddr, Instant)>);

impl Default for AffinityTable {
    fn default() -> Self {
        Self(Cache::new(MAX_CLIENTS))
    }
}

impl AffinityTable {
    /// Returns the endpoint that the client used within the last `timeout`.
    pub(super) fn endpoint(
        &self,
        listener: ListenerKey,
        client: IpAddr,
        timeout: Duration,
        now: Instant,
    ) -> Option<SocketAddr> {
        let (endpoint, used) = self.0.get(&(listener, client.to_canonical()))?;
        (now.duration_since(used) < timeout).then_some(endpoint)
    }

    /// Records that the client uses an endpoint.
    pub(super) fn record(
        &self,
        listener: ListenerKey,
        client: IpAddr,
        endpoint: SocketAddr,
        now: Instant,
    ) {
        self.0
            .insert((listener, client.to_canonical()), (endpoint, now));
    }

    /// Forgets that the client uses an endpoint, which has failed.
    pub(super) fn forget(&self, listener: ListenerKey, client: IpAddr, endpoint: SocketAddr) {
        self.0
            .remove_if(&(listener, client.to_canonical()), |(used, _)| {
                *used == endpoint
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadbalancer::Protocol;

    #[test]
    fn client_keeps_its_endpoint_until_the_timeout() {
        let (table, start) = (AffinityTable::default(), Instant::now());
        let listener = |port| ListenerKey {
            address: IpAddr::from([127, 0, 0, 1]),
            port,
            protocol: Protocol::Tcp,
        };
        let client = IpAddr::from([192, 0, 2, 1]);
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let timeout = Duration::from_mins(1);
        table.record(listener(80), client, endpoint, start);
        let at = |port, client: IpAddr, seconds| {
            let now = start + Duration::from_secs(seconds);
            table.endpoint(listener(port), client, timeout, now)
        };
        assert_eq!(at(80, client, 59), Some(endpoint));
        assert_eq!(
            at(80, "::ffff:192.0.2.1".parse().unwrap(), 59),
            Some(endpoint)
        );
        assert_eq!(at(80, client, 60), None);
        assert_eq!(at(81, client, 0), None);
        assert_eq!(at(80, IpAddr::from([192, 0, 2, 2]), 0), None);
        table.record(listener(80), client, endpoint, start + timeout);
        assert_eq!(at(80, client, 100), Some(endpoint));
        table.forget(listener(80), client, SocketAddr::from(([10, 0, 0, 2], 80)));
        assert_eq!(at(80, client, 100), Some(endpoint));
        table.forget(listener(80), client, endpoint);
        assert_eq!(at(80, client, 100), None);
    }
}
