//! API servers that a test plays, over TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::support::pki::Pair;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Request that a server received.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: Method,
    pub path: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub connection: usize,
    /// Server name of the TLS handshake (SNI).
    pub server_name: Option<String>,
}

/// Connection of a request.
#[derive(Clone)]
struct Client {
    connection: usize,
    server_name: Option<String>,
    /// Closes it.
    broken: tokio::sync::mpsc::Sender<()>,
}

/// Reaction to a request.
pub enum Act {
    Respond(u16, &'static [(&'static str, &'static str)], Bytes),
    /// Sends a part of a body, and leaves it open.
    Stream(&'static str),
    /// Closes the connection.
    Break,
}

pub fn ok(text: &'static str) -> Act {
    Act::Respond(200, &[], text.into())
}

/// Headers of the response of a server that shuts down.
pub const SHUTTING_DOWN: &[(&str, &str)] = &[
    ("content-type", "text/plain; charset=utf-8"),
    ("retry-after", "5"),
];

type Script = dyn Fn(&Received) -> Act + Send + Sync;

/// API server of a test. Dropping it closes its listener and its connections.
pub struct Server {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    script: Arc<Mutex<Arc<Script>>>,
    pub task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Starts a server that reacts as a script says.
    pub async fn start(
        pair: &Pair,
        script: impl Fn(&Received) -> Act + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let script: Arc<Script> = Arc::new(script);
        let script = Arc::new(Mutex::new(script));
        let accept = accept(
            listener,
            acceptor(pair)?,
            Arc::clone(&received),
            Arc::clone(&script),
        );
        Ok(Self {
            address,
            received,
            script,
            task: tokio::spawn(accept).abort_handle(),
        })
    }

    /// Replaces the script.
    pub fn play(&self, script: impl Fn(&Received) -> Act + Send + Sync + 'static) {
        *self.script.lock().expect("no thread panics with it") = Arc::new(script);
    }

    /// Requests so far, without health checks.
    pub fn received(&self) -> Vec<Received> {
        let received = self.received.lock().expect("no thread panics with it");
        let is_probe = |received: &&Received| received.path == "/readyz";
        received
            .iter()
            .filter(|received| !is_probe(received))
            .cloned()
            .collect()
    }
}

fn acceptor(pair: &Pair) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(&pair.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&pair.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    received: Arc<Mutex<Vec<Received>>>,
    script: Arc<Mutex<Arc<Script>>>,
) {
    let mut connections = JoinSet::new();
    let mut number = 0;
    while let Ok((stream, _)) = listener.accept().await {
        number += 1;
        let (tls, received, script) = (tls.clone(), Arc::clone(&received), Arc::clone(&script));
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let (broken, mut breaks) = tokio::sync::mpsc::channel::<()>(1);
            let client = Client {
                connection: number,
                server_name: stream.get_ref().1.server_name().map(str::to_owned),
                broken,
            };
            let service = service_fn(move |request| {
                let (received, script) = (Arc::clone(&received), Arc::clone(&script));
                respond(request, client.clone(), received, script)
            });
            let stream = TokioIo::new(stream);
            let served = async {
                if is_http2 {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(stream, service).await;
                } else {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(stream, service).await;
                }
            };
            tokio::select! {
                () = served => {}
                _ = breaks.recv() => {}
            }
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    client: Client,
    received: Arc<Mutex<Vec<Received>>>,
    script: Arc<Mutex<Arc<Script>>>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let request = Received {
        method: head.method,
        path: head.uri.path().into(),
        version: head.version,
        headers: head.headers,
        body: body.unwrap_or_default(),
        connection: client.connection,
        server_name: client.server_name,
    };
    received
        .lock()
        .expect("no thread panics with it")
        .push(request.clone());
    let script = Arc::clone(&script.lock().expect("no thread panics with it"));
    let act = match script(&request) {
        Act::Respond(429, headers, _) if request.path == "/readyz" && headers == SHUTTING_DOWN => {
            Act::Respond(500, &[], "[-]shutdown failed".into())
        }
        _ if request.path == "/readyz" => ok("ok"),
        act => act,
    };
    let full = |bytes| {
        Full::new(bytes)
            .map_err(|never: Infallible| match never {})
            .boxed_unsync()
    };
    Ok(match act {
        Act::Respond(status, headers, body) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            response.body(full(body)).expect("the headers are valid")
        }
        Act::Stream(part) => {
            let first =
                futures::stream::iter([Ok(Frame::data(Bytes::from_static(part.as_bytes())))]);
            let rest = futures::stream::pending();
            let body = StreamBody::new(futures::StreamExt::chain(first, rest));
            Response::builder()
                .header("content-type", "application/json")
                .body(body.boxed_unsync())
                .expect("the header is valid")
        }
        Act::Break => {
            let _ = client.broken.send(()).await;
            std::future::pending().await
        }
    })
}
