//! Watches before an API that is not well. One that is well is asked in `tests/e2e`.

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

use super::client::Bounded;
use super::*;
use crate::cluster::Cluster;
use crate::drain::Drain;
use crate::model::address::AddressPolicy;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A watch of one kind, before an API that gives each request the next of the answers that the test
/// has for it.
struct TestBed {
    cluster: Arc<Cluster>,
    ready: Ready,
    registry: Registry,
    answers: UnboundedSender<Answer>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl TestBed {
    fn of<K: Watched>() -> Self {
        let (answers, mut prepared) = unbounded_channel();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&asked);
        let (hand_on, mut waiting) = unbounded_channel::<tokio::sync::oneshot::Sender<Answer>>();
        tokio::spawn(async move {
            while let Some(request) = waiting.recv().await {
                let Some(answer) = prepared.recv().await else {
                    return;
                };
                let _ = request.send(answer);
            }
        });
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            heard.lock().unwrap().push(request.uri().to_string());
            let (sender, answer) = tokio::sync::oneshot::channel();
            hand_on.send(sender).unwrap();
            async move {
                answer
                    .await
                    .map_err(|_| tower::BoxError::from("the test is over"))
            }
        });

        let (cluster, writer) = Cluster::new(AddressPolicy::default(), false);
        let (ready, mut registry) = (Ready::default(), Registry::default());
        let metrics = Metrics::new(&mut registry);
        let health = Health {
            watch: K::KIND.plural(),
            ready: ready.clone(),
            metrics: metrics.clone(),
        };
        let holds = vec![(K::KIND, ready.block(K::KIND.plural()))];
        let (feed, index) = crate::watch::feed(writer, holds, &metrics);
        tokio::spawn(index.run());
        let client = Client::new(
            Bounded {
                inner: service,
                health,
            },
            "default",
        );
        tokio::spawn(run::<K>(client, feed, ready.clone(), metrics));
        Self {
            cluster,
            ready,
            registry,
            answers,
            asked,
        }
    }

    fn answer(&self, answer: Answer) {
        self.answers.send(answer).unwrap();
    }

    /// Waits until a request comes that holds all of `parts`.
    async fn asks(&self, parts: &[&str]) {
        let fits = |uri: &String| parts.iter().all(|part| uri.contains(part));
        eventually(|| self.asked.lock().unwrap().iter().any(fits)).await;
    }

    /// Which of the pods `a`, `b`, `c` are known.
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

async fn eventually(mut is: impl FnMut() -> bool) {
    let waited = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(5), waited)
        .await
        .unwrap();
}

fn pod(name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "ns", "resourceVersion": "7"},
        "status": {"podIPs": [{"ip": "10.0.0.1"}]}})
}

/// One that says what cannot be.
fn malformed(name: &str) -> Value {
    let mut pod = pod(name);
    pod["status"]["podIPs"][0]["ip"] = "nowhere".into();
    pod
}

/// A page; more follow where there is `more`.
fn page(items: &[Value], more: &str) -> Answer {
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "continue": more},
        "items": items});
    whole(200, &list)
}

fn whole(code: u16, body: &Value) -> Answer {
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

/// A watch that tells of `events`, and stays open.
fn watch(events: &[(&str, Value)]) -> Answer {
    // The type stands first, as the API writes it.
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
async fn a_list_of_several_pages_is_known_once_the_last_is_in() {
    let bed = TestBed::of::<SlimPod>();
    bed.answer(page(&[pod("a"), pod("b")], "next"));
    bed.asks(&["limit=500", "continue=next"]).await;
    assert!(
        bed.pods().is_empty() && !bed.ready.is_synced(),
        "a part is no set"
    );
    bed.answer(page(&[pod("c")], ""));
    bed.asks(&["watch=true", "resourceVersion=7"]).await;
    assert!(bed.pods() == "abc" && bed.ready.is_synced());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_too_old_lists_again_while_the_old_set_serves() {
    let bed = TestBed::of::<SlimPod>();
    bed.answer(page(&[pod("a")], ""));
    bed.answer(watch(&[("ADDED", pod("b")), ("ERROR", status(410))]));
    eventually(|| bed.asked.lock().unwrap().len() == 3).await;
    assert_eq!(bed.pods(), "ab");
    assert!(
        !bed.asked.lock().unwrap()[2].contains("watch=true"),
        "it lists"
    );
    // Half-way through, the list breaks, and with it what has been read of it.
    bed.answer(page(&[pod("c")], "next"));
    bed.asks(&["continue=next"]).await;
    bed.answer(whole(500, &status(500)));
    eventually(|| bed.asked.lock().unwrap().len() == 5).await;
    assert_eq!(bed.pods(), "ab", "the old set serves");
    let (is_ready, report) = bed.ready.report();
    assert!(is_ready && report.contains("[!]pods impaired"), "{report}");
    assert!(
        bed.metrics().contains(r#"watch_up{resource="pods"} 0"#),
        "{}",
        bed.metrics()
    );
    assert!(
        !bed.asked.lock().unwrap()[4].contains("continue"),
        "it begins anew"
    );
    bed.answer(page(&[pod("b")], ""));
    eventually(|| bed.pods() == "b").await;
}

#[tokio::test(start_paused = true)]
async fn a_malformed_object_is_counted_and_stalls_nothing() {
    let bed = TestBed::of::<SlimPod>();
    bed.answer(page(&[malformed("a"), pod("b")], ""));
    eventually(|| bed.pods() == "b").await;
    assert!(
        bed.metrics()
            .contains(r#"watch_malformed_objects_total{resource="pods"} 1"#),
        "{}",
        bed.metrics()
    );
    bed.answer(watch(&[("MODIFIED", malformed("b")), ("ADDED", pod("c"))]));
    eventually(|| bed.pods().contains('c')).await;
    assert_eq!(bed.pods(), "bc", "what was known of it stays");
    assert!(
        bed.metrics()
            .contains(r#"watch_malformed_objects_total{resource="pods"} 2"#),
        "{}",
        bed.metrics()
    );
}

#[tokio::test(start_paused = true)]
async fn malformed_metadata_costs_its_object_alone_in_lists_and_events() {
    let labels = |name: &str| {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!([1]);
        pod
    };
    let bed = TestBed::of::<SlimPod>();
    bed.answer(page(
        &[labels("a"), json!({"metadata": 5}), json!(null), pod("b")],
        "",
    ));
    eventually(|| bed.pods() == "b").await;
    bed.answer(watch(&[
        ("ADDED", labels("a")),
        ("MODIFIED", labels("b")),
        ("ADDED", pod("c")),
    ]));
    eventually(|| bed.pods() == "bc").await;
    assert_eq!(bed.asked.lock().unwrap().len(), 2, "it did not list again");
}

#[tokio::test(start_paused = true)]
async fn an_event_without_a_version_lists_again() {
    let bed = TestBed::of::<SlimPod>();
    bed.answer(page(&[pod("b")], ""));
    bed.answer(watch(&[("ADDED", json!({"metadata": 5}))]));
    bed.answer(page(&[json!({"metadata": 5}), pod("c")], ""));
    eventually(|| bed.pods() == "c").await;
}

#[test]
fn a_slice_that_is_taken_off_its_service_serves_it_no_more() {
    let slice = |labels: Value| {
        json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": {"name": "s-1", "namespace": "ns", "labels": labels, "resourceVersion": "8"}})
    };
    let labelled = slice(json!({"kubernetes.io/service-name": "s"}));
    let told = |event| translate::<SlimSlice>(Ok(event), &Metrics::new(&mut Registry::default()));
    let read = |slice: &Value| serde_json::from_str::<Item<SlimSlice>>(&slice.to_string()).unwrap();
    assert!(matches!(
        told(Event::Apply(read(&labelled))),
        WatchEvent::Changed(Object::EndpointSlice(..), _)
    ));
    let WatchEvent::Gone(key) = told(Event::Apply(read(&slice(json!({}))))) else {
        panic!("it would go on serving")
    };
    assert_eq!(key, ObjectKey::new("ns", "s-1"));
    assert!(matches!(
        told(Event::InitApply(read(&slice(json!({}))))),
        WatchEvent::Skipped
    ));
}

#[tokio::test(start_paused = true)]
async fn an_api_that_says_nothing_is_not_counted_as_having_told_something() {
    let bed = TestBed::of::<SlimPod>();
    for _ in 0..3 {
        bed.answer(whole(500, &status(500)));
    }
    eventually(|| bed.asked.lock().unwrap().len() == 4).await;
    let metrics = bed.metrics();
    assert!(
        !metrics.contains("watch_events_total{") && !metrics.contains("timestamp_seconds{"),
        "{metrics}"
    );
    bed.answer(page(&[], ""));
    eventually(|| bed.ready.is_synced()).await;
    assert!(
        bed.metrics()
            .contains(r#"watch_events_total{resource="pods"} 1"#),
        "{}",
        bed.metrics()
    );
}

#[tokio::test(start_paused = true)]
async fn only_where_the_api_refuses_rights_are_asked_for() {
    for (code, hint) in [
        (401, "its account or kubeconfig"),
        (403, "the bastion's account needs"),
        (500, ""),
    ] {
        let bed = TestBed::of::<SlimPod>();
        bed.answer(whole(code, &status(code)));
        eventually(|| bed.ready.report().1.contains("not well")).await;
        let (_, report) = bed.ready.report();
        assert!(
            report.contains("[-]pods pending") && report.contains(hint),
            "{code}: {report}"
        );
        assert!(
            !hint.is_empty() || !report.contains("bastion's"),
            "{code}: {report}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_list_fails_at_its_deadline_and_is_asked_again() {
    let bed = TestBed::of::<SlimPod>();
    // The first page's head comes, its body never ends.
    let hung = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    bed.answer(Response::new(BodyExt::boxed_unsync(hung)));
    eventually(|| bed.ready.report().1.contains("did not answer within 60s")).await;
    assert!(
        bed.metrics().contains(r#"watch_up{resource="pods"} 0"#),
        "{}",
        bed.metrics()
    );
    bed.answer(page(&[pod("a")], ""));
    eventually(|| bed.pods() == "a").await;
    assert!(bed.ready.report().0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_noticed_and_resumed() {
    let bed = TestBed::of::<SlimPod>();
    bed.answer(page(&[pod("a")], ""));
    bed.answer(watch(&[]));
    bed.asks(&["watch=true"]).await;
    eventually(|| bed.metrics().contains(r#"watch_up{resource="pods"} 1"#)).await;
    // kube's own idle timeout (295 s) would resume without a word.
    eventually(|| bed.ready.report().1.contains("[!]pods impaired")).await;
    assert!(
        bed.metrics().contains(r#"watch_up{resource="pods"} 0"#),
        "{}",
        bed.metrics()
    );
    // It resumes from where it stood, and says so.
    bed.answer(watch(&[("ADDED", pod("b"))]));
    eventually(|| bed.pods() == "ab").await;
    assert!(
        bed.metrics().contains(r#"watch_up{resource="pods"} 1"#)
            && !bed.ready.report().1.contains("[!]")
    );
}

#[tokio::test(start_paused = true)]
async fn a_hung_list_holds_up_no_other_watch() {
    // The API never answers about pods.
    let service = tower::service_fn(async |request: Request<kube::client::Body>| {
        let uri = request.uri().to_string();
        if uri.contains("/pods") || uri.contains("watch=true") {
            std::future::pending::<()>().await;
        }
        Ok::<_, tower::BoxError>(page(&[], ""))
    });
    let (_cluster, writer) = Cluster::new(AddressPolicy::default(), false);
    let (ready, mut registry) = (Ready::default(), Registry::default());
    let metrics = Metrics::new(&mut registry);
    let (feed, index) = crate::watch::feed(writer, KubernetesWatch::holds(&ready), &metrics);
    let mut supervisor = Supervisor::new(ready.clone(), metrics.clone(), Drain::default());
    supervisor.fatal("index", index.run());
    let client = |kind: Kind| {
        let health = Health {
            watch: kind.plural(),
            ready: ready.clone(),
            metrics: metrics.clone(),
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
    }
    .start(&feed, &mut supervisor);
    let others = ["[+]nodes ok", "[+]services ok", "[+]endpointslices ok"];
    eventually(|| others.iter().all(|line| ready.report().1.contains(line))).await;
    assert!(
        ready.report().1.contains("[-]pods pending"),
        "{}",
        ready.report().1
    );
}

#[test]
fn pauses_after_failures_stay_short() {
    let pauses: Vec<_> = Pauses::default().take(30).collect();
    assert!(
        pauses.len() == 30 && pauses.iter().all(|pause| *pause <= Duration::from_secs(15)),
        "{pauses:?}"
    );
    assert!(pauses[29] >= Duration::from_millis(7500), "{pauses:?}");
}
