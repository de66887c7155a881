//! UDP flow: the datagrams of one client socket, and the socket of its own to an endpoint.

use std::cell::{Cell, RefCell};
use std::io;
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

    /// Passes answers to the client until the flow is idle for its timeout.
    ///
    /// # Errors
    /// A failure of its socket, as by an ICMP message.
    pub async fn pass_answers(
        &self,
        key: FlowKey,
        listener: &UdpSocket,
        metrics: &LoadBalancerMetrics,
    ) -> io::Result<()> {
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
                received = answers => received?,
                () = &mut expiry => {
                    let deadline = self.deadline();
                    if deadline <= Instant::now() {
                        return Ok(());
                    }
                    expiry.as_mut().reset(deadline);
                }
            }
            // The socket may always have answers, and receiving them never waits then.
            tokio::task::coop::consume_budget().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use prometheus_client::registry::Registry;
    use tokio::runtime::{Builder, LocalOptions};

    use super::*;
    use crate::loadbalancer::{ListenerKey, Protocol};
    use crate::metrics::Metrics;
    use crate::tunnel::udp::Fragmentation;

    /// Passes answers that are answers again: each is sent to the socket of the flow itself.
    async fn pass_endless_answers(metrics: LoadBalancerMetrics) {
        let bound = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (listener, socket) = (bound(), bound());
        let endpoint = listener.local_addr().unwrap();
        let client = socket.local_addr().unwrap();
        socket.connect(endpoint).unwrap();
        // More than one call receives.
        for _ in 0..64 {
            listener.send_to(b"answer", client).unwrap();
        }
        let ours = |socket| UdpSocket::from_std(socket, Fragmentation::Allowed).unwrap();
        let flow = Flow {
            socket: ours(socket),
            endpoint,
            endpoints: RefCell::new(Arc::new([])),
            used: Cell::new(Instant::now()),
            answered: Cell::new(false),
            _open: metrics.flows.enter(),
        };
        let key = FlowKey {
            listener: ListenerKey {
                address: endpoint.ip(),
                port: endpoint.port(),
                protocol: Protocol::Udp,
            },
            client,
            local: None,
        };
        let _ = flow.pass_answers(key, &ours(listener), &metrics).await;
    }

    #[test]
    fn flood_of_answers_leaves_time_for_other_tasks() {
        let (progress, progressed) = mpsc::channel();
        // On a thread of its own, because a task that never yields cannot be stopped.
        std::thread::spawn(move || {
            let metrics = Metrics::new(&mut Registry::default()).load_balancer;
            let mut builder = Builder::new_current_thread();
            let runtime = builder.enable_all().build_local(LocalOptions::default());
            runtime.unwrap().block_on(async {
                let flood = tokio::task::spawn_local(pass_endless_answers(metrics.clone()));
                while metrics.datagrams_sent.get() < 10_000 {
                    tokio::task::yield_now().await;
                }
                assert!(!flood.is_finished());
                progress.send(()).unwrap();
            });
        });
        progressed.recv_timeout(Duration::from_mins(1)).unwrap();
    }
}
