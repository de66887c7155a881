//! HTTP clients on single connections, so that a test knows which connection a request used.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pki::Pair;

/// A complete response.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

/// Context of the error of a response that ended within its body.
#[derive(Debug)]
pub struct Cut;

impl Display for Cut {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("the response was cut")
    }
}

/// One keep-alive HTTP/1.1 connection over TLS, or a handle of an HTTP/2 connection.
pub struct Client {
    sender: Sender,
    token: Option<String>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    /// Connects with HTTP/1.1.
    ///
    /// # Errors
    /// Returns an error if the connection or the handshake fails.
    pub async fn connect(
        address: SocketAddr,
        ca: &Path,
        token: Option<&str>,
        certificate: Option<&Pair>,
    ) -> Result<Self> {
        let stream = tls(address, ca, certificate).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            sender: Sender::Http1(sender),
            token: token.map(str::to_owned),
        })
    }

    /// Connects with HTTP/2.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_http2(
        address: SocketAddr,
        ca: &Path,
        token: Option<&str>,
        certificate: Option<&Pair>,
    ) -> Result<Self> {
        let stream = tls_with_alpn(address, ca, certificate, &[b"h2"]).await?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            sender: Sender::Http2(sender),
            token: token.map(str::to_owned),
        })
    }

    /// Returns another handle of the same connection if it is HTTP/2.
    pub fn another(&self) -> Option<Self> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2(sender) => Some(Self {
                sender: Sender::Http2(sender.clone()),
                token: self.token.clone(),
            }),
        }
    }

    /// Sets the token of later requests.
    pub fn set_token(&mut self, token: &str) {
        self.token = Some(token.into());
    }

    pub async fn get(&mut self, path: &str) -> Result<Response> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Sends a request and reads the complete response.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
    pub async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Response> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        self.complete(path, request).await
    }

    /// Sends a request with its headers and reads the complete response. The URI of the request is
    /// replaced.
    ///
    /// # Errors
    /// As [`Self::send`]. The error has the context [`Cut`] if the head was received.
    pub async fn complete(&mut self, path: &str, request: Request<Bytes>) -> Result<Response> {
        let response = self.open(path, request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.context(Cut)?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Response {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    /// Sends a request with its headers and returns the response, whose body streams.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn open(
        &mut self,
        path: &str,
        mut request: Request<Bytes>,
    ) -> Result<http::Response<Incoming>> {
        let is_http2 = matches!(self.sender, Sender::Http2(_));
        let origin = if is_http2 { "https://bastion.test" } else { "" };
        *request.uri_mut() = format!("{origin}{path}").parse()?;
        let headers = request.headers_mut();
        if !is_http2 {
            headers.insert(header::HOST, HeaderValue::from_static("bastion.test"));
        }
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse()?);
        }
        let request = request.map(Full::new);
        Ok(match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }
}

/// Opens a TLS connection for a test that writes the bytes of its requests.
pub async fn tls(
    address: SocketAddr,
    ca: &Path,
    certificate: Option<&Pair>,
) -> Result<TlsStream<TcpStream>> {
    tls_with_alpn(address, ca, certificate, &[]).await
}

/// Opens a TLS connection with ALPN.
pub async fn tls_with_alpn(
    address: SocketAddr,
    ca: &Path,
    certificate: Option<&Pair>,
    alpn: &[&[u8]],
) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    tls_over(stream, ca, certificate, alpn).await
}

/// Does a TLS handshake on an open connection.
pub async fn tls_over(
    stream: TcpStream,
    ca: &Path,
    certificate: Option<&Pair>,
    alpn: &[&[u8]],
) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca)? {
        roots.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(Pair { certificate, key }) => {
            let chain =
                CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
            let key = PrivateKeyDer::from_pem_file(key)?;
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
            // Unlike `with_client_auth_cert`, this does not parse the certificate, which may be of
            // X.509 version 1.
            let key = SingleCertAndKey::from(CertifiedKey::new(chain, key));
            builder.with_client_cert_resolver(Arc::new(key))
        }
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from("localhost")?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .context("the TLS handshake failed")
}

/// Opens a TLS connection from another loopback address than 127.0.0.1, as from another client.
pub async fn tls_from(
    local: IpAddr,
    address: SocketAddr,
    ca: &Path,
    alpn: &[&[u8]],
) -> Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((local, 0).into())?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    tls_over(stream, ca, None, alpn).await
}

/// Sends a GET over plain HTTP. Returns status and body.
pub async fn get_plain(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    get_plain_over(
        TcpStream::connect(address).await?,
        &address.to_string(),
        path,
    )
    .await
}

/// Sends a GET over an open connection. Returns status and body.
pub async fn get_plain_over<I>(stream: I, host: &str, path: &str) -> Result<(u16, String)>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, host)
        .body(Full::<Bytes>::default())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
