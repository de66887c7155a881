//! `kube-bastion proxy`: a local port or Unix socket that forwards requests to the API servers of a
//! kubeconfig's context, with the credentials of its user.
//!
//! Requests pass [`filter`] first, because every program on the machine, and every page in its
//! browsers, can reach the port.

mod body;
pub mod files;
pub mod filter;
mod handler;
mod keepalive;
mod listener;
pub mod path;
mod upstream;

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub use body::{Body, BodyError};
pub use listener::{BindError, Socket, browser_address};

use crate::desk::Context;
use crate::desk::client::Client;
use crate::drain::Drain;
use crate::http::h1::{ServerConnection, Timeouts};
use crate::http::{HeadMemory, Stream};
use files::Files;
use filter::Filter;
use handler::{ClientConnection, Proxy};
use keepalive::with_keepalive;
use path::Prefix;
use upstream::Upstream;

/// Maximum number of connections that are open at a time, tunnels included. Further ones wait.
const MAX_CONNECTIONS: usize = 256;
/// Maximum memory of all request heads beyond 16 KiB each.
const MAX_HEAD_MEMORY: usize = 16 * 1024 * 1024;
/// Timeouts of connections. kubectl has none: those without progress of a body are long, because a
/// user may pause a program for a while.
const TIMEOUTS: Timeouts = Timeouts {
    idle: Duration::from_mins(10),
    head: Duration::from_secs(30),
    body: Duration::from_hours(1),
    write: Duration::from_hours(1),
};
/// Time for open requests after the first signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept. Without it a process without free file descriptors would loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Settings of the proxy.
#[derive(Debug)]
pub struct Settings {
    /// Prefix below which the API is served.
    pub api_prefix: Prefix,
    /// Prefix and directory of static files.
    pub files: Option<(Prefix, Files)>,
    /// `None` accepts all requests.
    pub filter: Option<Filter>,
    /// Time between TCP keep-alive probes to the API servers. `None` for the default.
    pub keepalive: Option<Duration>,
    /// Paths are appended to that of the server's URL.
    pub append_server_path: bool,
    /// Logs a line per request.
    pub verbose: bool,
}

/// Serves the connections of a socket until the drain begins, and open requests for two seconds
/// more.
pub async fn run(socket: Socket, settings: Settings, context: Context, drain: Drain) {
    let tasks = TaskTracker::new();
    let mut servers = context.servers;
    for server in &mut servers {
        if !settings.append_server_path {
            server.path.clear();
        }
        if let Some(time) = settings.keepalive {
            with_keepalive(server, time);
        }
    }
    let proxy = Rc::new(Proxy {
        api_prefix: settings.api_prefix,
        files: settings.files,
        filter: settings.filter,
        upstream: Upstream {
            client: Client::new(servers, context.credentials),
            timeout: context.request_timeout,
            tasks: tasks.clone(),
            drain: drain.clone(),
        },
        verbose: settings.verbose,
    });
    accept(socket, &proxy, &tasks, &drain).await;
    tasks.close();
    tokio::select! {
        () = tasks.wait() => {}
        () = drain.forced() => {}
        () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
    }
}

/// Accepts connections until the drain begins, then closes the socket.
async fn accept(socket: Socket, proxy: &Rc<Proxy>, tasks: &TaskTracker, drain: &Drain) {
    let memory = HeadMemory::new(MAX_HEAD_MEMORY);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut drained = pin!(drain.begun());
    loop {
        let accepted = async {
            // Before the accept, so that further clients wait in the queue of the socket.
            let permit = Arc::clone(&connections).acquire_owned().await;
            (socket.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = &mut drained => return,
            accepted = accepted => accepted,
        };
        match (accepted, permit) {
            (Ok((stream, address)), Ok(permit)) => {
                let client = ClientConnection {
                    proxy: Rc::clone(proxy),
                    address,
                    permit: Rc::new(permit),
                };
                tasks.spawn_local(serve(stream, client, memory.clone(), drain.clone()));
            }
            (Err(error), _) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The semaphore is never closed.
            (_, Err(_)) => return,
        }
    }
}

async fn serve(stream: Stream, client: ClientConnection, memory: HeadMemory, drain: Drain) {
    let connection = ServerConnection::new(stream, TIMEOUTS.body);
    if let Err(error) = connection.serve(&client, TIMEOUTS, &memory, &drain).await {
        tracing::debug!(%error, "connection failed");
    }
}
