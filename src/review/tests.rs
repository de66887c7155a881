//! Reviews before an API that is not well. One that is well is asked in `tests/e2e`.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use http::Response;
use k8s_openapi::api::authentication::v1::TokenReview;
use prometheus_client::registry::Registry;
use serde_json::json;

use super::*;
use crate::config;
use crate::metrics::{Metrics, ReviewMetrics};
use crate::ready::Ready;

/// The behavior of the API towards one review.
#[derive(Clone)]
enum Act {
    Answer(u16, &'static str),
    RetryAfter(&'static str),
    /// A connection that brings nothing.
    Hang,
    /// An answer that comes late.
    Slow(u64),
    Break,
}

/// An API that acts by a script, by connection: pooled or new.
#[derive(Clone, Default)]
struct Script {
    pooled: Arc<Mutex<VecDeque<Act>>>,
    fresh: Arc<Mutex<VecDeque<Act>>>,
    open: Arc<AtomicUsize>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Script {
    fn new(pooled: &[Act], fresh: &[Act]) -> Self {
        let script = |acts: &[Act]| Arc::new(Mutex::new(acts.iter().cloned().collect()));
        Self {
            pooled: script(pooled),
            fresh: script(fresh),
            open: Arc::default(),
        }
    }

    fn client(&self, acts: &Arc<Mutex<VecDeque<Act>>>) -> kube::Client {
        let (acts, open) = (Arc::clone(acts), Arc::clone(&self.open));
        let service = tower::service_fn(move |_: Request<Body>| {
            open.fetch_add(1, Ordering::SeqCst);
            let (act, open) = (
                acts.lock().unwrap().pop_front().expect("no more is asked"),
                Open(Arc::clone(&open)),
            );
            async move {
                let _open = open;
                let answer = |code: u16| Response::builder().status(code);
                match act {
                    Act::Answer(code, body) => Ok(answer(code)
                        .body(Body::from(body.as_bytes().to_vec()))
                        .unwrap()),
                    Act::RetryAfter(seconds) => Ok(answer(429)
                        .header(header::RETRY_AFTER, seconds)
                        .body(Body::empty())
                        .unwrap()),
                    Act::Hang => std::future::pending().await,
                    Act::Slow(seconds) => {
                        tokio::time::sleep(Duration::from_secs(seconds)).await;
                        Ok(answer(201)
                            .body(Body::from(ANSWER.as_bytes().to_vec()))
                            .unwrap())
                    }
                    Act::Break => Err("connection reset by peer"),
                }
            }
        });
        kube::Client::new(service, "default")
    }

    fn reviewer(&self) -> (Reviewer<TokenReview>, Ready) {
        let (ready, metrics) = (Ready::default(), Metrics::new(&mut Registry::default()));
        let api = ReviewApi {
            pooled: self.client(&self.pooled),
            fresh: self.client(&self.fresh),
            control: Handle::current(),
            health: ApiHealth::new(ready.clone(), metrics),
        };
        let admission = Admission::new(&config::Reviews::default(), ReviewMetrics::default());
        (
            Reviewer::new(api, admission, Duration::from_secs(10)),
            ready,
        )
    }
}

fn client() -> ClientAddress {
    IpAddr::from([192, 0, 2, 1]).into()
}

async fn ask(reviewer: &Reviewer<TokenReview>) -> Result<bool, ReviewError> {
    let answer = reviewer.ask(&TokenReview::default(), client()).await?;
    Ok(answer.status.unwrap_or_default().authenticated == Some(true))
}

const ANSWER: &str =
    r#"{"kind":"TokenReview","spec":{"token":"secret"},"status":{"authenticated":true}}"#;
const YES: Act = Act::Answer(201, ANSWER);

#[tokio::test(start_paused = true)]
async fn a_dead_pooled_connection_costs_one_repetition_on_a_new_one() {
    for first in [Act::Break, Act::Hang] {
        let (reviewer, ready) = Script::new(&[first], &[YES]).reviewer();
        assert!(ask(&reviewer).await.unwrap());
        assert!(!reviewer.is_unreachable() && !ready.report().1.contains("reviews"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_api_is_waited_for_as_long_as_the_timeout_says() {
    for (pooled, fresh) in [
        (Act::Slow(9), Act::Hang),
        (Act::Hang, Act::Slow(4)),
        (Act::Slow(8), Act::Break),
    ] {
        let (reviewer, _) = Script::new(&[pooled], &[fresh]).reviewer();
        assert!(ask(&reviewer).await.unwrap());
        assert!(!reviewer.is_unreachable(), "slow is not unreachable");
    }
    let (reviewer, _) = Script::new(&[Act::Slow(4)], &[]).reviewer();
    assert!(
        ask(&reviewer).await.unwrap(),
        "one that answers in half the time is asked once"
    );
}

#[tokio::test(start_paused = true)]
async fn an_api_without_an_answer_is_unreachable_until_it_answers() {
    for acts in [
        [Act::Break, Act::Break],
        [Act::Hang, Act::Hang],
        [Act::Break, Act::Answer(503, "")],
    ] {
        let [first, second] = acts;
        let (reviewer, ready) = Script::new(&[first, YES], &[second]).reviewer();
        assert!(matches!(
            ask(&reviewer).await,
            Err(ReviewError::Unreachable(_))
        ));
        assert!(
            reviewer.is_unreachable() && ready.report().1.contains("[!]reviews impaired"),
            "{}",
            ready.report().1
        );
        assert!(ask(&reviewer).await.unwrap());
        assert!(!reviewer.is_unreachable() && !ready.report().1.contains("[!]"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_is_waited_for_as_the_api_says_and_is_an_error_only_past_the_deadline() {
    let started = Instant::now();
    let (reviewer, _) =
        Script::new(&[Act::RetryAfter("3"), Act::RetryAfter("soon"), YES], &[]).reviewer();
    assert!(ask(&reviewer).await.unwrap());
    assert_eq!(
        started.elapsed(),
        Duration::from_secs(4),
        "in paused time: 3 s as told, 1 s as by default"
    );
    let (reviewer, _) = Script::new(&[Act::RetryAfter("60")], &[]).reviewer();
    assert!(matches!(
        ask(&reviewer).await,
        Err(ReviewError::Unreachable(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_beyond_every_clock_is_past_the_deadline() {
    let (reviewer, _) = Script::new(&[Act::RetryAfter("18446744073709551615")], &[]).reviewer();
    let fault = ask(&reviewer).await.unwrap_err();
    assert_eq!(fault.to_string(), "the API answers 429 Too Many Requests");
}

#[test]
fn texts_of_the_api_are_cut_at_a_character() {
    assert_eq!(cut_text("short".into()), "short");
    let long = cut_text(["x", &"é".repeat(MAX_TEXT_BYTES)].concat());
    assert_eq!(long.len(), MAX_TEXT_BYTES - 1);
}

#[tokio::test(start_paused = true)]
async fn an_api_that_refuses_is_asked_once_and_is_not_taken_for_unreachable() {
    for act in [
        Act::Answer(403, r#"{"message":"no rights"}"#),
        Act::Answer(201, "secret, not JSON"),
    ] {
        let (reviewer, _) = Script::new(&[act], &[]).reviewer();
        let fault = ask(&reviewer).await.unwrap_err();
        assert!(
            matches!(fault, ReviewError::Refused(_)) && !fault.to_string().contains("secret"),
            "{fault}"
        );
        assert!(!reviewer.is_unreachable());
    }
}

#[tokio::test(start_paused = true)]
async fn a_review_ends_with_its_request() {
    let script = Script::new(&[Act::Hang], &[]);
    let (reviewer, _) = script.reviewer();
    let mut asking = Box::pin(ask(&reviewer));
    while script.open.load(Ordering::SeqCst) == 0 {
        assert!(asking.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    drop(asking);
    while script.open.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    let place = reviewer.admission.enter(client()).now_or_never();
    assert!(place.is_some(), "its place is free");
}

#[test]
fn a_fault_is_the_apis_message_and_nothing_else_of_its_answer() {
    let status = json!({"kind": "Status", "message": "etcd is down"}).to_string();
    assert_eq!(
        fault(StatusCode::INTERNAL_SERVER_ERROR, status.as_bytes()),
        "the API answered 500: etcd is down"
    );
    assert_eq!(
        fault(StatusCode::BAD_GATEWAY, b"<html>secret</html>"),
        "the API answered 502"
    );
}
