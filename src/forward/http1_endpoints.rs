//! Endpoints that require HTTP/1.1 although they select HTTP/2.

use std::time::{Duration, Instant};

use dashmap::DashMap;

use crate::balance::EndpointKey;

/// Time for which an endpoint gets requests over HTTP/1.1 only. Short, because the address may
/// belong to another pod later; each expiry costs one request over HTTP/2.
const TTL: Duration = Duration::from_mins(5);
/// Maximum number of endpoints. Requests to further ones are sent over HTTP/2 first.
const MAX_ENDPOINTS: usize = 4096;

/// Endpoints that have declared that they require HTTP/1.1 (RFC 9113 section 7). Shared by the
/// workers; read only before a connection is opened.
#[derive(Debug, Default)]
pub struct Http1Endpoints(DashMap<EndpointKey, Instant>);

impl Http1Endpoints {
    /// Adds an endpoint, or extends its time.
    pub(super) fn insert(&self, key: EndpointKey, now: Instant) {
        if self.0.len() >= MAX_ENDPOINTS {
            self.0.retain(|_, since| !is_expired(*since, now));
        }
        // Workers that insert at the same time may exceed the limit by one each.
        if self.0.len() < MAX_ENDPOINTS || self.0.contains_key(&key) {
            self.0.insert(key, now);
        }
    }

    /// Returns true if the endpoint requires HTTP/1.1.
    pub(super) fn contains(&self, key: EndpointKey, now: Instant) -> bool {
        self.0
            .get(&key)
            .is_some_and(|since| !is_expired(*since, now))
    }
}

fn is_expired(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= TTL
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::Ipv4Addr;

    use crate::resolve::Transport;

    fn key(number: usize, transport: Transport) -> EndpointKey {
        let address = Ipv4Addr::from(u32::try_from(number).unwrap());
        EndpointKey {
            address: (address, 443).into(),
            transport,
        }
    }

    #[test]
    fn forgets_endpoints_after_ttl() {
        let (endpoints, now) = (Http1Endpoints::default(), Instant::now());
        let https = key(1, Transport::Https);
        endpoints.insert(https, now);
        assert!(endpoints.contains(https, now));
        assert!(!endpoints.contains(key(1, Transport::Kubelet), now));
        assert!(!endpoints.contains(key(2, Transport::Https), now));
        assert!(!endpoints.contains(https, now + TTL));
    }

    #[test]
    fn bounds_number_of_endpoints_and_replaces_expired_ones() {
        let (endpoints, now) = (Http1Endpoints::default(), Instant::now());
        let https = |number| key(number, Transport::Https);
        for number in 0..=MAX_ENDPOINTS {
            endpoints.insert(https(number), now);
        }
        assert_eq!(endpoints.0.len(), MAX_ENDPOINTS);
        assert!(!endpoints.contains(https(MAX_ENDPOINTS), now));
        let later = now + TTL / 2;
        endpoints.insert(https(0), later);
        assert!(
            endpoints.contains(https(0), now + TTL),
            "its time is extended"
        );
        endpoints.insert(https(MAX_ENDPOINTS), now + TTL);
        assert_eq!(endpoints.0.len(), 2);
        assert!(endpoints.contains(https(MAX_ENDPOINTS), now + TTL));
    }
}
