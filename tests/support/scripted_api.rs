//! A server that stands in for the Kubernetes API over plain HTTP. Watches are silent. It responds
//! only to reviews of some tokens, and counts pending reviews.

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

/// Prefix of the valid tokens, whose users are denied all access. Reviews of other tokens get no
/// response.
pub const VALID_TOKEN_PREFIX: &str = "good";
/// Valid token whose user is allowed all access.
pub const ALLOWED_TOKEN: &str = "good-and-allowed";

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Debug)]
pub struct ScriptedApi {
    pub address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    objects: Vec<Value>,
    pending: AtomicUsize,
    max_pending: AtomicUsize,
    reviews: AtomicU64,
}

/// Counts a review as pending until it is dropped. hyper drops the handler of a request when the
/// connection closes.
struct PendingReview(Arc<Counts>);

impl PendingReview {
    fn new(counts: &Arc<Counts>) -> Self {
        let pending = counts.pending.fetch_add(1, Ordering::SeqCst) + 1;
        counts.max_pending.fetch_max(pending, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for PendingReview {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ScriptedApi {
    /// Starts the server with empty lists.
    ///
    /// # Errors
    /// Returns an error if no loopback port is free.
    pub async fn start() -> Result<Self> {
        Self::serving(Vec::new()).await
    }

    /// Starts the server with objects, which have their `kind`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn serving(objects: Vec<Value>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let counts = Arc::new(Counts {
            objects,
            ..Counts::default()
        });
        let shared = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counts = Arc::clone(&counts);
                let service = service_fn(move |request| {
                    let counts = Arc::clone(&counts);
                    async move { Ok::<_, Infallible>(respond(request, &counts).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Ok(Self {
            address,
            counts: shared,
        })
    }

    /// Number of reviews without a response whose connection is open.
    pub fn pending(&self) -> usize {
        self.counts.pending.load(Ordering::SeqCst)
    }

    /// Maximum number of concurrently pending reviews so far.
    pub fn max_pending(&self) -> usize {
        self.counts.max_pending.load(Ordering::SeqCst)
    }

    /// Number of reviews received.
    pub fn reviews(&self) -> u64 {
        self.counts.reviews.load(Ordering::SeqCst)
    }

    /// Writes a kubeconfig for this server.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
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

async fn respond(request: Request<Incoming>, counts: &Arc<Counts>) -> Response<Body> {
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
            return respond_to_review(review, counts).await;
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
    let is_listed = |object: &&Value| {
        let item = kind.strip_suffix("List").unwrap_or_default();
        object["kind"].as_str() == Some(item)
    };
    let items: Vec<_> = counts.objects.iter().filter(is_listed).collect();
    let list = json!({"kind": kind, "apiVersion": group, "metadata": {"resourceVersion": "1"}, "items": items});
    json_response(&list)
}

async fn respond_to_review(mut review: Value, counts: &Arc<Counts>) -> Response<Body> {
    match review["spec"]["token"].as_str() {
        Some(token) if token.starts_with(VALID_TOKEN_PREFIX) => {
            review["status"] = json!({"authenticated": true, "user": {"username": token}});
        }
        Some(_) => {
            let _pending = PendingReview::new(counts);
            std::future::pending::<()>().await;
        }
        None => {
            let allowed = review["spec"]["user"].as_str() == Some(ALLOWED_TOKEN);
            review["status"] = json!({"allowed": allowed});
        }
    }
    json_response(&review)
}

fn json_response(value: &Value) -> Response<Body> {
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    response
        .body(Full::new(value.to_string().into()).boxed_unsync())
        .expect("the headers are valid")
}
