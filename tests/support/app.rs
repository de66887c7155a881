//! Apps: servers whose answers a test writes itself, on an address of the namespace.

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

/// A server of HTTP/1.1. Dropping it closes the listener and cuts its connections.
#[derive(Debug)]
pub struct App(AbortHandle);

impl App {
    /// Serves on an address of the namespace, over TLS where there is an acceptor.
    ///
    /// # Errors
    /// Where the address is taken.
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

    /// Answers every request with the same text, of the type that Go's server would tell of it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn says(
        namespace: &Namespace,
        last: u8,
        port: u16,
        tls: Option<TlsAcceptor>,
        said: &'static str,
    ) -> Result<Self> {
        let content_type = if said.starts_with('<') {
            "text/html; charset=utf-8"
        } else {
            "text/plain; charset=utf-8"
        };
        Self::start(namespace, last, port, tls, move |_| async move {
            answer(content_type, said)
        })
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A 200.
pub fn answer(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    status(StatusCode::OK, header::CONTENT_TYPE, content_type, body)
}

/// An answer of any status, with one header.
pub fn status(
    code: StatusCode,
    name: HeaderName,
    value: &str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let builder = Response::builder().status(code).header(name, value);
    builder
        .body(Full::new(body.into()).boxed_unsync())
        .expect("tests write good headers")
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
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = connection.with_upgrades().await;
}
