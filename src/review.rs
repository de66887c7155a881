//! Reviews by the API (TokenReview, SubjectAccessReview): objects that are created to be answered,
//! never stored.

mod admission;
mod cached;
mod health;

use std::fmt::{self, Debug};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::Resource;
use kube::client::Body;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

pub use admission::{Admission, Place, Rejection};
pub use cached::{CachedReviews, Judge, Verdict};
pub use health::ApiHealth;

use crate::model::{ClientAddress, error_chain};

/// The largest answer that is read. A TokenReview holds the groups of a user, thousands at most.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// Pause before a review that was answered with 429 is sent again, where the API does not say how
/// long.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest text of an answer that is kept and passed on: what an authenticator says of a token
/// may quote the token.
const MAX_TEXT_BYTES: usize = 1024;
/// The fault of an answer that says nothing.
const NO_STATUS: &str = "the API answered without a status";
/// The part of the timeout after which an unanswered review is also sent on a new connection: the
/// pooled one may be dead without a word. The API may as well be slow, so the first attempt goes
/// on, and the first answer counts.
const FIRST_ATTEMPT_SHARE: u32 = 2;

/// A text of the API, cut to a length that may be cached.
pub fn cut_text(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}

/// A review without a usable answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReviewError {
    /// The bastion did not send it: too many wait.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// No connection, no answer in time, or an answer that says so (429, 5xx): asking again may
    /// help.
    #[error("{0}")]
    Unreachable(Arc<str>),
    /// The API refused the review itself, or its answer cannot be read: the bastion's account or
    /// setup is at fault.
    #[error("{0}")]
    Refused(Arc<str>),
}

/// The connections on which the API is asked, and what is known of it. Shared by the reviewers.
#[derive(Clone)]
pub struct ReviewApi {
    /// Keeps connections for reuse. Must not retry by itself: a review has a deadline of its own.
    pub pooled: kube::Client,
    /// Makes a new connection for each review.
    pub fresh: kube::Client,
    /// Reviews run on the control runtime, where the clients' connections live.
    pub control: Handle,
    pub health: ApiHealth,
}

/// Without the clients, which hold the bastion's credentials.
impl Debug for ReviewApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReviewApi")
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

/// A kind of review.
pub trait Reviewable:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
}

impl<K> Reviewable for K where
    K: Resource<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static
{
}

/// Asks the API for reviews of one kind.
#[derive(Debug)]
pub struct Reviewer<K> {
    api: ReviewApi,
    admission: Admission,
    timeout: Duration,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K: Reviewable> Reviewer<K> {
    /// `timeout` is for the answer, without the wait for a place.
    pub fn new(api: ReviewApi, admission: Admission, timeout: Duration) -> Self {
        Self {
            api,
            admission,
            timeout,
            kind: std::marker::PhantomData,
        }
    }

    /// Whether the API is known not to answer.
    pub fn is_unreachable(&self) -> bool {
        self.api.health.is_unreachable()
    }

    pub fn control(&self) -> &Handle {
        &self.api.control
    }

    /// The API's answer. `client` is the address whose share of the places it takes. Dropping the
    /// future cancels the review.
    ///
    /// # Errors
    /// [`ReviewError`]; an API that became unreachable has been logged.
    pub async fn ask(&self, review: &K, client: ClientAddress) -> Result<K, ReviewError> {
        let place = self.admission.enter(client).await?;
        self.ask_in(review, place).await
    }

    /// A place for a refresh. None where all are taken.
    pub fn try_enter(&self) -> Option<Place> {
        self.admission.try_enter()
    }

    /// Asks with a place that is held already.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_in(&self, review: &K, place: Place) -> Result<K, ReviewError> {
        let timeout = self.timeout;
        let (api, body) = (
            self.api.clone(),
            serde_json::to_vec(review).expect("a review is plain data"),
        );
        let asked = self.api.control.spawn(async move {
            // The place is free again when nothing of the review is in flight any more, and not
            // before.
            let _place = place;
            ask(&api, &K::url_path(&(), None), body, timeout).await
        });
        let answer = match AbortOnDropHandle::new(asked).await {
            Ok(answer) => answer,
            Err(ended) if ended.is_panic() => {
                Err(ReviewError::Refused("the review panicked".into()))
            }
            Err(_) => {
                return Err(ReviewError::Unreachable(
                    "the bastion is shutting down".into(),
                ));
            }
        };
        match answer.and_then(|body| read(&body)) {
            Ok(review) => {
                self.api.health.answered();
                Ok(review)
            }
            Err(error) => {
                match &error {
                    ReviewError::Unreachable(fault) => self.api.health.failed(&K::kind(&()), fault),
                    ReviewError::Refused(fault) => {
                        tracing::error!(%fault, "the API refuses a {}", K::kind(&()));
                    }
                    ReviewError::Rejected(_) => {}
                }
                Err(error)
            }
        }
    }
}

/// Asks until there is an answer or the time is over, and again after each 429 when the API says.
async fn ask(
    api: &ReviewApi,
    path: &str,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Vec<u8>, ReviewError> {
    let deadline = Instant::now() + timeout;
    let mut answer = first_answer(api, path, &body, timeout / FIRST_ATTEMPT_SHARE, deadline).await;
    loop {
        match answer {
            Ok(body) => return Ok(body),
            Err(Attempt::NoAnswer(fault) | Attempt::Unavailable(fault)) => {
                return Err(ReviewError::Unreachable(fault.into()));
            }
            Err(Attempt::Refused(fault)) => return Err(ReviewError::Refused(fault.into())),
            Err(Attempt::TooManyRequests { retry_after }) => {
                if retry_after >= deadline.saturating_duration_since(Instant::now()) {
                    return Err(ReviewError::Unreachable(
                        "the API answers 429 Too Many Requests".into(),
                    ));
                }
                tokio::time::sleep(retry_after).await;
                answer = attempt(&api.pooled, path, &body, deadline).await;
            }
        }
    }
}

/// Asks on a pooled connection, and on a new one as well where that breaks or has not answered
/// after `patience`.
async fn first_answer(
    api: &ReviewApi,
    path: &str,
    body: &[u8],
    patience: Duration,
    deadline: Instant,
) -> Result<Vec<u8>, Attempt> {
    let mut pooled = pin!(attempt(&api.pooled, path, body, deadline));
    let fresh = attempt(&api.fresh, path, body, deadline);
    match tokio::time::timeout(patience, &mut pooled).await {
        Ok(Err(Attempt::NoAnswer(_))) => return fresh.await,
        Ok(answer) => return answer,
        Err(_) => {}
    }
    let mut fresh = pin!(fresh);
    tokio::select! {
        answer = &mut pooled => match answer {
            Err(Attempt::NoAnswer(_)) => fresh.await,
            answer => answer,
        },
        answer = &mut fresh => match answer {
            Err(Attempt::NoAnswer(_)) => pooled.await,
            answer => answer,
        },
    }
}

/// The outcome of one attempt without a usable answer.
enum Attempt {
    /// No connection, or no answer on it in time.
    NoAnswer(String),
    /// The API answered that it cannot (5xx).
    Unavailable(String),
    TooManyRequests {
        retry_after: Duration,
    },
    /// The API will not, however often it is asked.
    Refused(String),
}

async fn attempt(
    client: &kube::Client,
    path: &str,
    body: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, Attempt> {
    let sent = async {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let request = request
            .body(Body::from(body.to_vec()))
            .map_err(|error| Attempt::Refused(error.to_string()))?;
        // Not by kube's typed calls: they hide Retry-After, and log an answer that they cannot
        // read, token included.
        let response = client
            .send(request)
            .await
            .map_err(|error| Attempt::NoAnswer(error_chain(&error)))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body
            .map_err(|error| Attempt::NoAnswer(error.to_string()))?
            .to_bytes()
            .to_vec();
        if parts.status.is_success() {
            return Ok(body);
        }
        let fault = fault(parts.status, &body);
        Err(match parts.status {
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = parts
                    .headers
                    .get(header::RETRY_AFTER)
                    .and_then(|value| value.to_str().ok()?.parse().ok());
                Attempt::TooManyRequests {
                    retry_after: seconds.map_or(DEFAULT_RETRY_AFTER, Duration::from_secs),
                }
            }
            status if status.is_server_error() => Attempt::Unavailable(fault),
            _ => Attempt::Refused(fault),
        })
    };
    match tokio::time::timeout_at(deadline, sent).await {
        Ok(answer) => answer,
        Err(_) => Err(Attempt::NoAnswer("the API did not answer in time".into())),
    }
}

/// The message of a `Status`, else the code alone: what else stands in the body may repeat the
/// review.
fn fault(code: StatusCode, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Status {
        message: String,
    }
    match serde_json::from_slice::<Status>(body) {
        Ok(Status { message }) if !message.is_empty() => {
            format!("the API answered {}: {message}", code.as_u16())
        }
        _ => format!("the API answered {}", code.as_u16()),
    }
}

fn read<K: DeserializeOwned>(body: &[u8]) -> Result<K, ReviewError> {
    // Without the parser's words, which may quote the answer.
    serde_json::from_slice(body)
        .map_err(|_| ReviewError::Refused("the API's answer is not a review".into()))
}

#[cfg(test)]
mod tests;
