//! Accepts connections, shakes hands and serves HTTP/1.1 or HTTP/2 on them: one task per
//! connection, on the worker that accepted it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::authenticate::{ClientCertificate, Peer};
use crate::connection::{ClientShares, ConnectionGuard, ConnectionPermits};
use crate::drain::Drain;
use crate::http::{Interim, LocalExecutor, MAX_HEADER_BYTES, WithInterim};
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::tls::ServerTls;

/// What an HTTP/2 client may have open and in flight, as kube-apiserver lets it (CONFORMANCE C102).
const H2_STREAMS: u32 = 100;
const H2_WINDOW: u32 = 256 * 1024;
/// An HTTP/2 client that is silent is asked whether it is there, and given this long to say so
/// (C53).
const H2_PING: Duration = Duration::from_secs(30);
const H2_PONG: Duration = Duration::from_secs(15);
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How connections are served. One per worker.
#[derive(Clone, Debug)]
pub struct Limits {
    pub handshake_timeout: Duration,
    /// Between requests, and for the head of a request: hyper has one clock for both.
    pub idle_timeout: Duration,
    /// Shared by the workers; none where there is no limit.
    pub connections: Option<Arc<Semaphore>>,
    /// The share of each client address; likewise.
    pub clients: Option<Arc<ClientShares>>,
}

/// One port, as one worker serves it.
#[derive(Debug)]
pub struct Listener {
    /// None for plain HTTP.
    pub tls: Option<Arc<ServerTls>>,
    pub proxy: Rc<Proxy>,
    pub limits: Limits,
    pub metrics: Metrics,
    pub drain: Drain,
    /// The worker's tasks.
    pub tasks: TaskTracker,
}

impl Listener {
    /// Accepts until the drain begins, then closes `socket`. Connections live on in their tasks.
    /// The workers listen on clones of one socket: whoever is free takes the next connection.
    pub async fn run(self, socket: TcpListener) {
        let listener = Rc::new(self);
        let mut drained = pin!(listener.drain.begun());
        loop {
            let accepted = tokio::select! {
                () = &mut drained => return,
                accepted = listener.accept(&socket) => accepted,
            };
            match accepted {
                Ok((stream, address, places)) => {
                    let serving = Rc::clone(&listener);
                    listener.tasks.spawn_local(async move {
                        serving.connection(stream, address, places).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept(
        &self,
        socket: &TcpListener,
    ) -> std::io::Result<(TcpStream, SocketAddr, ConnectionPermits)> {
        loop {
            let (stream, address) = socket.accept().await?;
            let mut places = ConnectionPermits::default();
            if let Some(clients) = &self.limits.clients {
                // Before the wait below, so that no address over its share makes the others wait
                // behind it; and before TLS, so that it costs nothing but the accept.
                places.share = clients.take(address.ip().into());
                if places.share.is_none() {
                    self.metrics.connection_limits.over_share.inc();
                    tracing::debug!(%address, "a connection was closed: its client address has its share");
                    continue;
                }
            }
            if let Some(connections) = &self.limits.connections {
                // The one that came waits for its place, the others in the kernel's queue. The
                // other way round a port where nobody comes would hold places.
                places.permit = if let Ok(permit) = Arc::clone(connections).try_acquire_owned() {
                    Some(permit)
                } else {
                    self.metrics.connection_limits.delayed.inc();
                    Arc::clone(connections).acquire_owned().await.ok()
                };
            }
            return Ok((stream, address, places));
        }
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr, places: ConnectionPermits) {
        let guard = ConnectionGuard::new(self.metrics.connections.enter(), Some(places));
        // A peer that reset already is found out by the first read.
        let _ = crate::connection::configure_socket(&stream);
        let served = match &self.tls {
            None => {
                let peer = Peer {
                    address,
                    secure: false,
                    certificate: None,
                };
                self.http1(stream, peer, guard).await
            }
            Some(tls) => {
                let handshake = TlsAcceptor::from(tls.config()).accept(stream);
                let stream =
                    match tokio::time::timeout(self.limits.handshake_timeout, handshake).await {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(error)) => {
                            return tracing::debug!(%address, %error, "a TLS handshake failed");
                        }
                        Err(_) => return tracing::debug!(%address, "a TLS handshake took too long"),
                    };
                let session = stream.get_ref().1;
                let chain: &[CertificateDer<'_>] = session.peer_certificates().unwrap_or_default();
                let certificate = ClientCertificate::new(chain).map(Arc::new);
                let peer = Peer {
                    address,
                    secure: true,
                    certificate,
                };
                if session.alpn_protocol() == Some(b"h2") {
                    self.http2(stream, peer, guard).await
                } else {
                    self.http1(stream, peer, guard).await
                }
            }
        };
        if let Err(error) = served {
            tracing::debug!(%address, %error, "a connection ended with an error");
        }
    }

    async fn http1<I>(&self, stream: I, peer: Peer, guard: ConnectionGuard) -> hyper::Result<()>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let interim = Interim::default();
        let stream = WithInterim::new(stream, interim.clone());
        let service = service_fn(async |request: Request<Incoming>| {
            // HTTP/1.0 knows no interim answers.
            let interim = (request.version() == Version::HTTP_11).then_some(&interim);
            Ok::<_, Infallible>(self.proxy.handle(request, &peer, &guard, interim).await)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle_timeout)
            .title_case_headers(true)
            .max_header_size(MAX_HEADER_BYTES as usize)
            .max_buf_size(MAX_HEADER_BYTES as usize)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        self.until_drained(
            connection,
            http1::UpgradeableConnection::graceful_shutdown,
            None,
        )
        .await
    }

    async fn http2<I>(&self, stream: I, peer: Peer, guard: ConnectionGuard) -> hyper::Result<()>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        // Streams run as tasks of their own, so each holds what it needs.
        let shared = Rc::new((Rc::clone(&self.proxy), peer, guard));
        let stream_shared = Rc::clone(&shared);
        let service = service_fn(move |request| {
            let shared = Rc::clone(&stream_shared);
            async move {
                let (proxy, peer, guard) = &*shared;
                Ok::<_, Infallible>(proxy.handle(request, peer, guard, None).await)
            }
        });
        let connection = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS)
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW * 4)
            .max_header_list_size(MAX_HEADER_BYTES)
            // WebSockets over HTTP/2 (RFC 8441).
            .enable_connect_protocol()
            .keep_alive_interval(H2_PING)
            .keep_alive_timeout(H2_PONG)
            .serve_connection(TokioIo::new(stream), service);
        self.until_drained(
            connection,
            http2::Connection::graceful_shutdown,
            Some(&shared.2),
        )
        .await
    }

    /// Serves to the end; once the drain begins, or the connection was idle too long, to the end of
    /// the requests that run (HTTP/2 sends GOAWAY). HTTP/1.1 has its idle timeout in hyper.
    async fn until_drained<C: Future<Output = hyper::Result<()>>>(
        &self,
        connection: C,
        finish: impl FnOnce(Pin<&mut C>),
        guard: Option<&ConnectionGuard>,
    ) -> hyper::Result<()> {
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = self.drain.begun() => finish(connection.as_mut()),
            () = self.idle(guard) => finish(connection.as_mut()),
        }
        tokio::select! {
            ended = connection => ended,
            // The client does not even hear that it is to go.
            () = self.idle(guard) => Ok(()),
        }
    }

    /// Returns once nothing was asked for the idle timeout. A client that never said anything is
    /// idle from the first.
    async fn idle(&self, guard: Option<&ConnectionGuard>) {
        let Some(guard) = guard else {
            return std::future::pending().await;
        };
        let mut before = guard.idle_since();
        loop {
            tokio::time::sleep(self.limits.idle_timeout).await;
            let now = guard.idle_since();
            if now.is_some() && now == before {
                return;
            }
            before = now;
        }
    }
}
