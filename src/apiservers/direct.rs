//! Connections of the bastion to API servers: TCP and TLS to their addresses.

use std::io;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use super::{Connect, Credential, ServerConfig};
use crate::client_connection::configure_socket;
use crate::http::Stream;
use crate::tls::ApiServerTls;

/// Dials one API server.
#[derive(Debug)]
pub struct DirectConnector {
    /// `host:port`.
    address: String,
    /// Name for which the certificate must be valid, also sent in the handshake.
    name: ServerName<'static>,
    tls: Arc<ApiServerTls>,
}

/// A configured name is neither a DNS name nor an address.
#[derive(Clone, Debug, thiserror::Error)]
#[error("apiServers.tlsServerName: {0:?} is not a DNS name or an IP address")]
pub struct InvalidServerName(String);

impl DirectConnector {
    /// Returns the settings of the server at `address` (`host:port`), whose certificate is valid for
    /// `name`.
    ///
    /// # Errors
    /// The name is invalid.
    pub fn server(
        address: String,
        name: &str,
        tls: &Arc<ApiServerTls>,
    ) -> Result<ServerConfig, InvalidServerName> {
        let parsed = ServerName::try_from(name.to_owned());
        let parsed = parsed.map_err(|_| InvalidServerName(name.to_owned()))?;
        Ok(ServerConfig {
            name: address.clone(),
            host: None,
            path: String::new(),
            connector: Arc::new(Self {
                address,
                name: parsed,
                tls: Arc::clone(tls),
            }),
        })
    }
}

impl Connect for DirectConnector {
    fn connect(&self, credential: Credential, http2: bool) -> BoxFuture<'_, io::Result<Stream>> {
        async move {
            let front_proxy = credential == Credential::FrontProxy;
            let config = self.tls.config(front_proxy, http2).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "no client certificate of a front proxy is configured",
                )
            })?;
            let stream = TcpStream::connect(&self.address).await?;
            configure_socket(&stream)?;
            let connector = TlsConnector::from(config);
            let stream = connector.connect(self.name.clone(), stream).await?;
            Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
        }
        .boxed()
    }
}
