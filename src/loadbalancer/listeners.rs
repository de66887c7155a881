//! Data path of load balancers: binds the sockets of the wanted listeners, and passes connections
//! and datagrams of clients to the endpoints of their Services.
//!
//! One task binds and closes the sockets. Each worker accepts the connections of all TCP listeners.
//! A UDP listener is served by one worker, so that the datagrams of a client stay in order.

mod affinity;
mod binder;
mod flow;
mod flow_table;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::task::TaskTracker;

use super::{ListenerKey, ListenerSpec, Listeners, Protocol};
use crate::client_connection::ConnectionQuota;
use crate::cluster::{Affinity, Cluster};
use crate::drain::Drain;
use crate::forward::{Forwarder, is_local_address};
use crate::metrics::LoadBalancerMetrics;
use crate::model::Endpoint;
use crate::resolve::Candidates;
use crate::telemetry::LogLimit;
pub use affinity::AffinityTable;
pub use binder::{Binder, BoundListeners};
use binder::{Bound, Socket};
pub use flow_table::FlowBudget;
use flow_table::FlowTable;
use udp::Flows;

/// Interval at which a worker tries again to start a listener, as after a lack of file descriptors.
const RETRY: Duration = Duration::from_secs(1);

/// Errors about listeners that could not be started.
static NOT_STARTED: LogLimit = LogLimit::new(10);

/// Data path of one worker.
#[derive(Debug)]
pub struct DataPath {
    /// Listeners with their sockets.
    pub bound: watch::Receiver<Arc<BoundListeners>>,
    pub cluster: Arc<Cluster>,
    pub forwarder: Forwarder,
    pub affinity: Arc<AffinityTable>,
    /// Listeners of all replicas.
    pub wanted: watch::Receiver<Arc<Listeners>>,
    pub limits: ListenerLimits,
    pub metrics: LoadBalancerMetrics,
    pub drain: Drain,
    /// Tasks of the worker, for which a drain waits.
    pub tasks: TaskTracker,
    /// Number of this worker, and number of workers.
    pub worker: (usize, usize),
    /// This process, and so every replica, has the addresses of its node. Determined when it is
    /// needed.
    pub is_on_host_network: OnceCell<bool>,
}

/// Limits of the listeners, shared by the workers.
#[derive(Clone, Debug)]
pub struct ListenerLimits {
    pub quota: ConnectionQuota,
    /// Limit on UDP flows, each of which has a socket.
    pub flows: Arc<FlowBudget>,
}

impl ListenerLimits {
    /// Maximum number of UDP flows: below the limits of open files of most systems.
    pub const MAX_FLOWS: usize = 16 * 1024;

    /// Creates the limits of a process. They are not those of the bastion's own port, which clients
    /// of public listeners must not use up. 0 for no limit.
    pub fn new(connections: usize, per_client: usize) -> Self {
        Self {
            quota: ConnectionQuota::new(connections, per_client),
            flows: FlowBudget::new(Self::MAX_FLOWS),
        }
    }
}

/// Listener whose task runs. The specification may be replaced while it does.
struct Served {
    socket: Arc<Socket>,
    spec: Rc<SpecCell>,
    task: AbortHandle,
}

/// Listeners that a worker serves.
#[derive(Default)]
struct Serving {
    listeners: HashMap<ListenerKey, Served>,
    /// Tasks of the listeners, and those that were aborted until they are joined.
    tasks: JoinSet<()>,
}

/// Current specification of a listener.
#[derive(Debug)]
struct SpecCell(RefCell<Arc<ListenerSpec>>);

impl SpecCell {
    fn get(&self) -> Arc<ListenerSpec> {
        Arc::clone(&self.0.borrow())
    }
}

impl Serving {
    /// Starts and ends listeners. Returns false if one of them could not be started.
    fn update(&mut self, path: &Rc<DataPath>, bound: &BoundListeners, flows: &Flows) -> bool {
        self.listeners.retain(|key, served| {
            let keep = bound
                .get(key)
                .is_some_and(|bound| Arc::ptr_eq(&bound.socket, &served.socket))
                && !served.task.is_finished();
            if !keep {
                // Closes the socket of this worker. The connections have tasks of their own.
                served.task.abort();
                flows.borrow_mut().retain(|flow| flow.listener != *key);
            }
            keep
        });
        let (worker, workers) = path.worker;
        let mut all_served = true;
        for (key, bound) in bound {
            if let Some(served) = self.listeners.get(key) {
                let spec = &bound.spec;
                let previous = served.spec.0.replace(Arc::clone(spec));
                if previous != *spec {
                    // The next datagram of a client would end its flow or be dropped, but answers
                    // would reach the client until then.
                    let is_of_same_service = previous.is_of_same_service(spec);
                    flows.borrow_mut().retain(|flow| {
                        flow.listener != *key
                            || is_of_same_service
                                && spec.check(flow.client.ip(), flow.local).is_ok()
                    });
                }
            } else if key.protocol == Protocol::Tcp || home(key, workers) == worker {
                match path.start(*key, bound, flows, &mut self.tasks) {
                    Ok(started) => {
                        self.listeners.insert(*key, started);
                    }
                    Err(error) => {
                        all_served = false;
                        if NOT_STARTED.permits() {
                            tracing::error!(listener = %key, %error, "cannot serve a listener");
                        }
                    }
                }
            }
        }
        all_served
    }
}

impl DataPath {
    /// Serves the listeners until the end of the drain. Connections continue in their tasks when
    /// their listener is closed.
    pub async fn run(self) {
        let mut bound = self.bound.clone();
        let path = Rc::new(self);
        let flows: Flows = Rc::new(RefCell::new(FlowTable::new(Arc::clone(&path.limits.flows))));
        let mut serving = Serving::default();
        loop {
            let listeners = Arc::clone(&bound.borrow_and_update());
            let all_served = serving.update(&path, &listeners, &flows);
            tokio::select! {
                () = path.drain.forced() => return,
                changed = bound.changed() => if changed.is_err() {
                    // The process ends.
                    return path.drain.forced().await;
                },
                // A task that was not aborted is started again.
                Some(_) = serving.tasks.join_next(), if !serving.tasks.is_empty() => {
                    while serving.tasks.try_join_next().is_some() {}
                }
                () = tokio::time::sleep(RETRY), if !all_served => {}
            }
        }
    }

    fn start(
        self: &Rc<Self>,
        key: ListenerKey,
        bound: &Bound,
        flows: &Flows,
        tasks: &mut JoinSet<()>,
    ) -> std::io::Result<Served> {
        let spec = Rc::new(SpecCell(RefCell::new(Arc::clone(&bound.spec))));
        let task = match &*bound.socket {
            Socket::Tcp(socket) => {
                let socket = TcpListener::from_std(socket.try_clone()?)?;
                tasks.spawn_local(Rc::clone(self).accept(key, socket, Rc::clone(&spec)))
            }
            Socket::Udp(socket) => {
                let socket = udp::listener(socket.try_clone()?)?;
                let flows = Rc::clone(flows);
                tasks.spawn_local(Rc::clone(self).receive(key, socket, Rc::clone(&spec), flows))
            }
        };
        Ok(Served {
            socket: Arc::clone(&bound.socket),
            spec,
            task,
        })
    }

    /// Returns the endpoints that can serve a listener. `None` if there are none.
    fn candidates(&self, key: ListenerKey, spec: &ListenerSpec) -> Option<Candidates> {
        let service = self.cluster.service(&spec.namespace, &spec.service)?;
        let mut ports = service.ports(key.protocol).iter();
        let port = ports.find(|port| port.number == spec.service_port)?;
        let endpoints = if spec.local_only {
            &port.local_endpoints
        } else {
            &port.tunnel_endpoints
        };
        let endpoints = self.without_listeners(key.protocol, endpoints);
        (!endpoints.is_empty()).then(|| Candidates::Port {
            endpoints,
            rotation: Arc::clone(&port.rotation),
            // The affinity of a listener has a timeout, so it is in a table of its own.
            affinity: Affinity::None,
        })
    }

    /// Returns the endpoints without those that may be listeners of other replicas, on the network of
    /// the nodes. Two Services could lead to each other there, and a connection would circulate
    /// between the replicas (CONFORMANCE C110).
    fn without_listeners(
        &self,
        protocol: Protocol,
        endpoints: &Arc<[Endpoint]>,
    ) -> Arc<[Endpoint]> {
        // Most endpoints of a Service have the same port.
        let mut last = None;
        let mut is_listener = |endpoint: &Endpoint| {
            let port = endpoint.address.port();
            let has_listener = match last {
                Some((known, has_listener)) if known == port => has_listener,
                _ => self.has_listener(protocol, port),
            };
            last = Some((port, has_listener));
            has_listener && self.is_on_node(endpoint.address.ip())
        };
        if !endpoints.iter().any(&mut is_listener) {
            return Arc::clone(endpoints);
        }
        let others = endpoints.iter().filter(|endpoint| !is_listener(endpoint));
        others.cloned().collect()
    }

    /// Returns true if an address may be that of a listener of another replica: all replicas have
    /// the same listeners, at the addresses of their nodes.
    fn is_of_replica(&self, protocol: Protocol, address: SocketAddr) -> bool {
        self.has_listener(protocol, address.port()) && self.is_on_node(address.ip())
    }

    /// Returns true if an address is that of a node, where replicas listen.
    fn is_on_node(&self, address: IpAddr) -> bool {
        self.cluster.is_node_address(address) && self.is_on_host_network()
    }

    fn is_on_host_network(&self) -> bool {
        if let Some(known) = self.is_on_host_network.get() {
            return *known;
        }
        let is_certain = Cell::new(true);
        let found = self.cluster.has_node_address(|address| {
            is_local_address(address).unwrap_or_else(|_| {
                is_certain.set(false);
                false
            })
        });
        if !found && !is_certain.get() {
            // Asked again later.
            return true;
        }
        *self.is_on_host_network.get_or_init(|| found)
    }

    fn has_listener(&self, protocol: Protocol, port: u16) -> bool {
        let wanted = self.wanted.borrow();
        let mut keys = wanted.keys();
        keys.any(|key| key.port == port && key.protocol == protocol)
    }
}

/// Returns the worker that serves a UDP listener.
fn home(key: &ListenerKey, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let worker = hasher.finish() % workers as u64;
    usize::try_from(worker).unwrap_or_default()
}
