//! UDP listeners: the datagrams of a client socket go to one endpoint.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::flow::{Flow, OpenFlow};
use super::flow_table::{FlowKey, FlowTable};
use super::{DataPath, SpecCell};
use crate::forward::OwnAddresses;
use crate::loadbalancer::{ListenerKey, ListenerSpec, Rejection};
use crate::model::Endpoint;
use crate::resolve::Candidates;
use crate::telemetry::LogLimit;
use crate::tunnel::udp::{Datagrams, Fragmentation, UdpSocket, is_transient};

/// Pause after a failed receive.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// Warnings about flows without a socket.
static NO_SOCKET: LogLimit = LogLimit::new(10);

/// Flows of a worker.
pub(super) type Flows = Rc<RefCell<FlowTable<OpenFlow>>>;

/// Takes over the socket of a listener.
pub(super) fn listener(socket: std::net::UdpSocket) -> io::Result<Rc<UdpSocket>> {
    UdpSocket::from_std(socket, Fragmentation::Allowed).map(Rc::new)
}

/// Listener with what it needs for datagrams that arrive together.
struct Receiver<'a> {
    path: &'a Rc<DataPath>,
    listener: ListenerKey,
    socket: &'a Rc<UdpSocket>,
    flows: &'a Flows,
    spec: Arc<ListenerSpec>,
    /// Looked up for the first datagram.
    candidates: Lookup,
    now: Instant,
}

/// Endpoints of the listener.
enum Lookup {
    Pending,
    /// `None` if there are none.
    Done(Option<Candidates>),
}

impl DataPath {
    /// Receives datagrams until the task is aborted.
    pub(super) async fn receive(
        self: Rc<Self>,
        listener: ListenerKey,
        socket: Rc<UdpSocket>,
        spec: Rc<SpecCell>,
        flows: Flows,
    ) {
        loop {
            if let Err(error) = socket.readable().await {
                tracing::debug!(%listener, %error, "a UDP listener ended");
                return;
            }
            let mut receiver = Receiver {
                path: &self,
                listener,
                socket: &socket,
                flows: &flows,
                spec: spec.get(),
                candidates: Lookup::Pending,
                now: Instant::now(),
            };
            match socket.try_receive(|datagrams| receiver.pass(datagrams)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%listener, %error, "failed to receive datagrams");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
            // The socket may always have datagrams.
            tokio::task::coop::consume_budget().await;
        }
    }
}

impl Receiver<'_> {
    /// Passes the datagrams of a client to the endpoint of their flow.
    fn pass(&mut self, datagrams: Datagrams<'_>) {
        let metrics = &self.path.metrics;
        let count = datagrams.count() as u64;
        let client = datagrams.from;
        let dropped = &metrics.dropped;
        match self.spec.check(client.ip(), datagrams.to) {
            Ok(()) => {}
            Err(Rejection::SourceRange) => {
                dropped.source_range.inc_by(count);
                return;
            }
            Err(Rejection::Address) => {
                dropped.address.inc_by(count);
                return;
            }
        }
        let key = FlowKey {
            listener: self.listener,
            client,
            local: datagrams
                .to
                .filter(|_| self.listener.address.is_unspecified()),
        };
        // An ICMP message about an earlier datagram ends the flow: then a new one sends.
        for _ in 0..2 {
            let Some(flow) = self.flow(key, count) else {
                return;
            };
            flow.used.set(self.now);
            let sent = flow
                .socket
                .send(flow.endpoint, None, datagrams.bytes, datagrams.size);
            match sent {
                Ok(()) => {
                    metrics.received.inc_by(datagrams.bytes.len() as u64);
                    metrics.datagrams_received.inc_by(count);
                    return;
                }
                Err(error) if is_transient(&error) => break,
                Err(_) => {
                    self.flows.borrow_mut().remove(&key);
                    let affinity = &self.path.affinity;
                    affinity.forget(key.listener, client.ip(), flow.endpoint);
                    // Others of a train may have been sent.
                    if count > 1 {
                        break;
                    }
                }
            }
        }
        metrics.dropped.not_sent.inc_by(count);
    }

    /// Returns the flow of a datagram, a new one if there is none or its endpoint is gone. `None` if
    /// the `count` datagrams must be dropped.
    fn flow(&mut self, key: FlowKey, count: u64) -> Option<Rc<Flow>> {
        let (path, spec) = (self.path, &self.spec);
        if matches!(self.candidates, Lookup::Pending) {
            self.candidates = Lookup::Done(path.candidates(key.listener, spec));
        }
        let mut flows = self.flows.borrow_mut();
        let Lookup::Done(Some(Candidates::Port {
            endpoints,
            rotation,
            ..
        })) = &self.candidates
        else {
            flows.remove(&key);
            path.metrics.dropped.no_endpoint.inc_by(count);
            return None;
        };
        if let Some(OpenFlow { flow, .. }) = flows.touch(&key, self.now) {
            if flow.is_among(endpoints) {
                return Some(Rc::clone(flow));
            }
            flows.remove(&key);
        }
        drop(flows);
        let is_listener = path.is_of_replica(key.listener.protocol, key.client);
        if is_listener || !is_client(key.client, &path.forwarder.dialer.own_udp) {
            path.metrics.dropped.source_address.inc_by(count);
            return None;
        }
        let client = key.client.ip();
        let preferred = spec.client_affinity.and_then(|timeout| {
            let endpoint = path
                .affinity
                .endpoint(key.listener, client, timeout, self.now)?;
            let is_candidate = endpoints.iter().any(|it| it.address == endpoint);
            is_candidate.then_some(endpoint)
        });
        let endpoint =
            preferred.unwrap_or_else(|| endpoints[rotation.advance() % endpoints.len()].address);
        if path.forwarder.dialer.own_udp.contains(endpoint) {
            // Datagrams would circulate (CONFORMANCE C110).
            path.metrics.dropped.no_endpoint.inc_by(count);
            return None;
        }
        if spec.client_affinity.is_some() {
            path.affinity
                .record(key.listener, client, endpoint, self.now);
        }
        let endpoints = Arc::clone(endpoints);
        self.open(key, endpoint, endpoints, count)
    }

    fn open(
        &self,
        key: FlowKey,
        endpoint: SocketAddr,
        endpoints: Arc<[Endpoint]>,
        count: u64,
    ) -> Option<Rc<Flow>> {
        let metrics = &self.path.metrics;
        let Some(slot) = self.flows.borrow_mut().reserve(key.client.ip().into()) else {
            metrics.dropped.no_socket.inc_by(count);
            return None;
        };
        if slot.replaces {
            metrics.evicted_flows.inc();
        }
        let socket = match UdpSocket::connect(endpoint, Fragmentation::Allowed) {
            Ok(socket) => socket,
            Err(error) => {
                metrics.dropped.no_socket.inc_by(count);
                if NO_SOCKET.permits() {
                    tracing::warn!(listener = %key.listener, %error, "no socket for a UDP flow");
                }
                return None;
            }
        };
        let flow = Rc::new(Flow {
            socket,
            endpoint,
            endpoints: RefCell::new(endpoints),
            used: Cell::new(self.now),
            answered: Cell::new(false),
            _open: metrics.flows.enter(),
        });
        let task = tokio::task::spawn_local({
            let (flow, socket, flows) = (
                Rc::clone(&flow),
                Rc::clone(self.socket),
                Rc::clone(self.flows),
            );
            let metrics = metrics.clone();
            let affinity = Arc::clone(&self.path.affinity);
            async move {
                if flow.pass_answers(key, &socket, &metrics).await.is_err() {
                    affinity.forget(key.listener, key.client.ip(), flow.endpoint);
                }
                let mut flows = flows.borrow_mut();
                if flows
                    .peek(&key)
                    .is_some_and(|open| Rc::ptr_eq(&open.flow, &flow))
                {
                    flows.remove(&key);
                }
            }
        });
        let open = OpenFlow {
            flow: Rc::clone(&flow),
            task: task.abort_handle(),
        };
        self.flows.borrow_mut().insert(key, open, slot, self.now);
        Some(flow)
    }
}

/// Returns false for a source that must not be answered: a forged one without a port, or an own
/// listener, which would take the answer for a datagram of a client.
fn is_client(source: SocketAddr, own: &OwnAddresses) -> bool {
    source.port() != 0 && !own.contains(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_without_port_is_not_a_client() {
        let own = OwnAddresses::default();
        assert!(is_client(([127, 0, 0, 1], 53).into(), &own));
        assert!(!is_client(([127, 0, 0, 1], 0).into(), &own));
    }
}
