//! The port for probes and Prometheus: plain HTTP, for the cluster alone. Every wait and every
//! connection is bounded, because whoever reaches the pod reaches this port.

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

/// What OpenMetrics asks for as the type of its text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Time limit of a request's head, and of a kept connection without one. Probes and scrapes send
/// theirs in one packet.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that a response makes no progress because the client does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection: some scrapes. Whatever a client does, it is gone after this and
/// [`HEAD_TIMEOUT`].
const MAX_AGE: Duration = Duration::from_mins(5);
/// Connections at once. A kubelet and a few Prometheus servers need a handful.
const MAX_CONNECTIONS: usize = 128;
/// Requests' heads are small here.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// A pause after a failed accept, which is mostly a lack of descriptors that no retry helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The admin port, bound.
#[derive(Debug)]
pub struct Admin {
    socket: TcpListener,
    routes: Router,
}

#[derive(Clone, Debug)]
struct Shown {
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
                    "there is /livez, /readyz and /metrics\n",
                )
            })
            .with_state(Shown {
                ready,
                registry: Arc::new(registry),
            });
        Self { socket, routes }
    }

    /// Serves `/livez`, `/readyz` and `/metrics` for ever. Connections end with it.
    pub async fn serve(self: Arc<Self>) {
        let mut connections = Connections::default();
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    connections.add(peer.ip(), connection(stream, self.routes.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin port could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The open connections, oldest first.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    order: VecDeque<(IpAddr, AbortHandle)>,
}

impl Connections {
    /// Of too many, the oldest of the address that has most gives way: were the new one rejected or
    /// made to wait, a client that opens connections and says nothing would keep the kubelet's
    /// probes out, and the pod be killed; were it the oldest of all, a flood would end probes that
    /// are being answered.
    fn add(&mut self, peer: IpAddr, connection: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.order.retain(|(_, task)| !task.is_finished());
        while self.order.len() >= MAX_CONNECTIONS {
            let mut counts = HashMap::new();
            for (address, _) in &self.order {
                *counts.entry(*address).or_insert(0_usize) += 1;
            }
            let most = counts
                .into_iter()
                .max_by_key(|(_, count)| *count)
                .map(|(address, _)| address);
            let Some(oldest) = self
                .order
                .iter()
                .position(|(address, _)| Some(*address) == most)
            else {
                break;
            };
            if let Some((address, oldest)) = self.order.remove(oldest) {
                tracing::debug!(%address, "too many connections to the admin port: the oldest of this address is closed");
                oldest.abort();
            }
        }
        self.order.push_back((peer, self.tasks.spawn(connection)));
    }
}

async fn connection(stream: TcpStream, routes: Router) {
    // The kernel also counts data that a closed window holds back (tcp(7)). Failing means that the
    // peer reset already.
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
        () = tokio::time::sleep(MAX_AGE) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(HEAD_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the admin port ended with an error");
    }
}

async fn readyz(State(Shown { ready, .. }): State<Shown>) -> impl IntoResponse {
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

async fn metrics(State(Shown { registry, .. }): State<Shown>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text)),
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

    async fn say(address: std::net::SocketAddr, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// Whatever the server sends until it closes the connection.
    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        // A reset is an end too.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn closes_connections_with_unfinished_heads() {
        let address = admin().await;
        let mut silent = Vec::new();
        for head in ["", "GET /livez HTTP/1.1\r\nHost: a\r\n"].repeat(20) {
            silent.push(say(address, head).await);
        }
        for stream in silent {
            assert!(!rest(stream).await.contains("200 OK"));
        }
    }

    #[tokio::test]
    async fn oldest_connection_gives_way_so_that_probes_are_answered() {
        let address = admin().await;
        let mut silent = Vec::new();
        for _ in 0..=MAX_CONNECTIONS {
            silent.push(say(address, "GET /livez HTTP/1.1\r\n").await);
        }
        let probe = say(
            address,
            "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
        assert!(rest(probe).await.ends_with("ok\n"));
        assert_eq!(rest(silent.remove(0)).await, "", "the oldest is closed");
    }

    #[tokio::test]
    async fn a_flood_of_one_address_ends_no_connection_of_another() {
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
