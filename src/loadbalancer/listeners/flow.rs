//! UDP flow: the datagrams of one client socket, and the socket of its own to an endpoint.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::flow_table::FlowKey;
use crate::metrics::{LoadBalancerMetrics, OpenGuard};
use crate::model::Endpoint;
use crate::tunnel::udp::UdpSocket;

/// Time without a datagram after which a flow ends that its endpoint has never answered, and one
/// that it has: the defaults of conntrack in Linux.
pub(super) const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const ANSWERED_TIMEOUT: Duration = Duration::from_mins(2);

/// Flow with its socket.
#[derive(Debug)]
pub(super) struct Flow {
    pub socket: UdpSocket,
    pub endpoint: SocketAddr,
    /// Endpoints of the Service among which that of the flow was found last.
    pub endpoints: RefCell<Arc<[Endpoint]>>,
    pub used: Cell<Instant>,
    pub answered: Cell<bool>,
    pub _open: OpenGuard,
}

/// Flow in the table. Dropping it ends the flow.
#[derive(Debug)]
pub(super) struct OpenFlow {
    pub flow: Rc<Flow>,
    pub task: AbortHandle,
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Flow {
    /// Returns true if the endpoint is still one of the Service.
    pub fn is_among(&self, endpoints: &Arc<[Endpoint]>) -> bool {
        let mut known = self.endpoints.borrow_mut();
        if Arc::ptr_eq(&known, endpoints) {
            return true;
        }
        let found = endpoints
            .iter()
            .any(|endpoint| endpoint.address == self.endpoint);
        if found {
            *known = Arc::clone(endpoints);
        }
        found
    }

    fn deadline(&self) -> Instant {
        let timeout = if self.answered.get() {
            ANSWERED_TIMEOUT
        } else {
            UNANSWERED_TIMEOUT
        };
        self.used.get() + timeout
    }

    /// Passes answers to the client until the flow is idle for its timeout, or its socket fails, as
    /// by an ICMP message.
    pub async fn pass_answers(
        &self,
        key: FlowKey,
        listener: &UdpSocket,
        metrics: &LoadBalancerMetrics,
    ) {
        let mut expiry = pin!(sleep_until(self.deadline()));
        loop {
            let answers = self.socket.receive(|answers| {
                self.answered.set(true);
                self.used.set(Instant::now());
                metrics.sent.inc_by(answers.bytes.len() as u64);
                metrics.datagrams_sent.inc_by(answers.count() as u64);
                let sent = listener.send(key.client, key.local, answers.bytes, answers.size);
                if sent.is_err() {
                    metrics.dropped.not_sent.inc();
                }
            });
            tokio::select! {
                received = answers => if received.is_err() {
                    return;
                },
                () = &mut expiry => {
                    let deadline = self.deadline();
                    if deadline <= Instant::now() {
                        return;
                    }
                    expiry.as_mut().reset(deadline);
                }
            }
        }
    }
}
