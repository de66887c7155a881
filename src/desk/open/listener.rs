//! The local listener.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::handler::SiteHandler;
use crate::drain::Drain;
use crate::http::h1::{ServerConnection, Timeouts};
use crate::http::{HeadMemory, Stream};

/// Maximum number of connections; further ones wait. A browser opens six to a host, and one for each
/// WebSocket, of which it has up to 255.
const MAX_CONNECTIONS: usize = 1024;
/// Memory for heads beyond 16 KiB each.
const HEAD_MEMORY: usize = 16 * 1024 * 1024;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Number of free ports that are tried until one is free on both loopback addresses.
const MAX_PORTS: usize = 16;

const TIMEOUTS: Timeouts = Timeouts {
    idle: Duration::from_mins(5),
    head: Duration::from_secs(30),
    // A debugger or a person may pause either side of a transfer.
    body: Duration::from_hours(1),
    write: Duration::from_hours(1),
};

/// Reason why the listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "port {port} is in use on {address}; choose another with --local-port, or 0 for a free one"
    )]
    InUse { port: u16, address: &'static str },
    #[error("cannot listen on 127.0.0.1:{port}: {source}")]
    Bind { port: u16, source: io::Error },
}

/// Sockets on the loopback addresses, with the same port.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<TcpListener>,
    pub port: u16,
}

impl Listener {
    /// Listens on a port of both loopback addresses, or on a free one if it is 0. Browsers resolve
    /// hosts below `localhost` to either of them, so that another process must not have the other.
    ///
    /// # Errors
    /// [`ListenError`]
    pub async fn bind(port: u16) -> Result<Self, ListenError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let bound = bind_both(port).await;
            match bound {
                Err(ListenError::InUse { .. }) if port == 0 && tries < MAX_PORTS => {}
                bound => return bound,
            }
        }
    }

    /// Serves connections until the drain begins.
    pub async fn serve(self, handler: Rc<SiteHandler>, drain: Drain, tasks: TaskTracker) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let memory = HeadMemory::new(HEAD_MEMORY);
        let accepting = self.sockets.iter().map(|socket| {
            let (handler, drain) = (Rc::clone(&handler), drain.clone());
            let (permits, memory, tasks) = (Arc::clone(&permits), memory.clone(), tasks.clone());
            async move {
                loop {
                    // The semaphore is never closed.
                    let permit = Arc::clone(&permits).acquire_owned().await.ok();
                    let stream = match socket.accept().await {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            tracing::debug!(%error, "failed to accept a connection");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    let serving = serve(stream, Rc::clone(&handler), memory.clone(), drain.clone());
                    tasks.spawn_local(async move {
                        serving.await;
                        drop(permit);
                    });
                }
            }
        });
        tokio::select! {
            () = drain.begun() => {}
            _ = futures::future::join_all(accepting) => {}
        }
    }
}

async fn serve(stream: TcpStream, handler: Rc<SiteHandler>, memory: HeadMemory, drain: Drain) {
    // Fails if the browser has closed the connection, which the first read reports too.
    let _ = stream.set_nodelay(true);
    let connection = ServerConnection::new(Stream::Plain(stream), TIMEOUTS.body);
    let served = connection.serve(&*handler, TIMEOUTS, &memory, &drain).await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection failed");
    }
}

async fn bind_both(port: u16) -> Result<Listener, ListenError> {
    let failed = |source: io::Error, port, address| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { port, address },
        _ => ListenError::Bind { port, source },
    };
    let bound = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
    let first = bound.map_err(|source| failed(source, port, "127.0.0.1"))?;
    let port = first.local_addr().map_or(port, |address| address.port());
    let second = TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await;
    let sockets = match second {
        Ok(second) => vec![first, second],
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
            return Err(failed(source, port, "::1"));
        }
        // A host without IPv6.
        Err(_) => vec![first],
    };
    Ok(Listener { sockets, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_that_is_taken_on_either_address_is_an_error() {
        let listener = Listener::bind(0).await.unwrap();
        let port = listener.port;
        let error = Listener::bind(port).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!(
                "port {port} is in use on 127.0.0.1; choose another"
            )),
            "{error}"
        );
        let Ok(other) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
            // Without IPv6 there is no other address.
            return;
        };
        let port = other.local_addr().unwrap().port();
        let error = Listener::bind(port).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("port {port} is in use on ")),
            "{error}"
        );
    }
}
