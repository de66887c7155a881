//! Admin port: probes and metrics over plain HTTP, for clients inside the cluster.
//!
//! Every wait and the number of connections are bounded, because every client that can reach the
//! pod can reach this port.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::ready::Ready;

/// Content type of the OpenMetrics text format.
const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Timeout of the head of a request, and of an idle connection. Probes and scrapes send their head
/// in one packet.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time without progress of a response that the client does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum age of a connection: several scrapes. After it, the connection has [`HEAD_TIMEOUT`] to
/// finish its request and is then closed.
const MAX_CONNECTION_AGE: Duration = Duration::from_mins(5);
/// Maximum number of open connections. A kubelet and a few Prometheus servers need fewer than ten.
const MAX_CONNECTIONS: usize = 128;
/// Maximum size of the head of a request.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Pause after a failed accept. The usual cause is a lack of descriptors, which an immediate retry
/// does not change.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound admin port.
#[derive(Debug)]
pub struct Admin {
    socket: TcpListener,
    routes: Router,
}

#[derive(Clone, Debug)]
struct AdminState {
    ready: Ready,
    registry: Arc<Registry>,
}

impl Admin {
    pub fn new(socket: TcpListener, ready: Ready, registry: Registry) -> Self {
        let routes = Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .fallback(async || {
                (
                    StatusCode::NOT_FOUND,
                    "not found; the paths are /livez, /readyz and /metrics\n",
                )
            })
            .with_state(AdminState {
                ready,
                registry: Arc::new(registry),
            });
        Self { socket, routes }
    }

    /// Serves `/livez`, `/readyz` and `/metrics` until the task is aborted, which also closes the
    /// connections.
    pub async fn serve(self: Arc<Self>) {
        let mut connections = Connections::default();
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    connections.add(peer.ip(), connection(stream, self.routes.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the admin port");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Open connections, oldest first.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    order: VecDeque<(IpAddr, AbortHandle)>,
}

impl Connections {
    /// Adds a connection. At the limit, the oldest connection of the address with the most
    /// connections is closed.
    ///
    /// If the new connection were rejected or delayed instead, a client with idle connections could
    /// lock out the kubelet's probes, and the kubelet would kill the pod. If the oldest of all were
    /// closed, a flood could abort probes in progress.
    fn add(&mut self, peer: IpAddr, connection: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.order.retain(|(_, task)| !task.is_finished());
        while self.order.len() >= MAX_CONNECTIONS {
            let mut counts = HashMap::new();
            for (address, _) in &self.order {
                *counts.entry(*address).or_insert(0_usize) += 1;
            }
            let busiest = counts
                .into_iter()
                .max_by_key(|(_, count)| *count)
                .map(|(address, _)| address);
            let Some(oldest) = self
                .order
                .iter()
                .position(|(address, _)| Some(*address) == busiest)
            else {
                break;
            };
            if let Some((address, oldest)) = self.order.remove(oldest) {
                tracing::debug!(
                    %address,
                    "closing the oldest connection of this address: too many connections to the \
                     admin port"
                );
                oldest.abort();
            }
        }
        self.order.push_back((peer, self.tasks.spawn(connection)));
    }
}

async fn connection(stream: TcpStream, routes: Router) {
    // TCP_USER_TIMEOUT also covers data held back by a closed window (tcp(7)). The call only fails
    // if the peer has reset the connection.
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(WRITE_TIMEOUT));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(MAX_CONNECTION_AGE) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(HEAD_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection to the admin port failed");
    }
}

async fn readyz(State(AdminState { ready, .. }): State<AdminState>) -> impl IntoResponse {
    let (ready, report) = ready.report();
    (
        if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        report,
    )
}

async fn metrics(State(AdminState { registry, .. }): State<AdminState>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => Ok(([(header::CONTENT_TYPE, OPENMETRICS_TYPE)], text)),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn admin() -> std::net::SocketAddr {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let admin = Arc::new(Admin::new(socket, Ready::default(), Registry::default()));
        tokio::spawn(admin.serve());
        address
    }

    async fn send(address: std::net::SocketAddr, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// Reads until the server closes the connection.
    async fn read_all(mut stream: TcpStream) -> String {
        let mut response = Vec::new();
        // A reset also ends the response.
        let _ = stream.read_to_end(&mut response).await;
        String::from_utf8(response).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn closes_connections_with_unfinished_heads() {
        let address = admin().await;
        let mut silent = Vec::new();
        for head in ["", "GET /livez HTTP/1.1\r\nHost: a\r\n"].repeat(20) {
            silent.push(send(address, head).await);
        }
        for stream in silent {
            assert!(!read_all(stream).await.contains("200 OK"));
        }
    }

    #[tokio::test]
    async fn closes_oldest_connection_so_that_probes_succeed() {
        let address = admin().await;
        let mut silent = Vec::new();
        for _ in 0..=MAX_CONNECTIONS {
            silent.push(send(address, "GET /livez HTTP/1.1\r\n").await);
        }
        let probe = send(
            address,
            "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
        assert!(read_all(probe).await.ends_with("ok\n"));
        assert_eq!(read_all(silent.remove(0)).await, "", "the oldest is closed");
    }

    #[tokio::test]
    async fn flood_of_one_address_closes_no_connection_of_another() {
        let (flood, kubelet) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut connections = Connections::default();
        connections.add(kubelet, std::future::pending());
        for _ in 0..2 * MAX_CONNECTIONS {
            connections.add(flood, std::future::pending());
        }
        assert_eq!(connections.order.len(), MAX_CONNECTIONS);
        assert_eq!(
            connections
                .order
                .iter()
                .filter(|(peer, _)| *peer == kubelet)
                .count(),
            1
        );
    }
}
