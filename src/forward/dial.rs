//! New connections to endpoints.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config;
use crate::connection;
use crate::metrics::DialFailures;
use crate::resolve::Transport;
use crate::tls::ClientTls;

/// Makes connections. One per process, shared by the workers.
#[derive(Debug)]
pub struct Dialer {
    pub settings: config::Upstream,
    pub tls: ClientTls,
    pub itself: OwnAddresses,
    pub failures: DialFailures,
}

/// A connection to an endpoint.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What is to be spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/2 where the endpoint has it.
    Any,
    /// HTTP/1.1, which alone can be upgraded.
    Http1,
}

/// A failure to connect to an endpoint, worded like Go's dialer, which clients of kube-apiserver
/// know. Nothing of a request was sent, so that another endpoint can be tried for any request.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The endpoint is not reachable, or nothing listens there.
    #[error("dial tcp {address}: connect: {}", Reason(.source))]
    Connect {
        address: SocketAddr,
        source: io::Error,
    },
    /// The endpoint did not take the TCP connection in time.
    #[error("dial tcp {address}: i/o timeout")]
    Timeout { address: SocketAddr },
    /// The endpoint took the connection and does not speak TLS, or not as it should. Where the
    /// caller chose the scheme, this says nothing about the endpoint.
    #[error("dial tcp {address}: tls: {source}")]
    Tls {
        address: SocketAddr,
        source: io::Error,
    },
    /// The endpoint took the connection and did not finish the TLS handshake in time: it is frozen,
    /// or does not speak TLS, and answers no caller of this transport.
    #[error("dial tcp {address}: i/o timeout")]
    TlsTimeout { address: SocketAddr },
    /// The endpoint took the connection and closed it before HTTP began.
    #[error("dial tcp {address}: connect: {source}")]
    Closed {
        address: SocketAddr,
        source: hyper::Error,
    },
    /// The endpoint is this very process: a loop (CONFORMANCE C110).
    #[error("dial tcp {address}: refusing to proxy to the bastion itself")]
    OwnAddresses { address: SocketAddr },
}

impl DialError {
    /// Whether the endpoint can be reached by no caller, whatever scheme or request they send: only
    /// this may keep other callers away from it.
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::TlsTimeout { .. } => true,
            Self::Tls { .. } | Self::Closed { .. } | Self::OwnAddresses { .. } => false,
        }
    }
}

impl Dialer {
    /// Connects, with TLS where the transport asks for it, all within `limit`.
    pub(super) async fn dial(
        &self,
        address: SocketAddr,
        transport: Transport,
        protocol: Protocol,
        limit: Duration,
    ) -> Result<Stream, DialError> {
        let dialled = self.connect(address, transport, protocol, limit).await;
        match &dialled {
            Ok(_) => {}
            Err(DialError::Timeout { .. } | DialError::TlsTimeout { .. }) => {
                self.failures.timeout.inc();
            }
            Err(DialError::Tls { .. }) => {
                self.failures.tls.inc();
            }
            Err(
                DialError::Connect { .. }
                | DialError::Closed { .. }
                | DialError::OwnAddresses { .. },
            ) => {
                self.failures.connect.inc();
            }
        }
        dialled
    }

    async fn connect(
        &self,
        address: SocketAddr,
        transport: Transport,
        protocol: Protocol,
        limit: Duration,
    ) -> Result<Stream, DialError> {
        if self.itself.is_at(address) {
            return Err(DialError::OwnAddresses { address });
        }
        let end = Instant::now() + limit;
        let stream = timeout(limit, TcpStream::connect(address))
            .await
            .map_err(|_| DialError::Timeout { address })?
            .map_err(|source| DialError::Connect { address, source })?;
        connection::configure_socket(&stream)
            .map_err(|source| DialError::Connect { address, source })?;
        let Some(config) = self.tls_config(transport, protocol) else {
            return Ok(Stream::Plain(stream));
        };
        let name = ServerName::IpAddress(address.ip().into());
        let handshake = TlsConnector::from(config).connect(name, stream);
        let limit = self
            .settings
            .tls_handshake_timeout
            .min(end.saturating_duration_since(Instant::now()));
        let stream = timeout(limit, handshake)
            .await
            .map_err(|_| DialError::TlsTimeout { address })?
            .map_err(|source| DialError::Tls { address, source })?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    fn tls_config(&self, transport: Transport, protocol: Protocol) -> Option<Arc<ClientConfig>> {
        let offers = match transport {
            Transport::Http | Transport::H2c => return None,
            Transport::Https => Arc::clone(&self.tls.target),
            Transport::Kubelet => self.tls.kubelet.offers(),
        };
        Some(Arc::clone(match protocol {
            Protocol::Any => &offers.any,
            Protocol::Http1 => &offers.http1,
        }))
    }

    pub(super) fn shows_token_to_kubelets(&self) -> bool {
        self.tls.kubelet.shows_token
    }
}

/// The sockets that this process serves on.
#[derive(Clone, Debug, Default)]
pub struct OwnAddresses(Arc<[SocketAddr]>);

impl OwnAddresses {
    pub fn new(sockets: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self(sockets.into_iter().collect())
    }

    fn is_at(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|own| {
            own.port() == address.port()
                && (own.ip() == address.ip() || own.ip().is_unspecified() && is_local(address.ip()))
        })
    }
}

/// The kernel reaches an address of this host from that very address. Nothing is sent. Asked on
/// dials alone, and only where the port is one of ours.
fn is_local(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let from = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((address, 9))?;
        socket.local_addr()
    };
    from().is_ok_and(|from| from.ip() == address)
}

/// An operating system error in Go's words, without `(os error 111)`.
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
    fn the_bastion_knows_itself_by_any_address_of_the_host() {
        let own = |text: &str| OwnAddresses::new([text.parse().unwrap()]);
        let cases = [
            ("127.0.0.1:8443", "127.0.0.1:8443", true),
            ("127.0.0.1:8443", "127.0.0.1:8444", false),
            ("0.0.0.0:8443", "127.0.0.1:8443", true),
            ("[::]:8443", "127.0.0.1:8443", true),
            ("0.0.0.0:8443", "192.0.2.1:8443", false),
        ];
        for (listens, dialled, itself) in cases {
            assert_eq!(
                own(listens).is_at(dialled.parse().unwrap()),
                itself,
                "{listens} {dialled}"
            );
        }
    }

    #[test]
    fn errors_speak_as_gos_dialer_does() {
        let source = io::Error::from_raw_os_error(111);
        let error = DialError::Connect {
            address: "10.0.0.1:80".parse().unwrap(),
            source,
        };
        assert_eq!(
            error.to_string(),
            "dial tcp 10.0.0.1:80: connect: connection refused"
        );
    }

    #[test]
    fn only_connects_and_handshakes_without_an_answer_make_an_endpoint_unreachable() {
        let address = "10.0.0.1:80".parse().unwrap();
        let source = || io::Error::from_raw_os_error(111);
        assert!(
            DialError::Connect {
                address,
                source: source()
            }
            .is_unreachable()
        );
        assert!(DialError::Timeout { address }.is_unreachable());
        assert!(
            !DialError::Tls {
                address,
                source: source()
            }
            .is_unreachable()
        );
        assert!(DialError::TlsTimeout { address }.is_unreachable());
        assert!(!DialError::OwnAddresses { address }.is_unreachable());
    }
}
