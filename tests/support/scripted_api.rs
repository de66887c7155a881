//! A stand-in for the Kubernetes API that answers reviews as a test wants, and counts those that
//! wait. Lists are empty, watches silent. It speaks plain HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Tokens that begin with this are good, and their user may do nothing; no other token is ever
/// answered.
pub const GOOD: &str = "good";

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Debug)]
pub struct ScriptedApi {
    pub address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicUsize,
    most: AtomicUsize,
    reviews: AtomicU64,
}

/// Counts a review as waiting until it is dropped: hyper drops what answers a request when its
/// connection ends.
struct Waiting(Arc<Counts>);

impl Waiting {
    fn new(counts: &Arc<Counts>) -> Self {
        let waiting = counts.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        counts.most.fetch_max(waiting, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ScriptedApi {
    /// # Errors
    /// Where no port of loopback is left.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let counts = Arc::<Counts>::default();
        let kept = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counts = Arc::clone(&counts);
                let service = service_fn(move |request| {
                    let counts = Arc::clone(&counts);
                    async move { Ok::<_, Infallible>(answer(request, &counts).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Ok(Self {
            address,
            counts: kept,
        })
    }

    /// Reviews that have not been answered, and whose connection is open.
    pub fn waiting(&self) -> usize {
        self.counts.waiting.load(Ordering::SeqCst)
    }

    /// The most that ever waited at once.
    pub fn most_waiting(&self) -> usize {
        self.counts.most.load(Ordering::SeqCst)
    }

    /// Reviews that were asked for.
    pub fn reviews(&self) -> u64 {
        self.counts.reviews.load(Ordering::SeqCst)
    }

    /// Writes a kubeconfig for it.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("scripted.kubeconfig");
        let text = format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: \"http://{}\"}}}}]
users: [{{name: u, user: {{token: own}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
",
            self.address
        );
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

async fn answer(request: Request<Incoming>, counts: &Arc<Counts>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if request.uri().query().unwrap_or_default().contains("watch=") {
        return Response::new(
            StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Infallible>>())
                .boxed_unsync(),
        );
    }
    let resource = path.rsplit('/').next().unwrap_or_default();
    let kind = match resource {
        "tokenreviews" | "subjectaccessreviews" => {
            counts.reviews.fetch_add(1, Ordering::SeqCst);
            let body = request
                .into_body()
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            let review: Value = serde_json::from_slice(&body).unwrap_or_default();
            return reviewed(review, counts).await;
        }
        "nodes" => "NodeList",
        "pods" => "PodList",
        "services" => "ServiceList",
        "endpointslices" => "EndpointSliceList",
        _ => "ConfigMapList",
    };
    let group = if resource == "endpointslices" {
        "discovery.k8s.io/v1"
    } else {
        "v1"
    };
    let list = json!({"kind": kind, "apiVersion": group, "metadata": {"resourceVersion": "1"}, "items": []});
    json_response(&list)
}

async fn reviewed(mut review: Value, counts: &Arc<Counts>) -> Response<Body> {
    match review["spec"]["token"].as_str() {
        Some(token) if token.starts_with(GOOD) => {
            review["status"] = json!({"authenticated": true, "user": {"username": token}});
        }
        Some(_) => {
            let _waiting = Waiting::new(counts);
            std::future::pending::<()>().await;
        }
        None => review["status"] = json!({"allowed": false}),
    }
    json_response(&review)
}

fn json_response(value: &Value) -> Response<Body> {
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    response
        .body(Full::new(value.to_string().into()).boxed_unsync())
        .expect("a header that can be written")
}
