use std::collections::BTreeSet;
use std::sync::Mutex as StdMutex;

use futures::FutureExt;
use kube::core::Status;
use serde_json::json;

use super::super::request::Problem;
use super::*;
use crate::testing::eventually;

const WAIT: Duration = Duration::from_hours(1);

/// API server that records requests, and answers with a status code.
#[derive(Clone)]
struct Server(Arc<StdMutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    /// Names of the Services of the patches, in their order.
    patches: Vec<String>,
    events: Vec<&'static str>,
    /// 0 for success.
    code: u16,
    most_concurrent: usize,
    concurrent: usize,
}

impl Requests for Server {
    fn patch<'a>(
        &'a self,
        key: &'a ObjectKey,
        _patch: &'a Patch,
    ) -> BoxFuture<'a, Result<(), kube::Error>> {
        async {
            {
                let mut recorded = self.0.lock().unwrap();
                recorded.patches.push(key.name.to_string());
                recorded.concurrent += 1;
                recorded.most_concurrent = recorded.most_concurrent.max(recorded.concurrent);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            let mut recorded = self.0.lock().unwrap();
            recorded.concurrent -= 1;
            match recorded.code {
                0 => Ok(()),
                code => {
                    let status = Status::failure("refused", "Refused").with_code(code);
                    Err(kube::Error::Api(Box::new(status)))
                }
            }
        }
        .boxed()
    }

    fn event<'a>(&'a self, _service: &'a Service, notice: &'a Notice) -> BoxFuture<'a, ()> {
        self.0.lock().unwrap().events.push(notice.reason);
        std::future::ready(()).boxed()
    }
}

struct Running {
    server: Server,
    results: watch::Sender<Arc<Results>>,
    is_leader: watch::Sender<bool>,
    ready: Ready,
}

fn start() -> Running {
    let running = Running {
        server: Server(Arc::default()),
        results: watch::Sender::default(),
        is_leader: watch::Sender::new(true),
        ready: Ready::default(),
    };
    let settings = Settings {
        class: "a/b".into(),
        finalizer: false,
    };
    let writer = Writer::new(
        settings,
        running.server.clone(),
        running.results.subscribe(),
        running.is_leader.subscribe(),
        running.ready.clone(),
    );
    tokio::spawn(writer.run());
    running
}

fn result(
    name: &str,
    version: &str,
    problem: Option<Problem>,
) -> (ObjectKey, (Arc<Service>, Option<Outcome>)) {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "a/b"},
    }))
    .unwrap();
    let outcome = Outcome {
        problems: problem.into_iter().collect(),
        ..Outcome::default()
    };
    (service.key(), (Arc::new(service), Some(outcome)))
}

impl Running {
    fn publish(
        &self,
        results: impl IntoIterator<Item = (ObjectKey, (Arc<Service>, Option<Outcome>))>,
    ) {
        let services = results.into_iter().collect();
        let opening = BTreeSet::new();
        self.results
            .send_replace(Arc::new(Results { services, opening }));
    }

    fn patches(&self) -> usize {
        self.server.0.lock().unwrap().patches.len()
    }

    fn answer_with(&self, code: u16) {
        self.server.0.lock().unwrap().code = code;
    }
}

async fn settle() {
    tokio::time::sleep(Duration::from_hours(1)).await;
}

#[tokio::test(start_paused = true)]
async fn writes_each_result_once() {
    let running = start();
    running.publish([result("web", "1", None)]);
    settle().await;
    assert_eq!(running.patches(), 1);
    // The watch has not delivered the write yet.
    running.publish([result("web", "1", None), result("api", "2", None)]);
    settle().await;
    assert_eq!(running.server.0.lock().unwrap().patches, ["web", "api"]);
    // Another result for the same version.
    running.publish([result("web", "1", Some(Problem::NoAddress))]);
    settle().await;
    assert_eq!(running.patches(), 3);
    // Another writer has removed the status.
    running.publish([result("web", "3", Some(Problem::NoAddress))]);
    settle().await;
    assert_eq!(running.patches(), 4);
}

#[tokio::test(start_paused = true)]
async fn writes_while_it_is_elected_only() {
    let running = start();
    running.is_leader.send_replace(false);
    running.publish([result("web", "1", None)]);
    settle().await;
    assert_eq!(running.patches(), 0);
    running.is_leader.send_replace(true);
    eventually(WAIT, || running.patches() == 1).await;
    running.is_leader.send_replace(false);
    running.publish([result("web", "2", None)]);
    settle().await;
    assert_eq!(running.patches(), 1);
}

#[tokio::test(start_paused = true)]
async fn stops_a_pass_when_it_is_not_elected_any_more() {
    let running = start();
    running.publish((0..40).map(|index| result(&format!("web-{index}"), "1", None)));
    eventually(WAIT, || running.patches() > 4).await;
    running.is_leader.send_replace(false);
    settle().await;
    assert!(running.patches() < 40);
    // Those in flight were dropped.
    assert!(running.server.0.lock().unwrap().concurrent > 0);
}

#[tokio::test(start_paused = true)]
async fn retries_with_backoff_and_reports_failures() {
    let running = start();
    running.answer_with(503);
    running.publish([result("web", "1", None)]);
    settle().await;
    let failed = running.patches();
    // With 1 s to 2 min between them, an hour has at least 30 and at most 70.
    assert!((20..80).contains(&failed), "{failed} attempts");
    assert!(
        running
            .ready
            .report()
            .1
            .contains("[!]load-balancer-status degraded")
    );
    assert_eq!(running.server.0.lock().unwrap().events, [""; 0]);
    running.answer_with(0);
    settle().await;
    assert_eq!(running.patches(), failed + 1);
    assert!(!running.ready.report().1.contains("load-balancer-status"));
    let events = running.server.0.lock().unwrap().events.clone();
    assert_eq!(events, ["EnsuringLoadBalancer", "EnsuredLoadBalancer"]);
}

#[tokio::test(start_paused = true)]
async fn forgets_a_failed_write_that_is_not_needed() {
    let running = start();
    running.answer_with(503);
    let (key, (service, _)) = result("web", "1", None);
    running.publish([result("web", "1", None)]);
    eventually(WAIT, || running.patches() == 2).await;
    // Its type is another one now.
    let mut changed = Service::clone(&service);
    changed.spec.r#type = "ClusterIP".into();
    running.publish([(key, (Arc::new(changed), None))]);
    settle().await;
    assert_eq!(running.patches(), 2);
    assert!(!running.ready.report().1.contains("load-balancer-status"));
}

#[tokio::test(start_paused = true)]
async fn forgets_a_service_that_was_deleted() {
    let running = start();
    running.answer_with(404);
    running.publish([result("web", "1", None)]);
    settle().await;
    assert_eq!(running.patches(), 1);
    assert!(!running.ready.report().1.contains("load-balancer-status"));
    assert_eq!(running.server.0.lock().unwrap().events, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn writes_few_services_at_the_same_time() {
    let running = start();
    running.publish((0..100).map(|index| result(&format!("web-{index}"), "1", None)));
    eventually(WAIT, || running.patches() == 100).await;
    assert_eq!(
        running.server.0.lock().unwrap().most_concurrent,
        MAX_CONCURRENT
    );
}
