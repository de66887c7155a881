//! Reviews by the Kubernetes API (TokenReview, SubjectAccessReview): virtual objects whose status
//! is the result; the API server does not store them.

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

pub use admission::{Admission, Rejection, Slot};
pub use cached::{CachedReviews, KeyHash, KeyHasher, ReviewHandler, Verdict};
pub use health::ApiHealth;

use crate::model::nulls::remove_nulls;
use crate::model::{ClientAddress, error_chain};

/// Maximum size of a response. A TokenReview holds the groups of a user, thousands at most.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
/// Pause after a 429 without `Retry-After`.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Maximum length of a message of the API that is cached and logged: an authenticator's message may
/// quote the token.
const MAX_TEXT_BYTES: usize = 1024;
/// Fraction of the timeout (1/n) after which a pending review is also sent on a new connection: the
/// pooled connection may be dead without a TCP reset. The API may also be slow, so the first
/// attempt continues, and the first response wins.
const FIRST_ATTEMPT_SHARE: u32 = 2;

/// Truncates a message of the API to a length that may be cached.
pub fn cut_text(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}

/// Error of a review without a result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not sent: too many reviews are queued.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Sent, but without a usable response.
    #[error(transparent)]
    Failed(#[from] ReviewFailure),
}

/// Reason why the API returned no result for a review.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewFailure {
    /// No connection, or it broke before the response was complete.
    #[error("the connection to the API server failed: {0}")]
    Connection(Arc<str>),
    #[error("the API server did not respond in time")]
    Timeout,
    /// 429 whose `Retry-After` is past the deadline.
    #[error("the API server responded with 429 Too Many Requests")]
    TooManyRequests,
    /// 5xx.
    #[error(transparent)]
    ServerError(ErrorResponse),
    #[error("the bastion is shutting down")]
    ShuttingDown,
    /// The reviews of one impersonation exceeded their common deadline.
    #[error("the reviews of the impersonation took longer than {} s", .0.as_secs())]
    ImpersonationTimeout(Duration),
    /// 4xx: the bastion's service account or configuration is wrong.
    #[error(transparent)]
    Refused(ErrorResponse),
    #[error("the request for the review could not be built: {0}")]
    Request(Arc<str>),
    /// Without the parser's message, which may quote the response and so the token.
    #[error("the response of the API server is not a review")]
    Malformed,
    #[error("the API server returned a review without a status")]
    NoStatus,
    #[error("the task of the review panicked")]
    Panicked,
}

impl ReviewFailure {
    /// Returns the failure of a bastion without permission for reviews.
    #[cfg(test)]
    pub fn denied() -> Self {
        Self::Refused(ErrorResponse::parse(StatusCode::FORBIDDEN, b"{}"))
    }

    /// Returns true if the bastion lacks a permission or valid credentials, so that no retry
    /// succeeds until an operator has corrected that.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Refused(response) if !response.remedy().is_empty())
    }

    /// Returns true if the API was not reached or could not process the review, so that a retry may
    /// succeed and cached results may be used past their expiry.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connection(_)
            | Self::Timeout
            | Self::TooManyRequests
            | Self::ServerError(_)
            | Self::ShuttingDown
            | Self::ImpersonationTimeout(_) => true,
            Self::Refused(_)
            | Self::Request(_)
            | Self::Malformed
            | Self::NoStatus
            | Self::Panicked => false,
        }
    }
}

/// HTTP error response of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    code: StatusCode,
    /// Message of the `Status` in the body; empty without one.
    message: Arc<str>,
}

impl ErrorResponse {
    /// Reads the message of a `Status`. Other bodies are dropped, because they may repeat the
    /// review and so the token.
    fn parse(code: StatusCode, body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Status {
            message: String,
        }
        let message = serde_json::from_slice::<Status>(body)
            .map_or_else(|_| "".into(), |Status { message }| cut_text(message).into());
        Self { code, message }
    }

    /// Returns the remedy for reviews that the API server rejects, to append to the error.
    fn remedy(&self) -> &'static str {
        match self.code {
            StatusCode::FORBIDDEN => {
                "; apply the ClusterRoleBinding kube-bastion:auth-delegator \
                 (deploy/base/rbac.yaml), or bind the ClusterRole system:auth-delegator to the \
                 user of the kubeconfig"
            }
            StatusCode::UNAUTHORIZED => {
                "; the API server rejects the bastion's credentials: check its service account or \
                 kubeconfig"
            }
            _ => "",
        }
    }
}

impl std::error::Error for ErrorResponse {}

impl fmt::Display for ErrorResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.as_u16();
        write!(f, "the API server responded with {code}")?;
        match &*self.message {
            "" => Ok(()),
            message => write!(f, ": {message}"),
        }
    }
}

/// Connections to the API and its health. Shared by the reviewers.
#[derive(Clone)]
pub struct ReviewApi {
    /// Reuses connections. Must not retry on its own: a review has its own deadline.
    pub pooled: kube::Client,
    /// Opens a new connection for each review.
    pub fresh: kube::Client,
    /// Runtime of the reviews, where the clients' connections live.
    pub control: Handle,
    pub health: ApiHealth,
}

/// Omits the clients, which hold the bastion's credentials.
impl Debug for ReviewApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReviewApi")
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

/// Resource type of a review.
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

/// Sends reviews of one kind to the API.
#[derive(Debug)]
pub struct Reviewer<K> {
    api: ReviewApi,
    admission: Admission,
    timeout: Duration,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K: Reviewable> Reviewer<K> {
    /// `timeout` applies to the response, without the time in the queue.
    pub fn new(api: ReviewApi, admission: Admission, timeout: Duration) -> Self {
        Self {
            api,
            admission,
            timeout,
            kind: std::marker::PhantomData,
        }
    }

    /// Returns true if the last review failed to reach the API.
    pub fn is_unreachable(&self) -> bool {
        self.api.health.is_unreachable()
    }

    pub fn control(&self) -> &Handle {
        &self.api.control
    }

    /// Sends a review and returns the response. `client` is the address whose share of the slots it
    /// uses. Dropping the future cancels the review.
    ///
    /// # Errors
    /// [`ReviewError`]; a change to unreachable has been logged.
    pub async fn send(&self, review: &K, client: ClientAddress) -> Result<K, ReviewError> {
        let slot = self.admission.enter(client).await?;
        Ok(self.send_in(review, slot).await?)
    }

    /// Returns a slot for a refresh, or `None` if all are in use.
    pub fn try_enter(&self) -> Option<Slot> {
        self.admission.try_enter()
    }

    /// Sends a review in a slot that is held already.
    ///
    /// # Errors
    /// [`ReviewFailure`]; a change to unreachable has been logged.
    pub async fn send_in(&self, review: &K, slot: Slot) -> Result<K, ReviewFailure> {
        let timeout = self.timeout;
        let (api, body) = (
            self.api.clone(),
            serde_json::to_vec(review).expect("a review is plain data"),
        );
        let task = self.api.control.spawn(async move {
            // Held by the task, not by the caller: the slot is free only when no request of the
            // review is in flight. A cancelled caller returns before its task has ended.
            let _slot = slot;
            exchange(&api, &K::url_path(&(), None), body, timeout).await
        });
        let response = match AbortOnDropHandle::new(task).await {
            Ok(response) => response,
            Err(error) if error.is_panic() => Err(ReviewFailure::Panicked),
            // The runtime ends. This says nothing about the API's health.
            Err(_) => return Err(ReviewFailure::ShuttingDown),
        };
        let result = response.and_then(|body| decode(&body));
        match &result {
            Ok(_) => self.api.health.set_reachable(),
            Err(error) if error.is_unreachable() => {
                self.api
                    .health
                    .set_unreachable(&K::kind(&()), &error.to_string());
            }
            Err(error) => self.api.health.set_failing(&K::kind(&()), error),
        }
        result
    }
}

/// Decodes a response.
fn decode<K: DeserializeOwned>(body: &[u8]) -> Result<K, ReviewFailure> {
    let decoded = serde_json::from_slice(body).or_else(|_| {
        // Go writes an empty list as null, which the types do not permit within a map.
        let mut value = serde_json::from_slice(body)?;
        remove_nulls(&mut value);
        serde_json::from_value(value)
    });
    decoded.map_err(|_: serde_json::Error| ReviewFailure::Malformed)
}

/// Sends a review until it has a response or the timeout expires. Repeats it after each 429 as
/// `Retry-After` requests.
async fn exchange(
    api: &ReviewApi,
    path: &str,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Vec<u8>, ReviewFailure> {
    let deadline = Instant::now() + timeout;
    let hedge_after = timeout / FIRST_ATTEMPT_SHARE;
    let mut result = first_response(api, path, &body, hedge_after, deadline).await;
    loop {
        match result {
            Ok(body) => return Ok(body),
            Err(AttemptError::NoResponse(failure) | AttemptError::Final(failure)) => {
                return Err(failure);
            }
            Err(AttemptError::TooManyRequests { retry_after }) => {
                // Compared as durations: the sum of the clock and a `Retry-After` of 2^64 - 1 would
                // overflow.
                if retry_after >= deadline.saturating_duration_since(Instant::now()) {
                    return Err(ReviewFailure::TooManyRequests);
                }
                tokio::time::sleep(retry_after).await;
                result = attempt(&api.pooled, path, &body, deadline).await;
            }
        }
    }
}

/// Sends a review on a pooled connection, and also on a new one if the pooled one fails or has no
/// response after `hedge_after`. Reviews have no side effects, so sending one twice is safe.
async fn first_response(
    api: &ReviewApi,
    path: &str,
    body: &[u8],
    hedge_after: Duration,
    deadline: Instant,
) -> Result<Vec<u8>, AttemptError> {
    let mut pooled = pin!(attempt(&api.pooled, path, body, deadline));
    let fresh = attempt(&api.fresh, path, body, deadline);
    match tokio::time::timeout(hedge_after, &mut pooled).await {
        Ok(Err(AttemptError::NoResponse(_))) => return fresh.await,
        Ok(result) => return result,
        Err(_) => {}
    }
    // Both attempts run. If one breaks, the other decides; any response ends both.
    let mut fresh = pin!(fresh);
    tokio::select! {
        result = &mut pooled => match result {
            Err(AttemptError::NoResponse(_)) => fresh.await,
            result => result,
        },
        result = &mut fresh => match result {
            Err(AttemptError::NoResponse(_)) => pooled.await,
            result => result,
        },
    }
}

/// Error of one attempt.
enum AttemptError {
    /// No response on this connection; another connection may have one.
    NoResponse(ReviewFailure),
    /// 429.
    TooManyRequests { retry_after: Duration },
    /// Another attempt would end the same way.
    Final(ReviewFailure),
}

async fn attempt(
    client: &kube::Client,
    path: &str,
    body: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, AttemptError> {
    let broken = |error: String| AttemptError::NoResponse(ReviewFailure::Connection(error.into()));
    let exchange = async {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let request = request
            .body(Body::from(body.to_vec()))
            .map_err(|error| ReviewFailure::Request(error.to_string().into()))
            .map_err(AttemptError::Final)?;
        // Not kube's typed calls: they hide `Retry-After`, and log a response that they cannot
        // parse, token included.
        let response = client
            .send(request)
            .await
            .map_err(|error| broken(error_chain(&error)))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES)
            .collect()
            .await
            .map_err(|error| broken(error.to_string()))?
            .to_bytes();
        if parts.status.is_success() {
            return Ok(body.to_vec());
        }
        let error = || ErrorResponse::parse(parts.status, &body);
        Err(match parts.status {
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = parts
                    .headers
                    .get(header::RETRY_AFTER)
                    .and_then(|value| value.to_str().ok()?.parse().ok());
                AttemptError::TooManyRequests {
                    retry_after: seconds.map_or(DEFAULT_RETRY_AFTER, Duration::from_secs),
                }
            }
            status if status.is_server_error() => {
                AttemptError::Final(ReviewFailure::ServerError(error()))
            }
            _ => AttemptError::Final(ReviewFailure::Refused(error())),
        })
    };
    match tokio::time::timeout_at(deadline, exchange).await {
        Ok(result) => result,
        Err(_) => Err(AttemptError::NoResponse(ReviewFailure::Timeout)),
    }
}

#[cfg(test)]
mod tests;
