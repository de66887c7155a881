//! Sockets of the wanted listeners.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Type};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client_connection::configure_socket;
use crate::drain::Drain;
use crate::forward::{Dialer, OwnAddresses};
use crate::loadbalancer::{
    BindFailures, BindReport, ListenerKey, ListenerSpec, Listeners, Protocol,
};

/// Interval at which failed binds are repeated.
const RETRY: Duration = Duration::from_secs(1);
/// Time after which a failure is reported, and interval of the attempts until then. The workers close
/// a removed listener a moment after it was removed, and another may want its port.
const GRACE: Duration = Duration::from_millis(300);
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Maximum number of connections that the kernel completes before they are accepted, which it caps
/// at `net.core.somaxconn`.
const BACKLOG: i32 = i32::MAX;

/// Listeners whose sockets are bound.
pub type BoundListeners = BTreeMap<ListenerKey, Bound>;

/// Listener with its socket.
#[derive(Clone, Debug)]
pub struct Bound {
    pub(super) spec: Arc<ListenerSpec>,
    /// Workers serve clones of it. The port is closed with the last of them.
    pub(super) socket: Arc<Socket>,
}

/// Bound socket, not blocking.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
}

/// Task that binds and closes sockets as the wanted listeners change. Other listeners and open
/// connections are not affected by a change.
#[derive(Debug)]
pub struct Binder {
    wanted: watch::Receiver<Arc<Listeners>>,
    report: watch::Sender<Arc<BindReport>>,
    bound: watch::Sender<Arc<BoundListeners>>,
    /// Addresses that the dialer rejects.
    own_tcp: OwnAddresses,
    own_udp: OwnAddresses,
    drain: Drain,
}

impl Binder {
    /// Creates the task of a process, whose dialer learns the addresses of the listeners.
    pub fn new(
        wanted: watch::Receiver<Arc<Listeners>>,
        report: watch::Sender<Arc<BindReport>>,
        dialer: &Dialer,
        drain: Drain,
    ) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            report,
            bound: watch::Sender::default(),
            own_tcp: dialer.own_addresses.clone(),
            own_udp: dialer.own_udp.clone(),
            drain,
        })
    }

    /// Returns the bound listeners, for the workers.
    pub fn bound(&self) -> watch::Receiver<Arc<BoundListeners>> {
        self.bound.subscribe()
    }

    /// Follows the wanted listeners until the drain begins. Then TCP ports are closed; those of UDP
    /// are served until the process ends, because their clients have no connection to lose.
    pub async fn run(self: Arc<Self>) {
        tokio::select! {
            biased;
            () = self.drain.begun() => {}
            () = self.follow() => {}
        }
        self.bound.send_modify(|bound| {
            let mut open = BoundListeners::clone(bound);
            open.retain(|key, _| key.protocol == Protocol::Udp);
            *bound = Arc::new(open);
        });
        std::future::pending::<()>().await;
    }

    async fn follow(&self) {
        let mut wanted = self.wanted.clone();
        // Listeners that could not be bound, since when.
        let mut failing = BTreeMap::new();
        loop {
            let listeners = Arc::clone(&wanted.borrow_and_update());
            let mut failures = self.apply(&listeners);
            let now = Instant::now();
            failing.retain(|key, _| failures.contains_key(key));
            for key in failures.keys() {
                failing.entry(*key).or_insert(now);
            }
            let is_new = |key: &ListenerKey| now.duration_since(failing[key]) < GRACE;
            let retry = if failures.keys().any(is_new) {
                FIRST_RETRY
            } else {
                RETRY
            };
            failures.retain(|key, _| !is_new(key));
            self.report(failures);
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() {
                    // The controller is gone with the process.
                    return std::future::pending().await;
                },
                () = tokio::time::sleep(retry), if !failing.is_empty() => {}
            }
        }
    }

    /// Binds and closes sockets. Returns the failures.
    fn apply(&self, wanted: &Listeners) -> BindFailures {
        let before = Arc::clone(&self.bound.borrow());
        let (mut bound, mut failures) = (BoundListeners::new(), BindFailures::new());
        for (key, spec) in wanted {
            let socket = match before.get(key) {
                Some(bound) => Ok(Arc::clone(&bound.socket)),
                None => bind(*key).map(Arc::new),
            };
            match socket {
                Ok(socket) => {
                    let spec = Arc::clone(spec);
                    bound.insert(*key, Bound { spec, socket });
                }
                Err(error) => {
                    failures.insert(*key, reason(&error));
                }
            }
        }
        let own = |protocol| {
            let keys = bound.keys().filter(|key| key.protocol == protocol);
            keys.map(|key| SocketAddr::new(key.address, key.port))
                .collect()
        };
        self.own_tcp.set_listeners(own(Protocol::Tcp));
        self.own_udp.set_listeners(own(Protocol::Udp));
        let changed = before.len() != bound.len()
            || before.iter().zip(&bound).any(|(old, new)| {
                old.0 != new.0
                    || !Arc::ptr_eq(&old.1.socket, &new.1.socket)
                    || old.1.spec != new.1.spec
            });
        if changed {
            self.bound.send_replace(Arc::new(bound));
        }
        failures
    }

    fn report(&self, failures: BindFailures) {
        let report = BindReport {
            bound: self.bound.borrow().keys().copied().collect(),
            failures,
        };
        self.report.send_if_modified(|reported| {
            if **reported == report {
                return false;
            }
            for (listener, reason) in &report.failures {
                if reported.failures.get(listener) != Some(reason) {
                    tracing::warn!(%listener, reason, "cannot bind a listener");
                }
            }
            *reported = Arc::new(report);
            true
        });
    }
}

fn bind(key: ListenerKey) -> io::Result<Socket> {
    let address = SocketAddr::new(key.address, key.port);
    let domain = Domain::for_address(address);
    let kind = match key.protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = socket2::Socket::new(domain, kind, None)?;
    if address.is_ipv6() {
        // The listener for all IPv4 addresses is another one.
        socket.set_only_v6(true)?;
    }
    if key.protocol == Protocol::Tcp {
        // Old connections in TIME_WAIT must not prevent a restart. On a UDP socket the option would
        // allow another process to take the port.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(match key.protocol {
        Protocol::Tcp => {
            // Five system calls fewer for each connection, which inherits them.
            configure_socket(&socket)?;
            socket.listen(BACKLOG)?;
            Socket::Tcp(socket.into())
        }
        Protocol::Udp => Socket::Udp(socket.into()),
    })
}

/// Returns the reason of a failed bind, for the event of a Service.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "in use by another process; choose another port".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied: set the sysctl net.ipv4.ip_unprivileged_port_start, or grant \
             NET_BIND_SERVICE to the root user"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "not an address of this machine; correct loadBalancer.bindAddresses".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;

    #[test]
    fn accepted_connections_inherit_keepalive_and_no_delay() {
        let key = ListenerKey {
            address: [127, 0, 0, 1].into(),
            port: 0,
            protocol: Protocol::Tcp,
        };
        let Socket::Tcp(listener) = bind(key).unwrap() else {
            panic!("a TCP listener");
        };
        listener.set_nonblocking(false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(15)
        );
    }
}
