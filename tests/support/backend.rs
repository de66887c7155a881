//! Backends that return their name and the request, and can be killed with all connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::net::Namespace;

/// Server of one pod or node. Dropping it closes its listener and connections.
#[derive(Debug)]
pub struct Backend {
    pub address: SocketAddr,
    served: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Backend {
    /// Starts a server with `name` on an address of the namespace, with TLS if there is an
    /// acceptor.
    ///
    /// # Errors
    /// Returns an error if the address is in use.
    pub fn start(
        namespace: &Namespace,
        last: u8,
        port: u16,
        name: &str,
        tls: Option<TlsAcceptor>,
    ) -> Result<Self> {
        let address = SocketAddr::from((namespace.address(last), port));
        let listener = TcpListener::from_std(namespace.bind(address)?)?;
        let served = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(accept(listener, name.into(), Arc::clone(&served), tls));
        Ok(Self {
            address,
            served,
            task,
        })
    }

    /// Closes listener and connections as SIGKILL would. Returns once the address is free.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Number of requests served.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves until its task is aborted, which also aborts its connections.
pub async fn accept(
    listener: TcpListener,
    name: Arc<str>,
    served: Arc<AtomicU64>,
    tls: Option<TlsAcceptor>,
) {
    // Aborted with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (name, served, tls) = (Arc::clone(&name), Arc::clone(&served), tls.clone());
        connections.spawn(async move {
            match tls {
                None => serve(stream, name, served).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, name, served).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: I,
    name: Arc<str>,
    served: Arc<AtomicU64>,
) {
    let service = service_fn(|request| {
        served.fetch_add(1, Ordering::Relaxed);
        let name = Arc::clone(&name);
        async move { Ok::<_, Infallible>(respond(request, &name).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

async fn respond(mut request: Request<Incoming>, name: &str) -> Response<Full<Bytes>> {
    if request.headers().contains_key(header::UPGRADE) {
        return upgrade(&mut request, name);
    }
    let path = request.uri().to_string();
    let body = match request.uri().path() {
        "/name" => name.to_owned(),
        // Slow, so that some requests are in flight at any time.
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            name.to_owned()
        }
        "/echo" => {
            let body = request
                .into_body()
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes);
            return Response::new(Full::new(body.unwrap_or_default()));
        }
        _ => {
            let mut text = format!("{name}\n{} {path}\n", request.method());
            for (name, value) in request.headers() {
                text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
            }
            text
        }
    };
    Response::new(Full::new(body.into()))
}

/// Sends the name and the URI of the request, then echoes until the client closes its side.
fn upgrade(request: &mut Request<Incoming>, name: &str) -> Response<Full<Bytes>> {
    let upgraded = hyper::upgrade::on(&mut *request);
    let hello = format!("{name} {}\n", request.uri());
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut buffer = [0; 1024];
        let _ = stream.write_all(hello.as_bytes()).await;
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let _ = stream.write_all(&buffer[..read]).await;
        }
        let _ = stream.write_all(b"goodbye\n").await;
        let _ = stream.shutdown().await;
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("echo"));
    response
}
