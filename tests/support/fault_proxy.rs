//! A proxy in front of a real API server that injects failures per request: no response, or an
//! error. Other requests pass, streams included.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

type Body = BoxBody<Bytes, hyper::Error>;
type Rule = dyn Fn(&Request<Incoming>) -> Option<Fault> + Send + Sync;

/// Injected failure of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No response; the connection stays open.
    Hang,
    /// A `Status`.
    Status(StatusCode),
    /// A `Status` with `Retry-After`, in seconds.
    RetryAfter(StatusCode, u32),
}

/// Proxy that injects failures. It stops with the runtime of the test.
pub struct FaultProxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    rule: Mutex<Arc<Rule>>,
    faults: AtomicU64,
    /// `Authorization` of the last request.
    authorization: Mutex<Option<String>>,
    cut: Notify,
}

impl FaultProxy {
    /// Starts a proxy with `tls` for the API server at `to`, whose certificate `ca` issued.
    ///
    /// # Errors
    /// Returns an error if no loopback port is free.
    pub async fn start(to: SocketAddr, ca: &Path, tls: TlsAcceptor) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            rule: Mutex::new(Arc::new(|_| None)),
            faults: AtomicU64::new(0),
            authorization: Mutex::new(None),
            cut: Notify::new(),
        });
        let (proxy, ca) = (Arc::clone(&shared), ca.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, ca, tls) = (Arc::clone(&shared), ca.clone(), tls.clone());
                tokio::spawn(async move {
                    let cut = Arc::clone(&shared);
                    // Errors close the connection, which the bastion must handle.
                    tokio::select! {
                        _ = serve(stream, to, &ca, &tls, shared) => {}
                        () = cut.cut.notified() => {}
                    }
                });
            }
        });
        Ok(Self {
            address,
            shared: proxy,
        })
    }

    /// Applies `rule` to later requests.
    pub fn inject(
        &self,
        rule: impl Fn(&Request<Incoming>) -> Option<Fault> + Send + Sync + 'static,
    ) {
        *self
            .shared
            .rule
            .lock()
            .expect("no test panics with the rule") = Arc::new(rule);
    }

    /// Lets later requests pass. Requests without a response stay so.
    pub fn heal(&self) {
        self.inject(|_| None);
    }

    /// Closes all connections; later ones pass.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// Number of injected failures.
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// Returns true if the last request had this bearer token.
    pub fn last_token_is(&self, token: &str) -> bool {
        let last = self
            .shared
            .authorization
            .lock()
            .expect("no test panics with the token");
        last.as_deref()
            .and_then(|value| value.strip_prefix("Bearer "))
            == Some(token)
    }
}

async fn serve(
    stream: TcpStream,
    to: SocketAddr,
    ca: &Path,
    tls: &TlsAcceptor,
    shared: Arc<Shared>,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    // One connection to the API server per connection of the bastion, so that the proxy does not
    // share what the bastion keeps separate.
    let upstream = super::client::tls(to, ca, None).await?;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(upstream)).await?;
    let driven = tokio::spawn(connection);
    let sender = Arc::new(tokio::sync::Mutex::new(sender));
    let service = service_fn(move |request| {
        let (shared, sender) = (Arc::clone(&shared), Arc::clone(&sender));
        async move { respond(request, &shared, &sender).await }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    driven.abort();
    Ok(served?)
}

async fn respond(
    request: Request<Incoming>,
    shared: &Shared,
    sender: &tokio::sync::Mutex<SendRequest<Incoming>>,
) -> Result<Response<Body>> {
    let authorization = request.headers().get(header::AUTHORIZATION);
    let authorization = authorization
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    *shared
        .authorization
        .lock()
        .expect("no test panics with the token") = authorization;
    let rule = Arc::clone(&shared.rule.lock().expect("no test panics with the rule"));
    let Some(fault) = rule(&request) else {
        let mut sender = sender.lock().await;
        sender.ready().await?;
        return Ok(sender.send_request(request).await?.map(BodyExt::boxed));
    };
    shared.faults.fetch_add(1, Ordering::Relaxed);
    match fault {
        Fault::Hang => std::future::pending().await,
        Fault::Status(code) => status(code, None),
        Fault::RetryAfter(code, seconds) => status(code, Some(seconds)),
    }
}

/// Returns the `Status` of an API server that is unavailable.
fn status(code: StatusCode, retry_after: Option<u32>) -> Result<Response<Body>> {
    let text = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"injected","code":{}}}"#,
        code.as_u16()
    );
    let mut response = Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(seconds) = retry_after {
        response = response.header(header::RETRY_AFTER, seconds);
    }
    let body = Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed();
    response.body(body).context("the headers are valid")
}
