//! Watches of a scripted API server that fails. `tests/e2e` has those of a real one.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use futures::StreamExt;
use kube::runtime::watcher::Event;

use super::client::Bounded;
use super::follow::{WatchBackoff, WatchEvent, translate};
use super::*;
use crate::cluster::{Cluster, ObjectKey};
use crate::drain::Drain;
use crate::model::address::AddressPolicy;
use crate::ready::Obstacle;
use crate::testing::eventually;
use crate::watch::objects::Item;

const WAIT_TIMEOUT: Duration = Duration::from_mins(5);

type ApiResponse = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A watch of one kind, and an API server that answers each request with the next response of the
/// test.
struct TestBed {
    cluster: Arc<Cluster>,
    ready: Ready,
    registry: Registry,
    responses: UnboundedSender<ApiResponse>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl TestBed {
    fn new<K: Indexed>() -> Self {
        let (responses, mut prepared) = unbounded_channel();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let received = Arc::clone(&requests);
        let (enqueue, mut waiting) =
            unbounded_channel::<tokio::sync::oneshot::Sender<ApiResponse>>();
        tokio::spawn(async move {
            while let Some(request) = waiting.recv().await {
                let Some(response) = prepared.recv().await else {
                    return;
                };
                let _ = request.send(response);
            }
        });
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            received.lock().unwrap().push(request.uri().to_string());
            let (sender, response) = tokio::sync::oneshot::channel();
            enqueue.send(sender).unwrap();
            async move {
                response
                    .await
                    .map_err(|_| tower::BoxError::from("the test has ended"))
            }
        });

        let (cluster, writer) = Cluster::new(AddressPolicy::default(), false, None);
        let (ready, mut registry) = (Ready::default(), Registry::default());
        let metrics = Metrics::new(&mut registry);
        let health = Health {
            watch: K::KIND.plural(),
            ready: ready.clone(),
            metrics: metrics.clone(),
            failures: FailureLog::default(),
        };
        let blockers = vec![(K::KIND, ready.block(K::KIND.plural()))];
        let (feed, index) = crate::watch::feed(writer, blockers, &metrics);
        tokio::spawn(index.run());
        let client = Client::new(
            Bounded {
                inner: service,
                health: health.clone(),
            },
            "default",
        );
        tokio::spawn(follow_all::<K, _>(client, feed, health)());
        Self {
            cluster,
            ready,
            registry,
            responses,
            requests,
        }
    }

    fn respond(&self, response: ApiResponse) {
        self.responses.send(response).unwrap();
    }

    /// Waits for a request whose URI contains all of `parts`.
    async fn wait_for_request(&self, parts: &[&str]) {
        let matches = |uri: &String| parts.iter().all(|part| uri.contains(part));
        eventually(WAIT_TIMEOUT, || {
            self.requests.lock().unwrap().iter().any(matches)
        })
        .await;
    }

    /// Names of the pods `a`, `b`, `c` that are in the index.
    fn pods(&self) -> String {
        ["a", "b", "c"]
            .into_iter()
            .filter(|name| self.cluster.pod("ns", name).is_some())
            .collect()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

fn pod(name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "ns", "resourceVersion": "7"},
        "status": {"podIPs": [{"ip": "10.0.0.1"}]}})
}

/// A pod with an invalid address.
fn malformed(name: &str) -> Value {
    let mut pod = pod(name);
    pod["status"]["podIPs"][0]["ip"] = "nowhere".into();
    pod
}

/// A page of a list. The last one has an empty `token`.
fn page(items: &[Value], token: &str) -> ApiResponse {
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "continue": token},
        "items": items});
    response(200, &list)
}

fn response(code: u16, body: &Value) -> ApiResponse {
    let body = http_body_util::Full::new(Bytes::from(body.to_string()));
    Response::builder()
        .status(code)
        .body(body.boxed_unsync())
        .unwrap()
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Oops", "message": "not well",
        "code": code})
}

/// A watch that sends `events` and stays open.
fn watch(events: &[(&str, Value)]) -> ApiResponse {
    // The type comes first, as the API server writes it.
    let lines = events
        .iter()
        .map(|(kind, object)| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"));
    let lines: Vec<_> = lines
        .map(|line| Ok(Frame::data(Bytes::from(line))))
        .collect();
    let body = StreamBody::new(futures::stream::iter(lines).chain(futures::stream::pending()));
    Response::new(BodyExt::boxed_unsync(body))
}

#[tokio::test(start_paused = true)]
async fn applies_list_after_its_last_page() {
    let bed = TestBed::new::<SlimPod>();
    bed.respond(page(&[pod("a"), pod("b")], "next"));
    bed.wait_for_request(&["limit=500", "continue=next"]).await;
    assert!(
        bed.pods().is_empty() && !bed.ready.is_synced(),
        "an incomplete list is not applied"
    );
    bed.respond(page(&[pod("c")], ""));
    bed.wait_for_request(&["watch=true", "resourceVersion=7"])
        .await;
    assert!(bed.pods() == "abc" && bed.ready.is_synced());
}

#[tokio::test(start_paused = true)]
async fn lists_again_after_expired_version_and_keeps_previous_objects() {
    let bed = TestBed::new::<SlimPod>();
    bed.respond(page(&[pod("a")], ""));
    bed.respond(watch(&[("ADDED", pod("b")), ("ERROR", status(410))]));
    eventually(WAIT_TIMEOUT, || bed.requests.lock().unwrap().len() == 3).await;
    assert_eq!(bed.pods(), "ab");
    assert!(
        !bed.requests.lock().unwrap()[2].contains("watch=true"),
        "it lists again"
    );
    // The list fails after its first page, which is discarded.
    bed.respond(page(&[pod("c")], "next"));
    bed.wait_for_request(&["continue=next"]).await;
    bed.respond(response(500, &status(500)));
    eventually(WAIT_TIMEOUT, || bed.requests.lock().unwrap().len() == 5).await;
    assert_eq!(bed.pods(), "ab", "the previous objects stay");
    let (is_ready, report) = bed.ready.report();
    assert!(is_ready && report.contains("[!]pods degraded"), "{report}");
    assert!(
        bed.metrics().contains(r#"watch_up{resource="pods"} 0"#),
        "{}",
        bed.metrics()
    );
    assert!(
        !bed.requests.lock().unwrap()[4].contains("continue"),
        "it starts a new list"
    );
    bed.respond(page(&[pod("b")], ""));
    eventually(WAIT_TIMEOUT, || bed.pods() == "b").await;
}

#[tokio::test(start_paused = true)]
async fn skips_and_counts_malformed_object() {
    let bed = TestBed::new::<SlimPod>();
    bed.respond(page(&[malformed("a"), pod("b")], ""));
    eventually(WAIT_TIMEOUT, || bed.pods() == "b").await;
    assert!(
        bed.metrics()
            .contains(r#"watch_malformed_objects_total{resource="pods"} 1"#),
        "{}",
        bed.metrics()
    );
    bed.respond(watch(&[("MODIFIED", malformed("b")), ("ADDED", pod("c"))]));
    eventually(WAIT_TIMEOUT, || bed.pods().contains('c')).await;
    assert_eq!(bed.pods(), "bc", "the previous version stays");
    assert!(
        bed.metrics()
            .contains(r#"watch_malformed_objects_total{resource="pods"} 2"#),
        "{}",
        bed.metrics()
    );
}

#[tokio::test(start_paused = true)]
async fn skips_object_with_malformed_metadata() {
    let labels = |name: &str| {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!([1]);
        pod
    };
    let bed = TestBed::new::<SlimPod>();
    bed.respond(page(
        &[labels("a"), json!({"metadata": 5}), json!(null), pod("b")],
        "",
    ));
    eventually(WAIT_TIMEOUT, || bed.pods() == "b").await;
    bed.respond(watch(&[
        ("ADDED", labels("a")),
        ("MODIFIED", labels("b")),
        ("ADDED", pod("c")),
    ]));
    eventually(WAIT_TIMEOUT, || bed.pods() == "bc").await;
    assert_eq!(
        bed.requests.lock().unwrap().len(),
        2,
        "it does not list again"
    );
}

#[tokio::test(start_paused = true)]
async fn lists_again_after_event_without_version() {
    let bed = TestBed::new::<SlimPod>();
    bed.respond(page(&[pod("b")], ""));
    bed.respond(watch(&[("ADDED", json!({"metadata": 5}))]));
    bed.respond(page(&[json!({"metadata": 5}), pod("c")], ""));
    eventually(WAIT_TIMEOUT, || bed.pods() == "c").await;
}

#[test]
fn deletes_slice_that_lost_its_service_label() {
    let slice = |labels: Value| {
        json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": {"name": "s-1", "namespace": "ns", "labels": labels, "resourceVersion": "8"}})
    };
    let labelled = slice(json!({"kubernetes.io/service-name": "s"}));
    let health = Health {
        watch: "endpointslices",
        ready: Ready::default(),
        metrics: Metrics::new(&mut Registry::default()),
        failures: FailureLog::default(),
    };
    let event_of = |event| translate::<SlimSlice>(Ok(event), &health);
    let read = |slice: &Value| serde_json::from_str::<Item<SlimSlice>>(&slice.to_string()).unwrap();
    assert!(matches!(
        event_of(Event::Apply(read(&labelled))),
        WatchEvent::Changed(Object::EndpointSlice(..), _)
    ));
    let WatchEvent::Deleted(key) = event_of(Event::Apply(read(&slice(json!({}))))) else {
        panic!("the slice stays in the index")
    };
    assert_eq!(key, ObjectKey::new("ns", "s-1"));
    assert!(matches!(
        event_of(Event::InitApply(read(&slice(json!({}))))),
        WatchEvent::Skipped
    ));
}

#[tokio::test(start_paused = true)]
async fn counts_no_events_while_lists_fail() {
    let bed = TestBed::new::<SlimPod>();
    for _ in 0..3 {
        bed.respond(response(500, &status(500)));
    }
    eventually(WAIT_TIMEOUT, || bed.requests.lock().unwrap().len() == 4).await;
    let metrics = bed.metrics();
    assert!(
        !metrics.contains("watch_events_total{") && !metrics.contains("timestamp_seconds{"),
        "{metrics}"
    );
    bed.respond(page(&[], ""));
    eventually(WAIT_TIMEOUT, || bed.ready.is_synced()).await;
    assert!(
        bed.metrics()
            .contains(r#"watch_events_total{resource="pods"} 1"#),
        "{}",
        bed.metrics()
    );
}

#[tokio::test(start_paused = true)]
async fn suggests_remedy_only_for_rejected_credentials() {
    for (code, hint) in [
        (401, "its service account or kubeconfig"),
        (403, "apply the ClusterRole kube-bastion"),
        (500, ""),
    ] {
        let bed = TestBed::new::<SlimPod>();
        bed.respond(response(code, &status(code)));
        eventually(WAIT_TIMEOUT, || bed.ready.report().1.contains("not well")).await;
        let (_, report) = bed.ready.report();
        assert!(
            report.contains("[-]pods pending") && report.contains(hint),
            "{code}: {report}"
        );
        assert!(
            !hint.is_empty() || !report.contains("bastion"),
            "{code}: {report}"
        );
        let obstacle = (!hint.is_empty()).then_some(Obstacle::Denied);
        assert_eq!(bed.ready.obstacle(), obstacle, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_hung_list_after_timeout() {
    let bed = TestBed::new::<SlimPod>();
    // The head of the first page arrives, its body never ends.
    let hung = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    bed.respond(Response::new(BodyExt::boxed_unsync(hung)));
    eventually(WAIT_TIMEOUT, || {
        bed.ready.report().1.contains("did not respond within 60s")
    })
    .await;
    assert!(
        bed.metrics().contains(r#"watch_up{resource="pods"} 0"#),
        "{}",
        bed.metrics()
    );
    bed.respond(page(&[pod("a")], ""));
    eventually(WAIT_TIMEOUT, || bed.pods() == "a").await;
    assert!(bed.ready.report().0);
}

#[tokio::test(start_paused = true)]
async fn reports_and_resumes_silent_watch() {
    let bed = TestBed::new::<SlimPod>();
    bed.respond(page(&[pod("a")], ""));
    bed.respond(watch(&[]));
    bed.wait_for_request(&["watch=true"]).await;
    eventually(WAIT_TIMEOUT, || {
        bed.metrics().contains(r#"watch_up{resource="pods"} 1"#)
    })
    .await;
    // kube's own idle timeout (295 s) would resume without a report.
    eventually(WAIT_TIMEOUT, || {
        bed.ready.report().1.contains("[!]pods degraded")
    })
    .await;
    assert!(
        bed.metrics().contains(r#"watch_up{resource="pods"} 0"#),
        "{}",
        bed.metrics()
    );
    // It resumes from its last version and reports the recovery.
    bed.respond(watch(&[("ADDED", pod("b"))]));
    eventually(WAIT_TIMEOUT, || bed.pods() == "ab").await;
    assert!(
        bed.metrics().contains(r#"watch_up{resource="pods"} 1"#)
            && !bed.ready.report().1.contains("[!]")
    );
}

#[tokio::test(start_paused = true)]
async fn hung_list_does_not_delay_other_watches() {
    // The API server never responds to the list of pods.
    let service = tower::service_fn(async |request: Request<kube::client::Body>| {
        let uri = request.uri().to_string();
        if uri.contains("/pods") || uri.contains("watch=true") {
            std::future::pending::<()>().await;
        }
        Ok::<_, tower::BoxError>(page(&[], ""))
    });
    let (_cluster, writer) = Cluster::new(AddressPolicy::default(), false, None);
    let (ready, mut registry) = (Ready::default(), Registry::default());
    let metrics = Metrics::new(&mut registry);
    let (feed, index) = crate::watch::feed(writer, KubernetesWatch::blockers(&ready), &metrics);
    let mut supervisor = Supervisor::new(ready.clone(), metrics.clone(), Drain::default());
    supervisor.fatal("index", index.run());
    let client = |kind: Kind| {
        let health = Health {
            watch: kind.plural(),
            ready: ready.clone(),
            metrics: metrics.clone(),
            failures: FailureLog::default(),
        };
        Client::new(
            Bounded {
                inner: service,
                health,
            },
            "default",
        )
    };
    let clients = Kind::ALL.map(client);
    KubernetesWatch {
        clients,
        ready: ready.clone(),
        metrics: metrics.clone(),
        failures: FailureLog::default(),
    }
    .start(&feed, &mut supervisor);
    let others = ["[+]nodes ok", "[+]services ok", "[+]endpointslices ok"];
    eventually(WAIT_TIMEOUT, || {
        others.iter().all(|line| ready.report().1.contains(line))
    })
    .await;
    assert!(
        ready.report().1.contains("[-]pods pending"),
        "{}",
        ready.report().1
    );
}

#[test]
fn backoff_does_not_exceed_15_seconds() {
    let pauses: Vec<_> = WatchBackoff::default().take(30).collect();
    assert!(
        pauses.len() == 30 && pauses.iter().all(|pause| *pause <= Duration::from_secs(15)),
        "{pauses:?}"
    );
    assert!(pauses[29] >= Duration::from_millis(7500), "{pauses:?}");
}

#[derive(Debug, thiserror::Error)]
enum Layered {
    #[error("failed to perform initial object list: {0}")]
    List(#[source] Box<Layered>),
    #[error("ServiceError: {0}")]
    Service(#[source] Box<Layered>),
    #[error("API server https://192.0.2.1:6443")]
    Server(#[source] Box<Layered>),
    #[error("client error (Connect)")]
    Client(#[source] Box<Layered>),
    #[error("tcp connect error")]
    Connect(#[source] std::io::Error),
}

#[test]
fn error_of_a_failed_connection_has_address_and_innermost_cause() {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    let connect = Layered::Client(Layered::Connect(refused).into());
    let error = Layered::Service(Layered::Server(connect.into()).into());
    assert_eq!(
        innermost_causes(&Layered::List(error.into())),
        "API server https://192.0.2.1:6443: connection refused"
    );
}
