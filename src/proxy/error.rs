//! Reasons why requests are not proxied.

use super::connect::ConnectError;
use super::pass_through::PassThroughError;
use crate::authenticate::{AuthenticationError, CredentialError};
use crate::authorize::AuthorizationError;
use crate::forward::{ApiError, ForwardError};
use crate::http::MAX_HEADERS;
use crate::http::h1::RequestError;
use crate::model::target::TargetError;
use crate::ready::Obstacle;
use crate::resolve::ResolveError;
use crate::rewrite::InvalidUrl;

/// Reason why a request was not proxied. `Authenticate`, `Target`, `Authorize`, `Resolve` and
/// `Forward` hold the error of the stage with that name, and `Location` is a redirect that cannot
/// be rewritten. The others are checks of the proxy itself before and between the stages.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    /// The initial list is incomplete, so a missing object may exist: 503 rather than 404.
    #[error("{}", not_ready(*.0))]
    NotReady(Option<Obstacle>),
    /// Checked before all other stages, because later ones insert headers without checking for
    /// room.
    #[error("the request has more than {} header fields; send fewer", MAX_HEADERS)]
    TooManyHeaders,
    /// The request is not valid HTTP, or exceeds a limit of the codec.
    #[error(transparent)]
    Malformed(#[from] RequestError),
    #[error(transparent)]
    Authenticate(#[from] AuthenticationError),
    /// The credentials of a client that uses the bastion as its proxy.
    #[error("unauthenticated: {0}")]
    ProxyUnauthenticated(CredentialError),
    /// The bastion has no certificate for the host of the URL.
    #[error(
        "https:// URLs of services and pods are not forwarded; request http:// and the port of the \
         service"
    )]
    HttpsUrl,
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Authorize(#[from] AuthorizationError),
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("error trying to parse Location header: {0}")]
    Location(#[from] InvalidUrl),
    /// The request is for an API server and is not passed on.
    #[error(transparent)]
    PassThrough(#[from] PassThroughError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    ApiServer(#[from] ApiError),
}

/// Returns the message for requests that arrive before the cluster state is loaded.
fn not_ready(obstacle: Option<Obstacle>) -> &'static str {
    match obstacle {
        None => "the bastion is starting and has not loaded the cluster state yet; retry later",
        Some(Obstacle::Unreachable) => {
            "the bastion cannot reach the API server and has not loaded the cluster state yet; \
             retry later"
        }
        Some(Obstacle::Denied) => {
            "the API server denies the bastion access to the cluster state; its operator must \
             grant it (its log and /readyz have the reason)"
        }
    }
}
