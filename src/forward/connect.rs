//! Endpoints of tunnels, without HTTP.

use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::dial::Protocol;
use super::retry::{Decision, Failure};
use super::{DialError, Forwarder, OwnAddresses, RetrySafety};
use crate::authorize::TunnelPermit;
use crate::balance::EndpointKey;
use crate::http::Stream;
use crate::model::Endpoint;
use crate::resolve::{Candidates, Transport, TunnelRoute};
use crate::tunnel::connect_udp;

/// Maximum number of endpoints that are tried for a flow of datagrams.
const MAX_SOCKETS: usize = 16;
/// A failed connect says the same about an endpoint as that of a request in clear text.
const TRANSPORT: Transport = Transport::Http;

impl Forwarder {
    /// Opens the socket of a flow of datagrams. Whether its endpoint receives them is not known.
    /// `dialed` is set to each endpoint before it is tried.
    ///
    /// # Errors
    /// The failures of the endpoints that were tried, in their order: [`DialError::SelfCall`] for
    /// a UDP listener of this process, where the datagrams would circulate (CONFORMANCE C110).
    pub fn connect_datagrams(
        &self,
        _permit: &TunnelPermit<'_>,
        route: &TunnelRoute,
        client: IpAddr,
        dialed: &mut Option<Endpoint>,
    ) -> Result<connect_udp::Connected, Vec<DialError>> {
        let order = self.balance.select_for_datagrams(&route.candidates, client);
        open_socket(order, &self.dialer.own_udp, dialed)
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

/// Opens a socket to the first endpoint that has a route, and that is not a UDP listener of this
/// process.
fn open_socket<'e>(
    order: impl Iterator<Item = &'e Endpoint>,
    own: &OwnAddresses,
    dialed: &mut Option<Endpoint>,
) -> Result<connect_udp::Connected, Vec<DialError>> {
    let mut failures = Vec::new();
    for endpoint in order.take(MAX_SOCKETS) {
        *dialed = Some(endpoint.clone());
        let address = endpoint.address;
        if own.contains(address) {
            failures.push(DialError::SelfCall {
                network: "udp",
                address,
            });
            continue;
        }
        match connect_udp::Connected::new(address) {
            Ok(socket) => return Ok(socket),
            Err(error) => failures.push(DialError::new("udp", address, error)),
        }
    }
    Err(failures)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::balance::LoadBalancer;
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

    /// Returns the address of the flow's endpoint, or the failures.
    fn connect(
        balance: &LoadBalancer,
        candidates: &Candidates,
        own: &OwnAddresses,
    ) -> Result<SocketAddr, Vec<String>> {
        let (order, mut dialed) = (balance.select_for_datagrams(candidates, CLIENT), None);
        match open_socket(order, own, &mut dialed) {
            Ok(_) => Ok(dialed.unwrap().address),
            Err(failures) => Err(failures.iter().map(ToString::to_string).collect()),
        }
    }

    #[tokio::test]
    async fn datagrams_never_go_to_a_listener_of_this_process() {
        let own = OwnAddresses::default();
        own.set_listeners(vec!["127.0.0.1:53".parse().unwrap()]);
        let connect = |addresses: &[&str]| connect(&balance(), &candidates(addresses), &own);
        for other in ["127.0.0.1:54", "127.0.0.2:53"] {
            let connected = connect(&["127.0.0.1:53", other]).unwrap();
            assert_eq!(connected.to_string(), other);
        }
        assert_eq!(
            connect(&["127.0.0.1:53"]).unwrap_err(),
            ["dial udp 127.0.0.1:53: refusing to proxy to the bastion itself"]
        );
    }

    #[tokio::test]
    async fn datagrams_go_to_another_endpoint_if_there_is_no_route() {
        let own = OwnAddresses::default();
        // A broadcast address, which a socket may not connect to without an option.
        let connect = |addresses: &[&str]| connect(&balance(), &candidates(addresses), &own);
        let connected = connect(&["255.255.255.255:53", "127.0.0.2:53"]).unwrap();
        assert_eq!(connected.to_string(), "127.0.0.2:53");
        let failures = connect(&["255.255.255.255:53"]).unwrap_err();
        assert!(failures[0].starts_with("dial udp 255.255.255.255:53: connect: "));
    }

    #[tokio::test]
    async fn datagrams_neither_avoid_nor_probe_an_endpoint_that_is_ejected() {
        let (balance, own) = (balance(), OwnAddresses::default());
        let candidates = candidates(&["127.0.0.1:53", "127.0.0.2:53"]);
        let ejected = key(&candidates.endpoints()[0]);
        let is_selected = || connect(&balance, &candidates, &own) == Ok(ejected.address);
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
