//! Clients of the Kubernetes API with a limit on every wait: connect, send, page of a list, silence
//! of a watch.
//!
//! The stack is that of kube's `ClientBuilder` (base URI, credentials with their reload, extra
//! headers) around our own connector, because kube sets neither keepalive nor `TCP_USER_TIMEOUT`,
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
use super::failures::{Failure, FailureLog};
use crate::metrics::Metrics;
use crate::ready::Ready;

/// Maximum time for name lookup, TCP and TLS handshake: some round trips and a few retransmissions.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP keepalive: idle time before the first probe, and interval of probes.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Number of unanswered probes after which the kernel closes the connection. `TCP_USER_TIMEOUT` is
/// usually shorter; this limits systems that lack it.
const KEEPALIVE_PROBES: u32 = 2;
/// Maximum time that data or probes of a watch stay unacknowledged. The last known state is served
/// meanwhile, so a watch can wait for the network path to fail over.
const WATCH_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time that data of a review stays unacknowledged. Half of the review's own timeout, which
/// leaves time for a retry on a new connection while the caller waits.
const REVIEW_USER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for one page of a list (500 objects), and for the head of a watch response. The API
/// server's own request timeout is 60 s, so no response arrives later.
const PAGE_TIMEOUT: Duration = Duration::from_mins(1);
/// Maximum time without data on a watch. The API server sends a bookmark every minute, with jitter;
/// half a minute more covers a slow one.
const WATCH_SILENCE: Duration = Duration::from_secs(90);

/// Connection reuse of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Idle connections are reused.
    Pooled,
    /// Each request opens a new connection, for the retry after a reused connection turned out to
    /// be dead.
    Fresh,
}

/// Builds a client for reviews. It has no timeout for the response, because a review has a
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

/// Builds a client for one watch. Each watch has its own, because the client reports the responses
/// as the health of its watch.
pub(super) fn watch_client(
    config: &kube::Config,
    health: Health,
) -> Result<Client, KubernetesError> {
    let service = http_client(config, WATCH_USER_TIMEOUT, Connections::Pooled)?;
    let server = config.cluster_url.to_string();
    let server = server.trim_end_matches('/').to_owned();
    let service = ServiceExt::map_err(service, move |source| ConnectionError {
        server: server.clone(),
        source,
    });
    Ok(client(
        config,
        Bounded {
            inner: service,
            health,
        },
    )?)
}

/// A request of a watch that got no response, with the address of the API server.
#[derive(Debug, thiserror::Error)]
#[error("API server {server}")]
pub(super) struct ConnectionError {
    pub server: String,
    source: hyper_util::client::legacy::Error,
}

type Connector = TimeoutConnector<hyper_rustls::HttpsConnector<HttpConnector>>;
type HttpClient = hyper_util::client::legacy::Client<Connector, Body>;

fn http_client(
    config: &kube::Config,
    user_timeout: Duration,
    connections: Connections,
) -> Result<HttpClient, KubernetesError> {
    // This connector would silently bypass the proxy.
    if config.proxy_url.is_some() {
        return Err(KubernetesError::Proxy);
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
    // Includes name lookup and TLS handshake, unlike the timeout of `HttpConnector`.
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // A peer that acknowledges probes but keeps its receive window closed does not trigger
    // TCP_USER_TIMEOUT on every kernel. There is no read timeout here: reads wait for the events of
    // a watch, and `Bounded` limits them by request.
    connector.set_write_timeout(Some(user_timeout));
    let mut builder = hyper_util::client::legacy::Builder::new(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new());
    if connections == Connections::Fresh {
        builder.pool_max_idle_per_host(0);
    }
    Ok(builder.build(connector))
}

/// Wraps `service` with base URI, credentials and headers, as kube does, but without retries.
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
    /// Name of the watch in `/readyz` and in the metrics.
    pub watch: &'static str,
    pub ready: Ready,
    pub metrics: Metrics,
    /// Failures of all watches of the API server.
    pub failures: FailureLog,
}

impl Health {
    /// Records that the watch or its list failed. `effect` is that on requests.
    pub fn set_failed(&self, failure: Failure, effect: &'static str) {
        let reason = format!("{effect}: {failure}");
        self.ready
            .set_degraded_by(self.watch, reason, failure.obstacle());
        self.metrics.watch_up(self.watch, false);
        self.failures.failed(self.watch, failure, effect);
    }

    /// Records a successful response. kube's watcher reports failures but no recovery, so this is
    /// the only sign of it.
    fn set_up(&self) {
        self.ready.clear_degraded(self.watch);
        self.metrics.watch_up(self.watch, true);
        self.failures.recovered(self.watch);
    }

    /// Records that a watch received nothing for [`WATCH_SILENCE`].
    fn set_silent(&self) {
        // Only debug: a kind without a change since the start of the API server gets no bookmarks
        // either. If the API server is down, the reconnect that follows logs a warning.
        tracing::debug!(
            resource = self.watch,
            seconds = WATCH_SILENCE.as_secs(),
            "no data on the watch; reconnecting"
        );
        self.ready.set_degraded(
            self.watch,
            format!(
                "serving the last known state: the API server sent nothing for {WATCH_SILENCE:?}; \
                 reconnecting"
            ),
        );
        self.metrics.watch_up(self.watch, false);
    }
}

/// Limits the waits of one watch. A page of a list must be complete, and the head of a watch
/// received, within [`PAGE_TIMEOUT`]. A watch without data for [`WATCH_SILENCE`] ends, and kube's
/// watcher resumes it with a new request.
#[derive(Clone, Debug)]
pub(super) struct Bounded<S> {
    pub inner: S,
    pub health: Health,
}

type BoundedBody = UnsyncBoxBody<Bytes, BoxError>;

/// No complete response within [`PAGE_TIMEOUT`].
#[derive(Debug, thiserror::Error)]
#[error("the API server did not respond within {PAGE_TIMEOUT:?}")]
struct PageTimeout;

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
        // kube builds the requests; only the query distinguishes a watch from a list.
        let is_watch = request
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let health = self.health.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let page = async {
                let (head, body) = response.await.map_err(Into::into)?.into_parts();
                let success = head.status.is_success();
                let body = if is_watch && success {
                    WatchBody::new(body, health.clone()).boxed_unsync()
                } else {
                    // Collected within the timeout: kube reads the whole page before it decodes it,
                    // so this buffers nothing more, and a body that hangs fails like a head that
                    // does.
                    let page = body.collect().await.map_err(Into::into)?.to_bytes();
                    Full::new(page)
                        .map_err(|never| match never {})
                        .boxed_unsync()
                };
                // Errors leave the state to the watcher, which reports them with the reason.
                if success {
                    health.set_up();
                }
                Ok(Response::from_parts(head, body))
            };
            timeout(PAGE_TIMEOUT, page)
                .await
                .unwrap_or_else(|_| Err(PageTimeout.into()))
        })
    }
}

/// Body of a watch, which ends after [`WATCH_SILENCE`] without a frame.
struct WatchBody<B> {
    body: Pin<Box<B>>,
    silence: Pin<Box<Sleep>>,
    health: Health,
}

impl<B> WatchBody<B> {
    fn new(body: B, health: Health) -> Self {
        Self {
            body: Box::pin(body),
            silence: Box::pin(tokio::time::sleep(WATCH_SILENCE)),
            health,
        }
    }
}

impl<B: HttpBody<Data = Bytes>> HttpBody for WatchBody<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // The body first: a frame that arrived together with the timeout counts.
        if let Poll::Ready(frame) = self.body.as_mut().poll_frame(context) {
            self.silence.as_mut().reset(Instant::now() + WATCH_SILENCE);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(self.silence.as_mut().poll(context));
        self.health.set_silent();
        // An end rather than an error: the watcher resumes at its last version without backoff,
        // where an error would delay it.
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

    /// Starts an API server that returns an empty object to every request. Returns its address and
    /// the number of its connections.
    async fn api() -> (kube::Config, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
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
        let (config, connections) = api().await;
        let client = review_client(&config, Connections::Fresh).unwrap();
        for _ in 0..3 {
            client
                .request_text(Request::get("/").body(Vec::new()).unwrap())
                .await
                .unwrap();
        }
        assert_eq!(connections.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn rejects_configuration_with_http_proxy() {
        crate::tls::install_provider();
        let mut config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        config.proxy_url = Some("http://127.0.0.1:2".parse().unwrap());
        assert!(review_client(&config, Connections::Pooled).is_err());
    }
}
