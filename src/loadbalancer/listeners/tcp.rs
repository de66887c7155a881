//! TCP listeners: each connection of a client gets one to an endpoint.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proxy_header::{ProxiedAddress, ProxyHeader};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::{DataPath, SpecCell};
use crate::client_connection::ConnectionPermits;
use crate::http::{Stream, Upgraded, UpgradedConnection};
use crate::loadbalancer::{ListenerKey, ListenerSpec, Rejection};
use crate::model::Endpoint;
use crate::telemetry::LogLimit;
use crate::tunnel::Relay;

/// Pause after a failed accept. Without it a process without free file descriptors would loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Timeout for an endpoint to take the header of the PROXY protocol, which fits into any buffer.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Warnings about failed accepts.
static FAILED: LogLimit = LogLimit::new(10);

/// Client of a listener.
struct Client {
    listener: ListenerKey,
    stream: TcpStream,
    address: SocketAddr,
    spec: Arc<ListenerSpec>,
}

impl DataPath {
    /// Accepts connections until the task is aborted. They continue in tasks of their own.
    pub(super) async fn accept(
        self: Rc<Self>,
        listener: ListenerKey,
        socket: TcpListener,
        spec: Rc<SpecCell>,
    ) {
        loop {
            match socket.accept().await {
                Ok((stream, address)) => {
                    let admitted = self.admit(&stream, address, &spec).await;
                    if let Some((spec, permits)) = admitted {
                        let client = Client {
                            listener,
                            stream,
                            address,
                            spec,
                        };
                        let serving = Rc::clone(&self).connection(client, permits);
                        self.tasks.spawn_local(serving);
                    }
                }
                Err(error) => {
                    if FAILED.permits() {
                        tracing::warn!(%listener, %error, "failed to accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Acquires the permits of a connection, and returns them with the specification that applies
    /// to it. `None` if it must be closed.
    async fn admit(
        &self,
        stream: &TcpStream,
        address: SocketAddr,
        spec: &SpecCell,
    ) -> Option<(Arc<ListenerSpec>, ConnectionPermits)> {
        // A client that is rejected takes no permit.
        self.allowed(stream, address, spec)?;
        let quota = &self.limits.quota;
        // Further connections wait in the kernel's queue.
        let Some(permits) = quota.admit(address.ip().into(), || {}).await else {
            self.metrics.accepted.client_share.inc();
            reset(stream);
            return None;
        };
        // The specification may have been replaced meanwhile.
        let spec = self.allowed(stream, address, spec)?;
        Some((spec, permits))
    }

    /// Returns the current specification of a listener. `None` if it rejects the client, whose
    /// connection is reset then.
    fn allowed(
        &self,
        stream: &TcpStream,
        address: SocketAddr,
        spec: &SpecCell,
    ) -> Option<Arc<ListenerSpec>> {
        let spec = spec.get();
        let local = spec
            .addresses
            .as_ref()
            .and_then(|_| stream.local_addr().ok());
        let rejected = spec.check(address.ip(), local.map(|local| local.ip()));
        let accepted = &self.metrics.accepted;
        match rejected {
            Ok(()) => return Some(spec),
            Err(Rejection::SourceRange) => accepted.source_range.inc(),
            Err(Rejection::Address) => accepted.address.inc(),
        };
        reset(stream);
        None
    }

    async fn connection(self: Rc<Self>, client: Client, _permits: ConnectionPermits) {
        let _open = self.metrics.connections.enter();
        // Boxed, because it is large and the connection is long.
        let Some((endpoint, dialed)) = Box::pin(self.connect(&client)).await else {
            reset(&client.stream);
            return;
        };
        let (received, sent) = (Cell::new(0), Cell::new(0));
        let started = Instant::now();
        let endpoint = Upgraded::Http1(UpgradedConnection {
            stream: endpoint,
            input: Bytes::new(),
        });
        let Client {
            listener,
            stream,
            address,
            spec,
        } = client;
        let relay = Relay::new(Upgraded::from_tcp(stream, Bytes::new()), endpoint);
        let ended = tokio::select! {
            ended = relay.run(&received, &sent) => ended.map_err(|error| error.to_string()),
            // Dropping the relay resets both sides.
            () = self.drain.forced() => Err("the bastion is shutting down".to_owned()),
        };
        let accepted = &self.metrics.accepted;
        let result = if ended.is_ok() {
            &accepted.completed
        } else {
            &accepted.reset
        };
        result.inc();
        self.metrics.received.inc_by(received.get());
        self.metrics.sent.inc_by(sent.get());
        tracing::debug!(
            %listener,
            client = %address,
            endpoint = %dialed.address,
            service = %format_args!("{}/{}", spec.namespace, spec.service),
            received = received.get(),
            sent = sent.get(),
            seconds = started.elapsed().as_secs_f64(),
            error = ended.err(),
            "connection ended"
        );
    }

    /// Connects to an endpoint. `None` if there is none, or none accepts.
    async fn connect(&self, client: &Client) -> Option<(Stream, Endpoint)> {
        let Client {
            listener,
            address,
            spec,
            stream,
        } = client;
        let accepted = &self.metrics.accepted;
        let Some(candidates) = self.candidates(*listener, spec) else {
            accepted.no_endpoint.inc();
            tracing::debug!(%listener, client = %address, "connection reset: no ready endpoint");
            return None;
        };
        let ip = address.ip();
        let preferred = spec.client_affinity.and_then(|timeout| {
            self.affinity
                .endpoint(*listener, ip, timeout, Instant::now())
        });
        let mut dialed = None;
        let connecting = self
            .forwarder
            .connect_listener(&candidates, preferred, ip, &mut dialed);
        let mut endpoint = match connecting.await {
            Ok(endpoint) => endpoint,
            Err(errors) => {
                accepted.dial_failed.inc();
                for error in errors {
                    tracing::debug!(%listener, client = %address, %error, "cannot connect");
                }
                return None;
            }
        };
        let dialed = dialed?;
        if spec.client_affinity.is_some() {
            self.affinity
                .record(*listener, ip, dialed.address, Instant::now());
        }
        if spec.proxy_protocol {
            let sent = async {
                let header = proxy_header(*address, stream.local_addr()?)?;
                endpoint.write_all(&header).await
            };
            if !matches!(timeout(HEADER_TIMEOUT, sent).await, Ok(Ok(()))) {
                accepted.dial_failed.inc();
                return None;
            }
        }
        Some((endpoint, dialed))
    }
}

/// Returns a header of the PROXY protocol, version 2.
fn proxy_header(client: SocketAddr, local: SocketAddr) -> io::Result<Vec<u8>> {
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let addresses = ProxiedAddress::stream(canonical(client), canonical(local));
    let mut header = Vec::new();
    ProxyHeader::with_address(addresses)
        .encode_v2(&mut header)
        .map_err(io::Error::other)?;
    Ok(header)
}

/// Makes the close of a connection a reset, so that its client does not take it for an empty answer.
fn reset(stream: &TcpStream) {
    // Fails if the client has closed it.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
