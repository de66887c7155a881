//! HTTP servers whose responses a test defines, on an address of the namespace.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::net::Namespace;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

type Handler =
    dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> + Send + Sync;

/// HTTP/1.1 server. Dropping it closes its listener and connections.
#[derive(Debug)]
pub struct App(AbortHandle);

impl App {
    /// Starts a server on an address of the namespace, with TLS if there is an acceptor.
    ///
    /// # Errors
    /// Returns an error if the address is in use.
    pub fn start<H, F>(
        namespace: &Namespace,
        last: u8,
        port: u16,
        tls: Option<TlsAcceptor>,
        handler: H,
    ) -> Result<Self>
    where
        H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::from_std(
            namespace.bind(SocketAddr::from((namespace.address(last), port)))?,
        )?;
        let handler: Arc<Handler> = Arc::new(move |request| Box::pin(handler(request)));
        Ok(Self(
            tokio::spawn(accept(listener, tls, handler)).abort_handle(),
        ))
    }

    /// Starts a server that returns `text` for every request, with the content type that a server
    /// in Go would detect.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn with_text(
        namespace: &Namespace,
        last: u8,
        port: u16,
        tls: Option<TlsAcceptor>,
        text: &'static str,
    ) -> Result<Self> {
        let content_type = if text.starts_with('<') {
            "text/html; charset=utf-8"
        } else {
            "text/plain; charset=utf-8"
        };
        Self::start(namespace, last, port, tls, move |_| async move {
            response(content_type, text)
        })
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Returns a 200.
pub fn response(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    status(StatusCode::OK, header::CONTENT_TYPE, content_type, body)
}

/// Returns a response with any status and one header.
pub fn status(
    code: StatusCode,
    name: HeaderName,
    value: &str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let builder = Response::builder().status(code).header(name, value);
    builder
        .body(Full::new(body.into()).boxed_unsync())
        .expect("tests use valid headers")
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, handler: Arc<Handler>) {
    // Aborted with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, handler) = (tls.clone(), Arc::clone(&handler));
        connections.spawn(async move {
            match tls {
                None => serve(stream, handler).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, handler).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: I,
    handler: Arc<Handler>,
) {
    let service = service_fn(move |request| {
        let response = handler(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = connection.with_upgrades().await;
}
