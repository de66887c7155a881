//! Connections to API servers from the desk: directly or through a proxy, with the client
//! certificate of the user.

mod environment;
mod error;
mod http_proxy;
mod own_root;
mod proxy;
mod socks;
mod tcp;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream, client};

use crate::apiservers::{Connect, Credential};
use crate::http::Stream;
pub use environment::ProxyEnvironment;
pub use error::ConnectError;
pub use proxy::{Proxies, ProxyUrlError};
pub use tls::{CaBundle, ServerTls, TlsSetupError, Verification};

/// Maximum time for name lookup and TCP, and for the handshake of a proxy.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens connections to one server.
#[derive(Debug)]
pub struct Connector {
    /// `host:port`
    name: String,
    host: String,
    port: u16,
    /// `None` for plain HTTP.
    tls: Option<Arc<ServerTls>>,
    proxies: Arc<Proxies>,
}

/// Transport to a server, before its TLS.
#[derive(Debug)]
enum Tunnel {
    Tcp(TcpStream),
    /// Through a proxy that is reached over TLS.
    Tls(Box<client::TlsStream<TcpStream>>),
}

impl From<Tunnel> for Stream {
    fn from(tunnel: Tunnel) -> Self {
        match tunnel {
            Tunnel::Tcp(stream) => Self::Plain(stream),
            Tunnel::Tls(stream) => Self::Tls(Box::new(TlsStream::Client(*stream))),
        }
    }
}

impl Connector {
    /// Creates the connector of a server. An IPv6 address has no brackets.
    pub fn new(host: &str, port: u16, tls: Option<Arc<ServerTls>>, proxies: Arc<Proxies>) -> Self {
        Self {
            name: host_port(host, port),
            host: host.to_owned(),
            port,
            tls,
            proxies,
        }
    }

    /// Returns `host:port`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens a connection. Offers HTTP/2 by ALPN if `http2`, else only HTTP/1.1.
    ///
    /// # Errors
    /// [`ConnectError`] with the server, the cause and the remedy.
    pub async fn open(&self, http2: bool) -> Result<Stream, ConnectError> {
        let tunnel = self.tunnel(self.tls.is_some()).await?;
        let Some(tls) = &self.tls else {
            return Ok(tunnel.into());
        };
        let config = tls.config(http2)?;
        let connector = TlsConnector::from(config);
        let name = tls.server_name(&self.host)?;
        let handshake = async {
            Ok(match tunnel {
                Tunnel::Tcp(stream) => {
                    let stream = connector.connect(name, stream).await?;
                    Stream::Tls(Box::new(TlsStream::Client(stream)))
                }
                Tunnel::Tls(stream) => {
                    Stream::Boxed(Box::new(connector.connect(name, *stream).await?))
                }
            })
        };
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(handshake) => {
                handshake.map_err(|error| ConnectError::of_handshake(&self.name, error))
            }
            Err(_) => Err(ConnectError::HandshakeTimeout {
                server: self.name.clone(),
            }),
        }
    }

    /// Opens a connection for a TLS handshake by the caller.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_for_tls(&self) -> Result<Stream, ConnectError> {
        self.tunnel(true).await.map(Stream::from)
    }

    /// Connects directly or through the proxy of the server.
    async fn tunnel(&self, is_https: bool) -> Result<Tunnel, ConnectError> {
        let proxy = self.proxies.proxy_for(is_https, &self.host, self.port);
        let Some(proxy) = proxy else {
            return tcp::connect(&self.host, self.port)
                .await
                .map(Tunnel::Tcp)
                .map_err(|source| ConnectError::of_tcp(&self.name, source));
        };
        self.proxies
            .connect(proxy, &self.host, self.port)
            .await
            .map_err(|source| ConnectError::Proxy {
                server: self.name.clone(),
                proxy: proxy.name().to_owned(),
                source,
            })
    }
}

impl Connect for Connector {
    fn connect(&self, _: Credential, http2: bool) -> BoxFuture<'_, io::Result<Stream>> {
        let open = self.open(http2);
        open.map(|opened| opened.map_err(io::Error::from)).boxed()
    }
}

/// Formats an address. An IPv6 address gets brackets.
fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests;
