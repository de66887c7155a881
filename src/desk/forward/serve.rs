//! Local connections and flows: accepted, connected to their target, and relayed.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::gateway::Gateway;
use super::listen::Sockets;
use super::relay::{Client, Traffic};
use super::report::Report;
use super::route::Route;
use super::udp;
use crate::client_connection::configure_socket;
use crate::desk::portforward::StreamError;
use crate::desk::targets::Protocol;
use crate::tunnel::TunnelError;

/// Maximum number of local connections of all forwards; further ones wait.
const MAX_CONNECTIONS: usize = 4096;
/// Pause after a failed accept, as without a free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Forwarded port.
#[derive(Debug)]
pub struct Forward {
    /// Target, as in `service/db`.
    pub target: String,
    pub namespace: String,
    pub local_port: u16,
    /// Port of the target that lines name.
    pub remote_port: u16,
    pub sockets: Sockets,
    pub route: Route,
    pub traffic: Rc<Traffic>,
}

impl Forward {
    /// Returns the port of the target as arguments have it.
    pub fn remote_name(&self) -> String {
        match self.sockets.protocol() {
            Protocol::Tcp => self.remote_port.to_string(),
            Protocol::Udp => format!("{}/udp", self.remote_port),
        }
    }
}

/// Serves the connections of all forwards and of the local proxy. Does not end.
pub async fn serve(forwards: &[Rc<Forward>], gateway: Option<&Rc<Gateway>>, report: &Rc<Report>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tasks = TaskTracker::new();
    let mut serving = Vec::<LocalBoxFuture<'_, ()>>::new();
    for forward in forwards {
        match &forward.sockets {
            Sockets::Tcp(listeners) => serving.extend(listeners.iter().map(|listener| {
                let handle = |stream| {
                    let (forward, report) = (Rc::clone(forward), Rc::clone(report));
                    async move { handle(stream, &forward, &report).await }
                };
                let on_failure = |text: &str| report.failure(&forward.target, "accept", text);
                accept(listener, &permits, &tasks, on_failure, handle).boxed_local()
            })),
            Sockets::Udp(listeners) => {
                let listeners = listeners.iter();
                serving.extend(
                    listeners.map(|listener| udp::serve(forward, listener, report).boxed_local()),
                );
            }
        }
    }
    if let Some(gateway) = gateway {
        serving.extend(gateway.listeners.iter().map(|listener| {
            let handle = |stream| Rc::clone(gateway).handle(stream, Rc::clone(report));
            let on_failure = |text: &str| report.failure("the local proxy", "accept", text);
            accept(listener, &permits, &tasks, on_failure, handle).boxed_local()
        }));
    }
    futures::future::join_all(serving).await;
}

async fn accept<F: Future<Output = ()> + 'static>(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    tasks: &TaskTracker,
    on_failure: impl Fn(&str),
    handle: impl Fn(TcpStream) -> F,
) {
    loop {
        // The semaphore is never closed.
        let permit = Arc::clone(permits).acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, _)) => {
                let handling = handle(stream);
                tasks.spawn_local(async move {
                    handling.await;
                    drop(permit);
                });
            }
            // The client has left already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                let text = format!(
                    "cannot accept a connection: {error}; raise the limit of open files (ulimit -n)"
                );
                on_failure(&text);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Relays one connection. A failure resets it.
async fn handle(stream: TcpStream, forward: &Forward, report: &Report) {
    report.connection(forward.local_port);
    // Fails if the client has left, which the first read reports, too.
    let _ = configure_socket(&stream);
    let client = Client::new(stream);
    let _open = Open::new(&forward.traffic);
    let remote = match forward.route.connect().await {
        Ok(remote) => remote,
        Err(error) => {
            report.failure(&forward.target, &error.kind(), &error.to_string());
            return;
        }
    };
    match client.relay(Bytes::new(), remote, &forward.traffic).await {
        Ok(()) => {}
        Err(TunnelError::Endpoint(error)) => {
            tracing::debug!(%error, "the target failed");
            if let Some(text) = describe(&error) {
                report.failure(&forward.target, "connection", &text);
            }
        }
        Err(error) => tracing::debug!(%error, "the local client failed"),
    }
}

/// Returns the text for a failure of a target. `None` for a reset, which the client sees, too.
fn describe(error: &io::Error) -> Option<String> {
    const RESETS: [&str; 2] = ["connection reset by peer", "broken pipe"];
    let inner = error.get_ref();
    let stream = inner.and_then(|inner| inner.downcast_ref::<StreamError>());
    match stream {
        Some(StreamError::Reset { .. }) => None,
        Some(StreamError::Remote { text }) if RESETS.iter().any(|it| text.contains(it)) => None,
        Some(stream) => Some(stream.to_string()),
        None if error.kind() == io::ErrorKind::ConnectionAborted => Some(format!(
            "connections were reset: the connection to the bastion was lost: {error}"
        )),
        None => None,
    }
}

/// Counts a connection as open until it is dropped.
pub struct Open<'a>(&'a Traffic);

impl<'a> Open<'a> {
    pub fn new(traffic: &'a Traffic) -> Self {
        traffic.open.set(traffic.open.get() + 1);
        traffic.total.set(traffic.total.get() + 1);
        Self(traffic)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}
