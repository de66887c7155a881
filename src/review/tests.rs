//! Reviews with an API that fails. `tests/e2e` covers a working one.

use std::collections::VecDeque;
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
use crate::testing::client;

/// Behavior of the API for one request.
#[derive(Clone)]
enum Act {
    Respond(u16, &'static str),
    RetryAfter(&'static str),
    /// Never responds.
    Hang,
    /// Responds after a number of seconds.
    Slow(u64),
    /// Breaks the connection.
    Break,
}

/// API that follows a script for each client, pooled and fresh.
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
                acts.lock()
                    .unwrap()
                    .pop_front()
                    .expect("a request beyond the script"),
                Open(Arc::clone(&open)),
            );
            async move {
                let _open = open;
                let response = |code: u16| Response::builder().status(code);
                match act {
                    Act::Respond(code, body) => Ok(response(code)
                        .body(Body::from(body.as_bytes().to_vec()))
                        .unwrap()),
                    Act::RetryAfter(seconds) => Ok(response(429)
                        .header(header::RETRY_AFTER, seconds)
                        .body(Body::empty())
                        .unwrap()),
                    Act::Hang => std::future::pending().await,
                    Act::Slow(seconds) => {
                        tokio::time::sleep(Duration::from_secs(seconds)).await;
                        Ok(response(201)
                            .body(Body::from(RESPONSE.as_bytes().to_vec()))
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

async fn review(reviewer: &Reviewer<TokenReview>) -> Result<bool, ReviewError> {
    let response = reviewer.send(&TokenReview::default(), client(1)).await?;
    Ok(response.status.unwrap_or_default().authenticated == Some(true))
}

fn is_unreachable(result: Result<bool, ReviewError>) -> bool {
    matches!(result, Err(ReviewError::Failed(failure)) if failure.is_unreachable())
}

const RESPONSE: &str =
    r#"{"kind":"TokenReview","spec":{"token":"secret"},"status":{"authenticated":true}}"#;
const AUTHENTICATED: Act = Act::Respond(201, RESPONSE);

#[tokio::test(start_paused = true)]
async fn repeats_review_once_on_new_connection() {
    for first in [Act::Break, Act::Hang] {
        let (reviewer, ready) = Script::new(&[first], &[AUTHENTICATED]).reviewer();
        assert!(review(&reviewer).await.unwrap());
        assert!(!reviewer.is_unreachable() && !ready.report().1.contains("reviews"));
    }
}

#[tokio::test(start_paused = true)]
async fn waits_for_slow_api_until_timeout() {
    for (pooled, fresh) in [
        (Act::Slow(9), Act::Hang),
        (Act::Hang, Act::Slow(4)),
        (Act::Slow(8), Act::Break),
    ] {
        let (reviewer, _) = Script::new(&[pooled], &[fresh]).reviewer();
        assert!(review(&reviewer).await.unwrap());
        assert!(!reviewer.is_unreachable(), "slow is not unreachable");
    }
    let (reviewer, _) = Script::new(&[Act::Slow(4)], &[]).reviewer();
    assert!(
        review(&reviewer).await.unwrap(),
        "a response within half of the timeout needs no second attempt"
    );
}

#[tokio::test(start_paused = true)]
async fn is_unreachable_until_next_response() {
    for acts in [
        [Act::Break, Act::Break],
        [Act::Hang, Act::Hang],
        [Act::Break, Act::Respond(503, "")],
    ] {
        let [first, second] = acts;
        let (reviewer, ready) = Script::new(&[first, AUTHENTICATED], &[second]).reviewer();
        assert!(is_unreachable(review(&reviewer).await));
        assert!(
            reviewer.is_unreachable() && ready.report().1.contains("[!]reviews"),
            "{}",
            ready.report().1
        );
        assert!(review(&reviewer).await.unwrap());
        assert!(!reviewer.is_unreachable() && !ready.report().1.contains("[!]"));
    }
}

#[tokio::test(start_paused = true)]
async fn repeats_review_after_429_until_deadline() {
    let started = Instant::now();
    let (reviewer, _) = Script::new(
        &[Act::RetryAfter("3"), Act::RetryAfter("soon"), AUTHENTICATED],
        &[],
    )
    .reviewer();
    assert!(review(&reviewer).await.unwrap());
    assert_eq!(
        started.elapsed(),
        Duration::from_secs(4),
        "paused time: 3 s from the header, 1 s by default"
    );
    let (reviewer, _) = Script::new(&[Act::RetryAfter("60")], &[]).reviewer();
    assert!(is_unreachable(review(&reviewer).await));
}

#[tokio::test(start_paused = true)]
async fn treats_overflowing_retry_after_as_past_deadline() {
    let (reviewer, _) = Script::new(&[Act::RetryAfter("18446744073709551615")], &[]).reviewer();
    let error = review(&reviewer).await.unwrap_err();
    assert!(
        matches!(error, ReviewError::Failed(ReviewFailure::TooManyRequests)),
        "{error}"
    );
}

#[test]
fn truncates_text_at_character_boundary() {
    assert_eq!(cut_text("short".into()), "short");
    let long = cut_text(["x", &"é".repeat(MAX_TEXT_BYTES)].concat());
    assert_eq!(long.len(), MAX_TEXT_BYTES - 1);
}

#[test]
fn treats_null_as_absent() {
    let status = |status: &str| {
        let body = format!(
            r#"{{"kind": "TokenReview", "metadata": {{"creationTimestamp": null}}, "spec": {{}}, "status": {status}}}"#
        );
        decode::<TokenReview>(body.as_bytes()).unwrap().status
    };
    let authenticated = |user: &str| {
        let status = status(&format!(r#"{{"authenticated": true, "user": {user}}}"#)).unwrap();
        (status.authenticated, status.user.unwrap().username)
    };
    for user in [
        r#"{"username": "jane", "groups": null, "extra": null, "uid": null}"#,
        r#"{"username": "jane", "groups": [null], "extra": {"scopes": null}}"#,
        r#"{"username": "jane", "extra": {"scopes": [null], "other": ["a"]}}"#,
    ] {
        assert_eq!(
            authenticated(user),
            (Some(true), Some("jane".into())),
            "{user}"
        );
    }
    assert_eq!(
        authenticated(r#"{"username": null, "extra": {"a": null}}"#).1,
        None
    );
    assert_eq!(status("null"), None);
    assert_eq!(
        status(r#"{"authenticated": null}"#).unwrap().authenticated,
        None
    );
    for body in ["null", "[]", "{", r#"{"status": 5}"#] {
        assert!(decode::<TokenReview>(body.as_bytes()).is_err(), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn does_not_repeat_refused_review() {
    for act in [
        Act::Respond(403, r#"{"message":"no rights"}"#),
        Act::Respond(201, "secret, not JSON"),
    ] {
        let (reviewer, _) = Script::new(&[act], &[]).reviewer();
        let error = review(&reviewer).await.unwrap_err();
        assert!(
            matches!(
                error,
                ReviewError::Failed(ReviewFailure::Refused(_) | ReviewFailure::Malformed)
            ) && !error.to_string().contains("secret"),
            "{error}"
        );
        assert!(!reviewer.is_unreachable());
    }
}

#[tokio::test(start_paused = true)]
async fn cancels_review_with_its_request() {
    let script = Script::new(&[Act::Hang], &[]);
    let (reviewer, _) = script.reviewer();
    let mut pending = Box::pin(review(&reviewer));
    while script.open.load(Ordering::SeqCst) == 0 {
        assert!(pending.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    drop(pending);
    while script.open.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    let slot = reviewer.admission.enter(client(1)).now_or_never();
    assert!(slot.is_some(), "the slot is free");
}

#[test]
fn error_response_contains_only_message_of_status() {
    let status = json!({"kind": "Status", "message": "etcd is down"}).to_string();
    assert_eq!(
        ErrorResponse::parse(StatusCode::INTERNAL_SERVER_ERROR, status.as_bytes()).to_string(),
        "the API server responded with 500: etcd is down"
    );
    assert_eq!(
        ErrorResponse::parse(StatusCode::BAD_GATEWAY, b"<html>secret</html>").to_string(),
        "the API server responded with 502"
    );
}
