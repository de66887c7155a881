//! Clients of the Kubernetes API with a bound on every wait: connecting, sending, a list's page,
//! and a watch's silence.
//!
//! The stack is that of kube's `ClientBuilder` (base URI, credentials with their reload, extra
//! headers) around an own connector, because kube sets neither keepalive nor `TCP_USER_TIMEOUT`,
//! and has no read timeout by default: its watcher notices a dead connection after 295 s.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt};
use tokio::time::{Instant, Sleep, timeout};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use super::KubernetesError;
use crate::metrics::Metrics;
use crate::ready::Ready;

/// Bound on TCP and TLS handshakes together: some round trips and a handful of retransmissions.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP keepalive: idle time before the first probe, and interval between probes.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Unanswered probes before the kernel closes the connection. `TCP_USER_TIMEOUT` is usually
/// shorter; this bounds systems that lack it.
const KEEPALIVE_PROBES: u32 = 2;
/// Longest time that sent data or probes of a watch stay unacknowledged. A watch has the cached
/// state to serve from, so it rides out a path that fails over.
const WATCH_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for reviews, for which a caller waits: half of the review's own timeout, which leaves
/// time to ask once more on a new connection.
const REVIEW_USER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound on one page of a list (500 objects), and on the head of any other answer. The API server's
/// own request timeout is 60 s, so a slower answer does not come.
const PAGE_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest silence of a watch. The API server sends bookmarks every minute, with jitter; half a
/// minute covers a slow one.
const WATCH_SILENCE: Duration = Duration::from_secs(90);

/// Whether a client reuses connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Idle connections are reused.
    Pooled,
    /// Every request opens a connection of its own: for asking once more where a reused connection
    /// turned out dead.
    Fresh,
}

/// Builds a client for reviews. It has no timeout of its own for the answer: a review has a
/// deadline.
///
/// # Errors
/// The credentials of the configuration cannot be loaded.
pub fn review_client(
    config: &kube::Config,
    connections: Connections,
) -> Result<Client, KubernetesError> {
    let service = http_client(config, REVIEW_USER_TIMEOUT, connections)?;
    Ok(client(
        config,
        ServiceExt::map_err(service, BoxError::from),
    )?)
}

/// Builds a client for one watch. Each watch has its own, because its answers tell whether that
/// watch is connected.
pub(super) fn watch_client(
    config: &kube::Config,
    health: Health,
) -> Result<Client, KubernetesError> {
    let service = http_client(config, WATCH_USER_TIMEOUT, Connections::Pooled)?;
    Ok(client(
        config,
        Bounded {
            inner: service,
            health,
        },
    )?)
}

type Connector = TimeoutConnector<hyper_rustls::HttpsConnector<HttpConnector>>;
type HttpClient = hyper_util::client::legacy::Client<Connector, Body>;

fn http_client(
    config: &kube::Config,
    user_timeout: Duration,
    connections: Connections,
) -> Result<HttpClient, KubernetesError> {
    if let Some(proxy) = &config.proxy_url {
        // kube is built without its proxy features, and this connector would silently go around the
        // proxy.
        let (proxy_url, protocol_feature) =
            (Box::new(proxy.clone()), "kube/http-proxy or kube/socks5");
        return Err(kube::Error::ProxyProtocolDisabled {
            proxy_url,
            protocol_feature,
        }
        .into());
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(user_timeout));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    // Covers the name look-up and the TLS handshake too, which the connector's own timeout does
    // not.
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // A peer that acknowledges and never opens its window is not what TCP_USER_TIMEOUT looks for
    // everywhere.
    connector.set_write_timeout(Some(user_timeout));
    let mut builder = hyper_util::client::legacy::Builder::new(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new());
    if connections == Connections::Fresh {
        builder.pool_max_idle_per_host(0);
    }
    Ok(builder.build(connector))
}

/// Puts base URI, credentials and headers around `service`, as kube does. Nothing is retried here.
fn client<S, B>(config: &kube::Config, service: S) -> Result<Client, kube::Error>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(service);
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}

/// Records the health of one watch.
#[derive(Clone, Debug)]
pub(super) struct Health {
    /// The name of the watch in `/readyz` and in the metrics.
    pub watch: &'static str,
    pub ready: Ready,
    pub metrics: Metrics,
}

impl Health {
    /// The watcher does not tell when it resumes; a successful answer does.
    fn answered(&self) {
        self.ready.clear_degraded(self.watch);
        self.metrics.watch_up(self.watch, true);
    }

    fn silent(&self) {
        // Not a warning yet: a kind that never changed since the API server started gets no
        // bookmarks either. Whether the API is gone shows in the reconnect, which follows
        // immediately.
        tracing::debug!(resource = self.watch, silence = ?WATCH_SILENCE, "the watch is silent; reconnecting");
        self.ready.set_degraded(
            self.watch,
            format!("the API sent nothing for {WATCH_SILENCE:?}; reconnecting"),
        );
        self.metrics.watch_up(self.watch, false);
    }
}

/// Bounds the waits of one watch: a list's page must be complete, and a watch's head be in, within
/// [`PAGE_TIMEOUT`]; a watch that is silent for [`WATCH_SILENCE`] ends, and the watcher connects
/// again.
#[derive(Clone, Debug)]
pub(super) struct Bounded<S> {
    pub inner: S,
    pub health: Health,
}

type BoundedBody = UnsyncBoxBody<Bytes, BoxError>;

/// The API did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("the API did not answer within {PAGE_TIMEOUT:?}")]
struct NoAnswer;

impl<S, B> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<BoundedBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let watching = request
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let health = self.health.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let page = async {
                let (head, body) = answer.await.map_err(Into::into)?.into_parts();
                let success = head.status.is_success();
                let body = if watching && success {
                    Watched::new(body, health.clone()).boxed_unsync()
                } else {
                    let page = body.collect().await.map_err(Into::into)?.to_bytes();
                    Full::new(page)
                        .map_err(|never| match never {})
                        .boxed_unsync()
                };
                if success {
                    health.answered();
                }
                Ok(Response::from_parts(head, body))
            };
            timeout(PAGE_TIMEOUT, page)
                .await
                .unwrap_or_else(|_| Err(NoAnswer.into()))
        })
    }
}

/// The body of a watch, which ends once it was silent for [`WATCH_SILENCE`].
struct Watched<B> {
    body: Pin<Box<B>>,
    silence: Pin<Box<Sleep>>,
    health: Health,
}

impl<B> Watched<B> {
    fn new(body: B, health: Health) -> Self {
        Self {
            body: Box::pin(body),
            silence: Box::pin(tokio::time::sleep(WATCH_SILENCE)),
            health,
        }
    }
}

impl<B: HttpBody<Data = Bytes>> HttpBody for Watched<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = self.body.as_mut().poll_frame(context) {
            self.silence.as_mut().reset(Instant::now() + WATCH_SILENCE);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(self.silence.as_mut().poll(context));
        self.health.silent();
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An API that answers every request with an empty object. Returns its address and the count of
    /// its connections.
    async fn api() -> (kube::Config, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                        let _ = stream
                            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                            .await;
                    }
                });
            }
        });
        (kube::Config::new(url.parse().unwrap()), connections)
    }

    #[tokio::test]
    async fn fresh_client_never_reuses_a_connection() {
        crate::tls::install_provider();
        let (config, opened) = api().await;
        let client = review_client(&config, Connections::Fresh).unwrap();
        for _ in 0..3 {
            client
                .request_text(Request::get("/").body(Vec::new()).unwrap())
                .await
                .unwrap();
        }
        assert_eq!(opened.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_an_error() {
        crate::tls::install_provider();
        let mut config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        config.proxy_url = Some("http://127.0.0.1:2".parse().unwrap());
        assert!(review_client(&config, Connections::Pooled).is_err());
    }
}
