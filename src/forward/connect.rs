//! Endpoints of tunnels, without HTTP.

use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::dial::Protocol;
use super::retry::{Decision, Failure};
use super::{DialError, Forwarder, OwnAddresses, RetrySafety};
use crate::authorize::TunnelPermit;
use crate::balance::{EndpointKey, LoadBalancer};
use crate::http::Stream;
use crate::model::Endpoint;
use crate::resolve::{Candidates, Transport, TunnelRoute};

/// A failed connect says the same about an endpoint as that of a request in clear text.
const TRANSPORT: Transport = Transport::Http;

impl Forwarder {
    /// Selects the endpoint of a flow of datagrams, for which there is no connection to fail.
    ///
    /// # Errors
    /// [`DialError::SelfCall`] if every endpoint is a UDP listener of this process, where the
    /// datagrams would circulate (CONFORMANCE C110).
    pub fn select_tunnel(
        &self,
        _permit: &TunnelPermit<'_>,
        route: &TunnelRoute,
        client: IpAddr,
    ) -> Result<Endpoint, DialError> {
        let candidates = &route.candidates;
        select_foreign(&self.balance, candidates, client, &self.dialer.own_udp)
    }

    /// Connects to the endpoints in turn until one accepts, as often as the retry policy allows.
    /// `dialed` is set to each endpoint before it is tried.
    ///
    /// # Errors
    /// The failures of all endpoints that were tried, in their order.
    pub async fn connect_tunnel(
        &self,
        _permit: &TunnelPermit<'_>,
        route: &TunnelRoute,
        client: IpAddr,
        dialed: &mut Option<Endpoint>,
    ) -> Result<Stream, Vec<DialError>> {
        let order = self.balance.select(&route.candidates, TRANSPORT, client);
        self.connect_in_order(&route.candidates, order, dialed)
            .await
    }

    /// As [`Self::connect_tunnel`], for a client of a listener, which is public. `preferred` is
    /// tried first if it is among the candidates and accepts connections. Only the others take turns, so
    /// that clients that keep their endpoint do not affect which one a new client gets.
    ///
    /// # Errors
    /// The failures of all endpoints that were tried, in their order.
    pub async fn connect_listener(
        &self,
        candidates: &Candidates,
        preferred: Option<SocketAddr>,
        client: IpAddr,
        dialed: &mut Option<Endpoint>,
    ) -> Result<Stream, Vec<DialError>> {
        let endpoints = candidates.endpoints();
        let preferred = preferred.and_then(|address| {
            let endpoint = endpoints.iter().find(|it| it.address == address)?;
            let is_only = endpoints.len() == 1;
            (is_only || self.balance.admits_connection(key(endpoint))).then_some(endpoint)
        });
        let others = iter::once_with(|| self.balance.select(candidates, TRANSPORT, client));
        let is_other =
            |it: &&Endpoint| preferred.is_none_or(|preferred| preferred.address != it.address);
        let order = preferred
            .into_iter()
            .chain(others.flatten().filter(is_other));
        self.connect_in_order(candidates, order, dialed).await
    }

    /// `order` has all endpoints of the candidates.
    async fn connect_in_order<'e>(
        &self,
        candidates: &Candidates,
        order: impl Iterator<Item = &'e Endpoint>,
        dialed: &mut Option<Endpoint>,
    ) -> Result<Stream, Vec<DialError>> {
        let count = candidates.endpoints().len();
        let choice = count > 1;
        let mut attempts = self.retry.begin_connection(choice, Instant::now());
        let mut failures = Vec::new();
        for (tried, endpoint) in (1..).zip(order) {
            *dialed = Some(endpoint.clone());
            let others = tried < count;
            let key = key(endpoint);
            let started = Instant::now();
            let limit = attempts.connect_timeout(others);
            let connected = self.dialer.dial(key, Protocol::Http1, None, limit).await;
            attempts.spent_connecting(started.elapsed());
            let error = match connected {
                Ok(stream) => {
                    if choice {
                        self.balance.record_connect(key);
                    }
                    return Ok(stream);
                }
                Err(error) => error,
            };
            if choice && error.is_unreachable() {
                self.balance.record_connect_failure(key);
            }
            failures.push(error);
            let failure = Failure {
                safety: RetrySafety::Unsent,
                reused: false,
                requires_http1: false,
            };
            if attempts.after(failure, others, Instant::now()) == Decision::GiveUp {
                break;
            }
        }
        Err(failures)
    }
}

fn key(endpoint: &Endpoint) -> EndpointKey {
    EndpointKey {
        address: endpoint.address,
        transport: TRANSPORT,
    }
}

/// Selects the first endpoint that is not a UDP listener of this process.
fn select_foreign(
    balance: &LoadBalancer,
    candidates: &Candidates,
    client: IpAddr,
    own: &OwnAddresses,
) -> Result<Endpoint, DialError> {
    let mut refused = None;
    for endpoint in balance.select_for_datagrams(candidates, client) {
        if !own.contains(endpoint.address) {
            return Ok(endpoint.clone());
        }
        refused.get_or_insert(endpoint.address);
    }
    Err(DialError::SelfCall {
        network: "udp",
        address: refused.expect("a route has an endpoint"),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::cluster::Affinity;
    use crate::metrics::EjectionMetrics;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn balance() -> LoadBalancer {
        LoadBalancer::new(EjectionMetrics::default())
    }

    fn candidates(addresses: &[&str]) -> Candidates {
        let endpoints = addresses.iter().map(|address| Endpoint {
            address: address.parse().unwrap(),
            name: "p".into(),
        });
        Candidates::Port {
            endpoints: endpoints.collect(),
            rotation: Arc::default(),
            affinity: Affinity::None,
        }
    }

    #[test]
    fn datagrams_never_go_to_a_listener_of_this_process() {
        let own = OwnAddresses::default();
        own.set_listeners(vec!["10.0.0.1:53".parse().unwrap()]);
        let select =
            |addresses: &[&str]| select_foreign(&balance(), &candidates(addresses), CLIENT, &own);
        for other in ["10.0.0.1:54", "10.0.0.2:53"] {
            let selected = select(&["10.0.0.1:53", other]).unwrap();
            assert_eq!(selected.address.to_string(), other);
        }
        let error = select(&["10.0.0.1:53"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "dial udp 10.0.0.1:53: refusing to proxy to the bastion itself"
        );
    }

    #[test]
    fn datagrams_neither_avoid_nor_probe_an_endpoint_that_is_ejected() {
        let (balance, own) = (balance(), OwnAddresses::default());
        let candidates = candidates(&["10.0.0.1:53", "10.0.0.2:53"]);
        let ejected = key(&candidates.endpoints()[0]);
        let is_selected = || {
            let selected = select_foreign(&balance, &candidates, CLIENT, &own);
            selected.unwrap().address == ejected.address
        };
        balance.record_connect_failure(ejected);
        assert_eq!([(); 4].map(|()| is_selected()), [true, false, true, false]);
        balance.record_connect(ejected);
        // The ejection has ended, and the next connection to the endpoint is the probe.
        let past = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        balance.record_stall(ejected, past);
        assert!(is_selected());
        let connects = [(); 2].map(|()| {
            let mut order = balance.select(&candidates, TRANSPORT, CLIENT);
            order.next().unwrap().address == ejected.address
        });
        assert_eq!(connects, [false, true]);
    }
}
