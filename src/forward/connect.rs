//! Endpoints of tunnels, without HTTP.

use std::net::IpAddr;
use std::time::Instant;

use super::dial::Protocol;
use super::retry::{Decision, Failure};
use super::{DialError, Forwarder, RetrySafety};
use crate::authorize::TunnelPermit;
use crate::balance::EndpointKey;
use crate::http::Stream;
use crate::model::Endpoint;
use crate::resolve::{Transport, TunnelRoute};

impl Forwarder {
    /// Selects the endpoint of a flow of datagrams, for which there is no connection to fail.
    pub fn select_tunnel(
        &self,
        _permit: &TunnelPermit<'_>,
        route: &TunnelRoute,
        client: IpAddr,
    ) -> Endpoint {
        let candidates = &route.candidates;
        let mut order = self.balance.select(candidates, Transport::Http, client);
        let first = order.next();
        first.expect("a route has an endpoint").clone()
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
        // A failed connect says the same about an endpoint as that of a request in clear text.
        let transport = Transport::Http;
        let mut order = self.balance.select(&route.candidates, transport, client);
        let choice = order.len() > 1;
        let budget = route.candidates.retries();
        let mut attempts = self.retry.begin(budget, choice, false, Instant::now());
        let mut failures = Vec::new();
        while let Some(endpoint) = order.next() {
            *dialed = Some(endpoint.clone());
            let others = order.len() > 0;
            let key = EndpointKey {
                address: endpoint.address,
                transport,
            };
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
