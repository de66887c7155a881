//! New connections to endpoints.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::pki_types::DnsName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use super::http1_endpoints::Http1Endpoints;
use super::server_name::to_dns_name;
use super::tls_error::{TlsFailure, rejects_server_name};
use crate::balance::EndpointKey;
use crate::client_connection;
use crate::config;
use crate::http::Stream;
use crate::metrics::DialFailures;
use crate::resolve::Transport;
use crate::tls::ClientTls;

/// Opens connections. One per process, shared by the workers.
#[derive(Debug)]
pub struct Dialer {
    pub settings: config::Upstream,
    pub tls: ClientTls,
    pub own_addresses: OwnAddresses,
    /// Addresses of the UDP listeners of load balancers, which no flow of datagrams may have as its
    /// endpoint.
    pub own_udp: OwnAddresses,
    pub failures: DialFailures,
    /// Endpoints that require HTTP/1.1.
    pub http1_endpoints: Http1Endpoints,
}

/// Versions of HTTP that may be negotiated on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/2 if the endpoint supports it, else HTTP/1.1.
    Any,
    /// HTTP/1.1 only: for an upgrade, or because the endpoint requires it.
    Http1,
}

/// Failure to connect to an endpoint, with the messages of Go's dialer, which clients of
/// kube-apiserver expect. Nothing of the request was sent, so any request may be retried on another
/// endpoint.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The endpoint is unreachable, or refused the connection.
    #[error("dial {network} {address}: connect: {}", Reason(.source))]
    Connect {
        /// `tcp` or `udp`.
        network: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    /// This process has no descriptor or memory left, which says nothing about the endpoint.
    #[error("dial {network} {address}: socket: {}", Reason(.source))]
    NoSocket {
        /// `tcp` or `udp`.
        network: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    /// The endpoint did not accept the TCP connection in time.
    #[error("dial tcp {address}: i/o timeout")]
    Timeout { address: SocketAddr },
    /// The TLS handshake failed. The caller may have chosen a scheme that the endpoint does not
    /// serve, so this is not a sign of an unhealthy endpoint.
    #[error("dial tcp {address}: tls: {source}")]
    Tls {
        address: SocketAddr,
        source: TlsFailure,
    },
    /// The endpoint accepted the connection and did not finish the TLS handshake in time: it is
    /// frozen, or does not speak TLS, and so serves no caller of this transport.
    #[error("dial tcp {address}: i/o timeout")]
    TlsTimeout { address: SocketAddr },
    /// The endpoint accepted the connection and closed it before the first request.
    #[error("dial tcp {address}: connect: {source}")]
    Closed {
        address: SocketAddr,
        source: hyper::Error,
    },
    /// The endpoint is this process, so the request would loop (CONFORMANCE C110).
    #[error("dial {network} {address}: refusing to proxy to the bastion itself")]
    SelfCall {
        /// `tcp` or `udp`.
        network: &'static str,
        address: SocketAddr,
    },
}

impl DialError {
    /// Returns true if no caller can reach the endpoint, whatever the scheme or request. Only such
    /// errors eject an endpoint, because ejection affects all callers.
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::TlsTimeout { .. } => true,
            Self::NoSocket { .. }
            | Self::Tls { .. }
            | Self::Closed { .. }
            | Self::SelfCall { .. } => false,
        }
    }

    /// Returns the error of a socket that did not connect.
    pub(super) fn new(network: &'static str, address: SocketAddr, source: io::Error) -> Self {
        if lacks_resources(&source) {
            Self::NoSocket {
                network,
                address,
                source,
            }
        } else {
            Self::Connect {
                network,
                address,
                source,
            }
        }
    }
}

impl Dialer {
    /// Connects, with TLS if the transport uses it, within `limit`. `name` is sent in the handshake
    /// (SNI).
    pub(super) async fn dial(
        &self,
        key: EndpointKey,
        protocol: Protocol,
        name: Option<&str>,
        limit: Duration,
    ) -> Result<Stream, DialError> {
        let deadline = Instant::now() + limit;
        let name = name.and_then(to_dns_name);
        let named = name.is_some();
        let mut dialed = self.connect(key, protocol, name, deadline).await;
        if let Err(DialError::Tls { source, .. }) = &dialed
            && named
            && rejects_server_name(source)
        {
            // An endpoint with a list of names, which cannot contain those of the cluster, serves
            // clients without a name.
            dialed = self.connect(key, protocol, None, deadline).await;
        }
        match &dialed {
            Ok(_) => {}
            Err(DialError::Timeout { .. } | DialError::TlsTimeout { .. }) => {
                self.failures.timeout.inc();
            }
            Err(DialError::Tls { .. }) => {
                self.failures.tls.inc();
            }
            Err(
                DialError::Connect { .. }
                | DialError::NoSocket { .. }
                | DialError::Closed { .. }
                | DialError::SelfCall { .. },
            ) => {
                self.failures.connect.inc();
            }
        }
        dialed
    }

    async fn connect(
        &self,
        EndpointKey { address, transport }: EndpointKey,
        protocol: Protocol,
        name: Option<DnsName<'static>>,
        deadline: Instant,
    ) -> Result<Stream, DialError> {
        if self.own_addresses.contains(address) {
            return Err(DialError::SelfCall {
                network: "tcp",
                address,
            });
        }
        let remaining = || deadline.saturating_duration_since(Instant::now());
        let stream = timeout(remaining(), TcpStream::connect(address))
            .await
            .map_err(|_| DialError::Timeout { address })?
            .map_err(|source| DialError::new("tcp", address, source))?;
        client_connection::configure_socket(&stream)
            .map_err(|source| DialError::new("tcp", address, source))?;
        let tls = match transport {
            Transport::Http | Transport::H2c => return Ok(Stream::Plain(stream)),
            Transport::Https => Arc::clone(&self.tls.target),
            Transport::Kubelet => self.tls.kubelet.current(),
        };
        let (config, name) = tls.config(protocol == Protocol::Any, name, address.ip());
        let handshake = TlsConnector::from(config).connect(name, stream);
        let handshake_limit = self.settings.tls_handshake_timeout.min(remaining());
        let stream = timeout(handshake_limit, handshake)
            .await
            .map_err(|_| DialError::TlsTimeout { address })?
            .map_err(|error| DialError::Tls {
                address,
                source: TlsFailure::new(error, self.tls.min_version),
            })?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }

    /// Returns the versions of HTTP to negotiate with an endpoint.
    pub(super) fn protocol(&self, key: EndpointKey) -> Protocol {
        if self.settings.http2 && !self.http1_endpoints.contains(key, Instant::now()) {
            Protocol::Any
        } else {
            Protocol::Http1
        }
    }

    /// Uses HTTP/1.1 for further connections to an endpoint.
    pub(super) fn require_http1(&self, key: EndpointKey) {
        self.http1_endpoints.insert(key, Instant::now());
    }

    /// Returns true if a connection of the transport may be HTTP/2.
    pub(super) fn may_use_http2(&self, transport: Transport) -> bool {
        self.settings.http2 && transport.may_be_http2()
    }

    pub(super) fn sends_kubelet_token(&self) -> bool {
        self.tls.kubelet.sends_token
    }
}

/// Addresses on which this process listens. Clones share those of load balancers.
#[derive(Clone, Debug, Default)]
pub struct OwnAddresses {
    fixed: Arc<[SocketAddr]>,
    /// Listeners of load balancers, which change.
    listeners: Arc<ArcSwap<Vec<SocketAddr>>>,
}

impl OwnAddresses {
    pub fn new(sockets: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self {
            fixed: sockets.into_iter().collect(),
            listeners: Arc::default(),
        }
    }

    /// Replaces the listeners of load balancers.
    pub fn set_listeners(&self, listeners: Vec<SocketAddr>) {
        self.listeners.store(Arc::new(listeners));
    }

    /// Returns true if a connection to the address would end in this process.
    pub fn contains(&self, address: SocketAddr) -> bool {
        let is_own = |own: &SocketAddr| {
            own.port() == address.port()
                && (own.ip() == address.ip()
                    || own.ip().is_unspecified() && is_local_address(address.ip()).unwrap_or(true))
        };
        self.fixed.iter().any(is_own) || self.listeners.load().iter().any(is_own)
    }
}

/// Returns true for an address of this host: the kernel uses the same address as the source of
/// packets to it. Connecting a UDP socket selects the source and sends nothing. Runs only for dials
/// to a port on which this process listens.
///
/// # Errors
/// This process has no descriptor or memory left.
pub fn is_local_address(address: IpAddr) -> io::Result<bool> {
    let any: IpAddr = if address.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        // Port 9 (discard) is a placeholder.
        socket.connect((address, 9))?;
        socket.local_addr()
    };
    match source() {
        Ok(source) => Ok(source.ip() == address),
        Err(error) if lacks_resources(&error) => Err(error),
        // There is no route to it.
        Err(_) => Ok(false),
    }
}

/// Returns true if this process has no descriptor or memory left for a connection.
pub(super) fn lacks_resources(error: &io::Error) -> bool {
    use nix::errno::Errno::{self, EMFILE, ENFILE, ENOBUFS, ENOMEM};

    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
}

/// Formats an operating system error as Go does, without `(os error 111)`.
struct Reason<'a>(&'a io::Error);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            io::ErrorKind::ConnectionRefused => f.write_str("connection refused"),
            io::ErrorKind::ConnectionReset => f.write_str("connection reset by peer"),
            io::ErrorKind::HostUnreachable => f.write_str("no route to host"),
            io::ErrorKind::NetworkUnreachable => f.write_str("network is unreachable"),
            io::ErrorKind::TimedOut => f.write_str("connection timed out"),
            _ => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detects_own_listeners_by_any_host_address() {
        let own = |text: &str| OwnAddresses::new([text.parse().unwrap()]);
        let cases = [
            ("127.0.0.1:8443", "127.0.0.1:8443", true),
            ("127.0.0.1:8443", "127.0.0.1:8444", false),
            ("0.0.0.0:8443", "127.0.0.1:8443", true),
            ("[::]:8443", "127.0.0.1:8443", true),
            ("0.0.0.0:8443", "192.0.2.1:8443", false),
        ];
        for (listener, address, expected) in cases {
            assert_eq!(
                own(listener).contains(address.parse().unwrap()),
                expected,
                "{listener} {address}"
            );
        }
    }

    #[test]
    fn detects_listeners_of_load_balancers() {
        let own = OwnAddresses::default();
        let address = "127.0.0.1:80".parse().unwrap();
        own.clone()
            .set_listeners(vec!["0.0.0.0:80".parse().unwrap()]);
        assert!(own.contains(address));
        own.set_listeners(Vec::new());
        assert!(!own.contains(address));
    }

    #[test]
    fn formats_errors_like_gos_dialer() {
        let source = io::Error::from_raw_os_error(111);
        let error = DialError::new("tcp", "10.0.0.1:80".parse().unwrap(), source);
        assert_eq!(
            error.to_string(),
            "dial tcp 10.0.0.1:80: connect: connection refused"
        );
    }

    #[test]
    fn only_failed_connects_and_tls_timeouts_are_unreachable() {
        let address = "10.0.0.1:80".parse().unwrap();
        let source = || io::Error::from_raw_os_error(111);
        assert!(DialError::new("tcp", address, source()).is_unreachable());
        // EMFILE
        let local = DialError::new("tcp", address, io::Error::from_raw_os_error(24));
        assert!(!local.is_unreachable());
        assert!(
            local
                .to_string()
                .starts_with("dial tcp 10.0.0.1:80: socket: ")
        );
        assert!(DialError::Timeout { address }.is_unreachable());
        let source = TlsFailure::new(source(), Default::default());
        assert!(!DialError::Tls { address, source }.is_unreachable());
        assert!(DialError::TlsTimeout { address }.is_unreachable());
        let error = DialError::SelfCall {
            network: "tcp",
            address,
        };
        assert!(!error.is_unreachable());
    }
}
