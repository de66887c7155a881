//! Endpoints with TLS that a test plays byte by byte.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::frames::{HEADERS, PREFACE, SETTINGS, frame, read_frame};
use super::pki::{Ca, Pair};

/// Protocols of ALPN that an endpoint selects from.
const HTTP2: &[&[u8]] = &[b"h2", b"http/1.1"];
const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// Maximum time to wait for a connection.
const ACCEPT_TIMEOUT: Duration = Duration::from_mins(1);

/// Endpoint with TLS.
pub struct TlsEndpoint {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl TlsEndpoint {
    /// Listens on a free port with a certificate for `hosts`. Selects HTTP/2 if it is offered.
    ///
    /// # Errors
    /// Returns an error if the certificate cannot be written.
    pub async fn start(ca: &Ca, folder: &Path, hosts: &[&str]) -> Result<Self> {
        let pair = ca.server(folder, "endpoint", hosts)?;
        Self::with(&pair, rustls::DEFAULT_VERSIONS, HTTP2).await
    }

    /// As [`Self::start`], and selects HTTP/1.1.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_http1(ca: &Ca, folder: &Path, hosts: &[&str]) -> Result<Self> {
        let pair = ca.server(folder, "endpoint", hosts)?;
        Self::with(&pair, rustls::DEFAULT_VERSIONS, HTTP1).await
    }

    /// Listens on a free port with one version of TLS.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with_version(
        ca: &Ca,
        folder: &Path,
        version: &'static SupportedProtocolVersion,
    ) -> Result<Self> {
        let pair = ca.server(folder, "endpoint", &["127.0.0.1"])?;
        Self::with(&pair, &[version], HTTP2).await
    }

    /// As [`Self::start_http1`], and requires a client certificate of the CA.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with_clients(ca: &Ca, folder: &Path, hosts: &[&str]) -> Result<Self> {
        let pair = ca.server(folder, "endpoint", hosts)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&ca.file)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?;
        Self::verifying(&pair, rustls::DEFAULT_VERSIONS, HTTP1, clients).await
    }

    async fn with(
        pair: &Pair,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&[u8]],
    ) -> Result<Self> {
        let clients = WebPkiClientVerifier::no_client_auth();
        Self::verifying(pair, versions, alpn, clients).await
    }

    async fn verifying(
        pair: &Pair,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&[u8]],
        clients: Arc<dyn ClientCertVerifier>,
    ) -> Result<Self> {
        let chain =
            CertificateDer::pem_file_iter(&pair.certificate)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&pair.key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self {
            listener: TcpListener::bind("127.0.0.1:0").await?,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Accepts the next TCP connection, without TLS.
    ///
    /// # Errors
    /// Returns an error if there is none within a minute.
    pub async fn accept_tcp(&self) -> Result<TcpStream> {
        let accepted = timeout(ACCEPT_TIMEOUT, self.listener.accept()).await;
        Ok(accepted.context("no connection")??.0)
    }

    /// Reads the `ClientHello` of the next connection and sends an alert (RFC 8446 section 6).
    pub async fn alert(&self, description: u8) -> Result<()> {
        let mut stream = self.accept_tcp().await?;
        let mut head = [0; 5];
        stream.read_exact(&mut head).await?;
        let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        stream.read_exact(&mut hello).await?;
        stream
            .write_all(&[0x15, 3, 3, 0, 2, 2, description])
            .await?;
        Ok(())
    }

    /// Accepts the next connection.
    pub async fn accept(&self) -> Result<TlsStream<TcpStream>> {
        Ok(self.acceptor.accept(self.accept_tcp().await?).await?)
    }

    /// Accepts the next connection, which must be HTTP/1.1.
    pub async fn accept_http1(&self) -> Result<TlsStream<TcpStream>> {
        let stream = self.accept().await?;
        let selected = stream.get_ref().1.alpn_protocol();
        ensure!(selected == Some(b"http/1.1"), "{selected:?} was selected");
        Ok(stream)
    }

    /// Accepts the next connection, which must be HTTP/2, and reads its preface.
    pub async fn accept_http2(&self) -> Result<TlsStream<TcpStream>> {
        let mut stream = self.accept().await?;
        let selected = stream.get_ref().1.alpn_protocol();
        ensure!(selected == Some(b"h2"), "{selected:?} was selected");
        read_preface(&mut stream).await?;
        Ok(stream)
    }
}

/// Path of the pod of a test bed with a port of an endpoint.
pub fn pod_path(port: u16) -> String {
    format!("/api/v1/namespaces/default/pods/https:p:{port}/proxy/x")
}

/// Reads the preface of a client.
pub async fn read_preface(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    ensure!(preface == PREFACE, "{}", preface.escape_ascii());
    Ok(())
}

/// Returns empty settings, with which an endpoint begins.
pub fn settings() -> Vec<u8> {
    let mut sent = Vec::new();
    frame(&mut sent, SETTINGS, 0, 0, &[]);
    sent
}

/// Reads frames up to the head of a request. Returns its stream.
pub async fn read_request(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<u32> {
    while let Some(frame) = read_frame(stream).await {
        if frame.kind == HEADERS {
            return Ok(frame.stream);
        }
    }
    anyhow::bail!("the connection ended before a request")
}
