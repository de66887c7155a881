//! HTTP/1.1 servers of the demo's endpoints, which can be switched off and on.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Length of the listen queue.
const BACKLOG: u32 = 128;
/// Wait after a failed accept, so that a lack of file descriptors does not cause a busy loop.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);

/// Attempts to bind a port again, and the pause between them.
const MAX_BINDS: u32 = 100;
const BIND_PAUSE: Duration = Duration::from_millis(10);

/// Starts a server on a free loopback port and returns the port. While `on` is false, the port
/// refuses connections and those that were open are closed, as if the process had ended.
pub(super) async fn start(routes: Router, on: watch::Receiver<bool>) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        if let Err(error) = run(listener, address, routes, on).await {
            tracing::error!(%error, %address, "an endpoint of the demo has ended");
        }
    });
    Ok(address.port())
}

/// Waits until the switch is off. Returns if it is dropped, too.
pub(super) async fn switched_off(on: &mut watch::Receiver<bool>) {
    let _ = on.wait_for(|on| !*on).await;
}

async fn run(
    mut listener: TcpListener,
    address: SocketAddr,
    routes: Router,
    mut on: watch::Receiver<bool>,
) -> io::Result<()> {
    loop {
        accept(listener, &routes, &mut on).await;
        let reserved = reserve(address).await?;
        if on.wait_for(|on| *on).await.is_err() {
            return Ok(());
        }
        listener = reserved.listen(BACKLOG)?;
    }
}

/// Returns a socket that is bound and does not listen: it refuses connections, and the kernel does
/// not select its port for outgoing connections of other processes.
async fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let mut attempt = 1;
    loop {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        match socket.bind(address) {
            Ok(()) => return Ok(socket),
            // A child process has a copy of the previous listener until it executes its program.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < MAX_BINDS => {
                attempt += 1;
                tokio::time::sleep(BIND_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Serves connections until the switch is off, and closes them.
async fn accept(listener: TcpListener, routes: &Router, on: &mut watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, routes.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            },
            Some(_) = connections.join_next() => {}
            () = switched_off(on) => return,
        }
    }
}

async fn serve(stream: TcpStream, routes: Router) {
    let service = TowerToHyperService::new(routes);
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // The peer is the bastion, which handles and logs broken connections.
    let _ = connection.with_upgrades().await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    async fn connect(port: u16) -> io::Result<TcpStream> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await
    }

    #[tokio::test]
    async fn refuses_and_closes_connections_while_off() {
        let (switch, on) = watch::channel(true);
        let routes = Router::new().route("/", get(async || "here"));
        let port = start(routes, on).await.unwrap();
        for _ in 0..3 {
            let mut client = connect(port).await.unwrap();
            client.write_all(REQUEST).await.unwrap();
            let mut head = [0; 15];
            client.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");

            switch.send_replace(false);
            // The connection ends, after the rest of the response.
            while client.read(&mut [0; 256]).await.unwrap_or_default() > 0 {}
            let error = loop {
                // A connection may have been completed by the kernel just before.
                match connect(port).await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

            switch.send_replace(true);
            while connect(port).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
    }
}
