//! Accepts connections, reads headers of the PROXY protocol, performs TLS handshakes and serves
//! HTTP/1.1 or HTTP/2: one task per connection, on the worker that accepted it.

mod opening;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, Version};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::task::TaskTracker;

use crate::authenticate::{ClientCertificate, Peer};
use crate::client_connection::{ConnectionGuard, ConnectionPermits, ConnectionQuota};
use crate::drain::Drain;
use crate::http::h1::{RejectedLine, RequestError, ServerConnection, Timeouts};
use crate::http::{Handler, HeadMemory, Interim, Reply, Request, Stream, h2};
use crate::metrics::Metrics;
use crate::model::Networks;
use crate::proxy::{Body, Proxy};
use crate::telemetry::LogLimit;
use crate::tls::{ServerTls, is_certificate_error};
use opening::{HeaderError, Opening};

/// Pause after a failed accept. Without it a process without free file descriptors would loop,
/// because the pending connection stays in the queue.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Events about handshakes without the key of the certificate.
static NO_KEY: LogLimit = LogLimit::new(10);

/// Timeouts and limits of connections. One per worker.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the TLS handshake and the header of the PROXY protocol together.
    pub handshake_timeout: Duration,
    pub timeouts: Timeouts,
    /// Memory for large heads, shared by the workers.
    pub head_memory: HeadMemory,
    pub quota: ConnectionQuota,
}

/// Listener of one port on one worker.
#[derive(Debug)]
pub struct Listener {
    /// `None` for plain HTTP.
    pub tls: Option<Arc<ServerTls>>,
    /// Load balancers whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Networks,
    pub proxy: Rc<Proxy>,
    pub limits: Limits,
    pub metrics: Metrics,
    pub drain: Drain,
    /// Tasks of the worker.
    pub tasks: TaskTracker,
    /// Warnings about the PROXY protocol, of which each connection may cause one.
    pub warned: LogLimit,
}

/// Connection that is ready for its first request.
struct Opened {
    stream: Stream,
    peer: Peer,
}

/// Reason why a connection ended before its first request.
enum OpenError {
    /// The client sent nothing, as health checks do.
    Unused,
    /// The client in the header of the PROXY protocol has its share of connections.
    ClientShare(IpAddr),
    /// A load balancer sent no valid header of the PROXY protocol.
    Header(HeaderError),
    /// Another address sent one.
    UnexpectedHeader,
    /// HTTP without TLS on the HTTPS port. Has its version and the address of the client.
    PlainHttp(TcpStream, Opening, IpAddr),
    /// Neither HTTP nor TLS on the HTTPS port.
    OtherProtocol,
    Tls(io::Error),
}

impl Listener {
    /// Accepts connections until the drain begins, then closes `socket`. Open connections continue
    /// in their tasks. Workers listen on clones of one socket, so that an idle worker takes the
    /// next connection.
    pub async fn run(self, socket: TcpListener) {
        let listener = Rc::new(self);
        let mut drained = pin!(listener.drain.begun());
        loop {
            let accepted = tokio::select! {
                // A connection that waits for a permit is dropped with the future of `accept`: none
                // of its requests has been read.
                () = &mut drained => return,
                accepted = listener.accept(&socket) => accepted,
            };
            match accepted {
                Ok((stream, address, permits)) => {
                    let serving = Rc::clone(&listener);
                    listener.tasks.spawn_local(async move {
                        serving.connection(stream, address, permits).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept(
        &self,
        socket: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, ConnectionPermits)> {
        loop {
            let (stream, address) = socket.accept().await?;
            let metrics = &self.metrics.connection_limits;
            let quota = &self.limits.quota;
            let admitted = quota.admit(address.ip().into(), || {
                metrics.delayed.inc();
            });
            if let Some(permits) = admitted.await {
                return Ok((stream, address, permits));
            }
            metrics.over_share.inc();
            tracing::debug!(
                %address,
                "connection closed: its client address is at serving.maxConnectionsPerClient"
            );
        }
    }

    async fn connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        mut permits: ConnectionPermits,
    ) {
        // Before the handshake, so that unfinished ones are counted as connections.
        let open = self.metrics.connections.enter();
        // Fails if the peer has reset the connection, which the first read reports too.
        let _ = crate::client_connection::configure_socket(&stream);
        let opening = self.open(stream, address.ip().to_canonical(), &mut permits);
        let opened = tokio::time::timeout(self.limits.handshake_timeout, opening).await;
        let guard = ConnectionGuard::new(open, Some(permits));
        match opened {
            Ok(Ok(opened)) => self.serve(opened, guard, address).await,
            Ok(Err(error)) => self.opening_failed(error, &guard, address).await,
            Err(_) => tracing::debug!(%address, "handshake timed out"),
        }
    }

    /// Reads what precedes the first request: the header of the PROXY protocol, then TLS.
    async fn open(
        &self,
        mut stream: TcpStream,
        address: IpAddr,
        permits: &mut ConnectionPermits,
    ) -> Result<Opened, OpenError> {
        let mut client = address;
        if self.proxy_protocol.contains(address) {
            let header = opening::read_proxy_header(&mut stream).await;
            let header = header.map_err(|error| match error {
                HeaderError::Unused => OpenError::Unused,
                error => OpenError::Header(error),
            })?;
            if let Some(source) = header.source {
                client = source;
                if !self.limits.quota.transfer(permits, source.into()) {
                    return Err(OpenError::ClientShare(source));
                }
            }
        }
        let Some(tls) = &self.tls else {
            let peer = Peer::new(client, false, None);
            let stream = Stream::Plain(stream);
            return Ok(Opened { stream, peer });
        };
        match opening::detect(&mut stream).await.map_err(OpenError::Tls)? {
            Opening::Tls => {}
            Opening::Unused => return Err(OpenError::Unused),
            Opening::ProxyHeader => return Err(OpenError::UnexpectedHeader),
            Opening::Other => return Err(OpenError::OtherProtocol),
            opening @ (Opening::Http1 | Opening::Http2) => {
                return Err(OpenError::PlainHttp(stream, opening, client));
            }
        }
        let handshake = TlsAcceptor::from(tls.config()).accept(stream);
        let stream = handshake.await.map_err(OpenError::Tls)?;
        // The handshake verified possession of the key only; `authenticate` verifies the chain.
        let session = stream.get_ref().1;
        let chain: &[CertificateDer<'_>] = session.peer_certificates().unwrap_or_default();
        let certificate = ClientCertificate::new(chain).map(Arc::new);
        Ok(Opened {
            peer: Peer::new(client, true, certificate),
            stream: Stream::Tls(Box::new(TlsStream::Server(stream))),
        })
    }

    /// Logs and counts a connection that ended before its first request.
    async fn opening_failed(&self, error: OpenError, guard: &ConnectionGuard, address: SocketAddr) {
        let metrics = &self.metrics.connection_limits;
        match error {
            OpenError::Unused => {}
            OpenError::ClientShare(client) => {
                metrics.over_share.inc();
                tracing::debug!(
                    %address,
                    %client,
                    "connection closed: its client is at serving.maxConnectionsPerClient"
                );
            }
            OpenError::Header(error) => {
                metrics.proxy_header.inc();
                self.warn(address, &error.to_string());
            }
            OpenError::UnexpectedHeader => {
                metrics.proxy_header.inc();
                self.warn(address, &RequestError::ProxyHeader.to_string());
            }
            OpenError::PlainHttp(stream, opening, client) => {
                let peer = Peer::new(client, false, None);
                let line = RejectedLine {
                    version: (opening == Opening::Http2).then_some(Version::HTTP_2),
                    ..RejectedLine::default()
                };
                // Recorded as other requests that are not valid, and answered as Go does.
                drop(
                    self.proxy
                        .reject(RequestError::PlainHttp, line, &peer, guard),
                );
                opening::reject_plain_http(stream, opening).await;
            }
            OpenError::OtherProtocol => {
                tracing::debug!(%address, "connection closed: it begins with neither TLS nor HTTP");
            }
            OpenError::Tls(error) if is_certificate_error(&error) && NO_KEY.permits() => {
                tracing::info!(
                    %address,
                    %error,
                    "TLS handshake failed: the client does not hold the key of its certificate"
                );
            }
            OpenError::Tls(error) => tracing::debug!(%address, %error, "TLS handshake failed"),
        }
    }

    /// Warns of a connection that was closed because of its header of the PROXY protocol. Most such
    /// connections follow from the configuration of either side, so one of them is enough.
    fn warn(&self, address: SocketAddr, error: &str) {
        if self.warned.permits() {
            tracing::warn!(%address, error, "connection closed; further ones are counted only");
        } else {
            tracing::debug!(%address, error, "connection closed");
        }
    }

    async fn serve(&self, opened: Opened, guard: ConnectionGuard, address: SocketAddr) {
        let Opened { mut stream, peer } = opened;
        let handler = Rc::new(ConnectionHandler {
            proxy: Rc::clone(&self.proxy),
            peer,
            guard,
        });
        let Limits {
            timeouts,
            head_memory,
            ..
        } = &self.limits;
        let drain = &self.drain;
        let Some(is_http2) = is_http2(&mut stream, timeouts.head).await else {
            return;
        };
        if is_http2 {
            // The PINGs keep an unused connection open, so it needs an idle timeout.
            let idle = || wait_until_idle(&handler.guard, timeouts.idle);
            let (streams, memory) = (Rc::clone(&handler), head_memory.clone());
            let served = h2::serve(stream, streams, *timeouts, memory, drain, idle);
            if let Err(error) = served.await {
                tracing::debug!(%address, %error, "connection failed");
            }
        } else {
            let connection = ServerConnection::new(stream, timeouts.body);
            let served = connection.serve(&*handler, *timeouts, head_memory, drain);
            if let Err(error) = served.await {
                let is_unused = handler.guard.idle_after() == Some(0);
                if !is_unused || !opening::is_reset(&error) {
                    tracing::debug!(%address, %error, "connection failed");
                }
            }
        }
    }
}

/// Returns true if the client speaks HTTP/2, `None` if it negotiated that and sends nothing. Clients
/// in Go offer HTTP/2 to an HTTPS proxy too, and send their CONNECT over HTTP/1.1 nevertheless; the
/// preface of HTTP/2 begins with another letter.
async fn is_http2(stream: &mut Stream, limit: Duration) -> Option<bool> {
    if stream.alpn_protocol() != Some(b"h2") {
        return Some(false);
    }
    let first = tokio::time::timeout(limit, stream.first_byte())
        .await
        .ok()?;
    Some(!matches!(first, Ok(Some(b'C'))))
}

/// Passes the requests of one connection to the pipeline.
struct ConnectionHandler {
    proxy: Rc<Proxy>,
    peer: Peer,
    guard: ConnectionGuard,
}

impl Handler for ConnectionHandler {
    type Body = Body;

    fn handle(
        &self,
        request: &mut Request,
        interim: Option<Interim>,
    ) -> impl Future<Output = Reply<Body>> {
        self.proxy.handle(request, &self.peer, &self.guard, interim)
    }

    fn reject(&self, error: RequestError, line: RejectedLine) -> Response<Body> {
        self.proxy.reject(error, line, &self.peer, &self.guard)
    }
}

/// Waits until the connection had no request for at least `timeout`, at most twice that. A client
/// that never sent a request is idle from the start.
async fn wait_until_idle(guard: &ConnectionGuard, timeout: Duration) {
    // Comparing at intervals needs no timer per request. An equal count means that no request began
    // in the interval, even if one also ended in it.
    let mut before = guard.idle_after();
    loop {
        tokio::time::sleep(timeout).await;
        let now = guard.idle_after();
        if now.is_some() && now == before {
            return;
        }
        before = now;
    }
}

#[cfg(test)]
mod tests;
