//! Flows of UDP: one tunnel for each local client, with the datagrams in capsules (RFC 9298).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::listen::UdpListener;
use super::relay::Traffic;
use super::report::Report;
use super::serve::{Forward, Open};
use crate::http::Upgraded;
use crate::tunnel::capsule::{Decoder, MAX_HEAD, MAX_PAYLOAD, encode_datagram};
use crate::tunnel::connect_udp::IDLE_TIMEOUT;
use crate::tunnel::udp::is_transient;

/// Maximum number of flows of a local socket, of which the least recently used one ends.
const MAX_FLOWS: usize = 64;
/// Maximum number of bytes of datagrams that wait for their tunnel; further ones are dropped.
const MAX_WAITING_BYTES: usize = 128 * 1024;
/// Time for which the datagrams of a flow are dropped after its tunnel has failed.
pub const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a failed receive, as without memory.
const RECEIVE_PAUSE: Duration = Duration::from_millis(200);

/// Datagrams of a flow towards its target.
#[derive(Debug)]
pub struct Flow {
    /// Capsules that wait for the tunnel.
    waiting: RefCell<Vec<u8>>,
    /// Bytes of their payloads.
    waiting_payload: Cell<u64>,
    arrived: Notify,
    /// Time of the last datagram in either direction.
    used: Cell<Instant>,
}

impl Flow {
    fn new() -> Self {
        Self {
            waiting: RefCell::default(),
            waiting_payload: Cell::new(0),
            arrived: Notify::new(),
            used: Cell::new(Instant::now()),
        }
    }

    /// Queues a datagram. It is dropped if too many bytes wait, or if it is too long.
    fn push(&self, payload: &[u8]) {
        let mut waiting = self.waiting.borrow_mut();
        let length = waiting.len() + MAX_HEAD + payload.len();
        if payload.len() <= MAX_PAYLOAD && length <= MAX_WAITING_BYTES {
            encode_datagram(payload, &mut waiting);
            let bytes = self.waiting_payload.get() + payload.len() as u64;
            self.waiting_payload.set(bytes);
            self.arrived.notify_one();
        }
        self.used.set(Instant::now());
    }

    /// Passes datagrams between the queue and a tunnel until one of its sides ends, or no datagram
    /// has passed for [`IDLE_TIMEOUT`].
    ///
    /// # Errors
    /// The tunnel was reset, or carries malformed capsules.
    pub async fn relay(
        &self,
        tunnel: Upgraded,
        traffic: &Traffic,
        mut answer: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(tunnel);
        let sending = async {
            loop {
                self.arrived.notified().await;
                let (capsules, payload) = (self.waiting.take(), self.waiting_payload.take());
                writer.write_all(&capsules).await?;
                writer.flush().await?;
                traffic.sent.set(traffic.sent.get() + payload);
            }
        };
        let receiving = async {
            let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
            while reader.read_buf(&mut input).await? > 0 {
                while let Some(payload) = decoder.decode(&mut input).map_err(io::Error::other)? {
                    self.used.set(Instant::now());
                    let received = traffic.received.get() + payload.len() as u64;
                    traffic.received.set(received);
                    answer(&payload);
                }
            }
            decoder.finish(&input).map_err(io::Error::other)
        };
        let idle = async {
            while self.used.get().elapsed() < IDLE_TIMEOUT {
                sleep_until(self.used.get() + IDLE_TIMEOUT).await;
            }
        };
        let (sending, receiving, idle) = (pin!(sending), pin!(receiving), pin!(idle));
        tokio::select! {
            ended = sending => ended,
            ended = receiving => ended,
            () = idle => Ok(()),
        }
    }
}

/// Flows of a local socket by client or target, each with its task.
#[derive(Debug)]
pub struct Flows<K> {
    flows: HashMap<K, (Rc<Flow>, AbortOnDropHandle<()>)>,
    limit: usize,
}

impl<K: Clone + Eq + Hash> Flows<K> {
    pub fn new(limit: usize) -> Self {
        Self {
            flows: HashMap::new(),
            limit,
        }
    }

    /// Passes a datagram to its flow. `run` serves a new one, in a task of its own.
    pub fn push<F: Future<Output = ()> + 'static>(
        &mut self,
        key: &K,
        payload: &[u8],
        run: impl FnOnce(Rc<Flow>) -> F,
    ) {
        if let Some((flow, task)) = self.flows.get(key)
            && !task.is_finished()
        {
            flow.push(payload);
            return;
        }
        if self.flows.len() >= self.limit {
            self.flows.retain(|_, (_, task)| !task.is_finished());
        }
        if self.flows.len() >= self.limit {
            let oldest = self
                .flows
                .iter()
                .min_by_key(|(_, (flow, _))| flow.used.get());
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.flows.remove(&oldest);
            }
        }
        let flow = Rc::new(Flow::new());
        flow.push(payload);
        let task = tokio::task::spawn_local(run(Rc::clone(&flow)));
        let task = AbortOnDropHandle::new(task);
        self.flows.insert(key.clone(), (flow, task));
    }
}

/// Serves the datagrams of a socket of the forward. Does not end.
pub async fn serve(forward: &Rc<Forward>, listener: &Rc<UdpListener>, report: &Rc<Report>) {
    // By the address that the client used, too, from which the answers are sent.
    let mut flows = Flows::<(SocketAddr, Option<IpAddr>)>::new(MAX_FLOWS);
    loop {
        let received = listener.socket.receive(|datagrams| {
            let (client, local) = (datagrams.from, datagrams.to);
            for payload in datagrams.iter() {
                flows.push(&(client, local), payload, |flow| {
                    let (forward, listener) = (Rc::clone(forward), Rc::clone(listener));
                    let report = Rc::clone(report);
                    async move { run(&flow, &forward, &listener, (client, local), &report).await }
                });
            }
        });
        if let Err(error) = received.await {
            tracing::debug!(%error, "cannot receive datagrams");
            sleep(RECEIVE_PAUSE).await;
        }
    }
}

/// Serves a flow until it ends. Its next datagram begins another.
async fn run(
    flow: &Flow,
    forward: &Forward,
    listener: &UdpListener,
    (client, local): (SocketAddr, Option<IpAddr>),
    report: &Report,
) {
    report.connection(forward.local_port);
    let _open = Open::new(&forward.traffic);
    let tunnel = match forward.route.connect().await {
        Ok(tunnel) => tunnel,
        Err(error) => {
            report.failure(&forward.target, &error.kind(), &error.to_string());
            sleep(FAILURE_PAUSE).await;
            return;
        }
    };
    let answer = |payload: &[u8]| {
        let sent = listener.socket.send(client, local, payload, payload.len());
        if let Err(error) = sent
            && !is_transient(&error)
        {
            tracing::debug!(%error, "cannot send a datagram to the local client");
        }
    };
    if let Err(error) = flow.relay(tunnel, &forward.traffic, answer).await {
        // The tunnel does not say why.
        let message = format!(
            "a UDP flow has ended: {error}; the port may be closed, or the pod or the bastion gone"
        );
        report.failure(&forward.target, "flow", &message);
    }
}
