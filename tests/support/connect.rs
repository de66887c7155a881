//! A client of tunnels by CONNECT, and local ports that lead through it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::client::{tls, tls_with_alpn};

/// Version of HTTP between a client and the bastion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A connection for each tunnel.
    Http1,
    /// A stream for each tunnel, on one connection.
    Http2,
}

/// Bytes of a tunnel.
pub type Tunnel = TokioIo<Upgraded>;

type Body = Empty<Bytes>;

/// Client of one user. Clones share the connection of HTTP/2.
#[derive(Clone)]
pub struct TunnelClient {
    bastion: SocketAddr,
    ca: PathBuf,
    token: String,
    version: Version,
    /// Connection of HTTP/2.
    shared: Arc<tokio::sync::Mutex<Option<http2::SendRequest<Body>>>>,
}

impl TunnelClient {
    pub fn new(bastion: SocketAddr, ca: PathBuf, token: &str, version: Version) -> Self {
        Self {
            bastion,
            ca,
            token: token.into(),
            version,
            shared: Arc::default(),
        }
    }

    /// Opens a tunnel to `authority`.
    ///
    /// # Errors
    /// Returns an error with the response if it is not 200.
    pub async fn open(&self, authority: &str) -> Result<Tunnel> {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(Uri::builder().authority(authority).build()?)
            .header(
                header::PROXY_AUTHORIZATION,
                format!("Bearer {}", self.token),
            );
        let response = match self.version {
            Version::Http1 => {
                let stream = tls(self.bastion, &self.ca, None).await?;
                let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection.with_upgrades());
                let request = request.header(header::HOST, authority);
                sender.send_request(request.body(Body::new())?).await?
            }
            Version::Http2 => {
                let mut sender = self.http2().await?;
                sender.send_request(request.body(Body::new())?).await?
            }
        };
        let status = response.status();
        if status != 200 {
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{authority}: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }

    /// Returns a handle of the connection, which is replaced once it takes no more requests.
    async fn http2(&self) -> Result<http2::SendRequest<Body>> {
        let mut shared = self.shared.lock().await;
        if let Some(sender) = &mut *shared
            && sender.ready().await.is_ok()
        {
            return Ok(sender.clone());
        }
        let stream = tls_with_alpn(self.bastion, &self.ca, None, &[b"h2"]).await?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.ready().await?;
        Ok(shared.insert(sender).clone())
    }
}

/// TCP port on 127.0.0.1. Each connection has a tunnel of its own. Dropping it closes them.
pub struct TunnelPort {
    pub address: SocketAddr,
    failures: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl TunnelPort {
    /// Listens on a free port, which leads to `authority`.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub async fn start(client: &TunnelClient, authority: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let failures = Arc::<Mutex<Vec<String>>>::default();
        let (client, authority) = (client.clone(), Arc::<str>::from(authority));
        let reported = Arc::clone(&failures);
        let task = tokio::spawn(async move {
            // Aborted with this task.
            let mut connections = JoinSet::new();
            while let Ok((local, _)) = listener.accept().await {
                let (client, authority) = (client.clone(), Arc::clone(&authority));
                let failures = Arc::clone(&reported);
                connections.spawn(async move {
                    match client.open(&authority).await {
                        // Each side sees the end of the other.
                        Ok(tunnel) => _ = relay(local, tunnel).await,
                        Err(error) => {
                            let mut failures =
                                failures.lock().expect("no thread panics with the failures");
                            failures.push(format!("{error:#}"));
                        }
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            failures,
            task,
        })
    }

    /// Errors of the tunnels that did not open.
    pub fn failures(&self) -> Vec<String> {
        let failures = self.failures.lock();
        failures
            .expect("no thread panics with the failures")
            .clone()
    }
}

impl Drop for TunnelPort {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut local: TcpStream, mut tunnel: Tunnel) -> std::io::Result<()> {
    copy_bidirectional(&mut local, &mut tunnel).await?;
    Ok(())
}
