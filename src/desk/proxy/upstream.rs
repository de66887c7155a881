//! Requests to the API servers, with the credentials of the user.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::task::TaskTracker;

use super::body::Body;
use super::handler::ClientConnection;
use crate::apiservers::{ApiServer, Credential};
use crate::desk::credentials::{Credentials, CredentialsError};
use crate::drain::Drain;
use crate::forward::{
    ApiError, ApiForwarder, ApiRequest, ApiResponse, OutgoingBody, TrailerFilter, Tunnel, Upgrade,
    UpgradeOutcome, UpstreamBody,
};
use crate::http::{
    FORWARDED_FOR, Interim, ReceiveError, Reply, Request, RequestBody, RequestHead,
    remove_hop_by_hop,
};
use crate::model::Status;
use crate::model::status::OutputFormat;
use crate::telemetry::LogLimit;

/// Maximum length in bytes of a body that is read before the request is sent, so that it can be sent
/// again after a 401.
const MAX_KEPT_BODY: u64 = 64 * 1024;
/// `Retry-After` while no API server can be reached.
const RETRY_AFTER_SECONDS: u32 = 1;
/// `User-Agent` of requests whose client sends none.
const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("kube-bastion/", env!("CARGO_PKG_VERSION")));

/// Events about requests that failed.
static FAILED: LogLimit = LogLimit::new(10);

/// Sender of requests to the API servers.
#[derive(Debug)]
pub struct Upstream {
    pub forwarder: ApiForwarder,
    pub credentials: Arc<Credentials>,
    /// `Authorization` of health checks: that of the last request, so that they run no plugin.
    pub probe_authorization: Arc<ArcSwapOption<HeaderValue>>,
    /// Maximum time until a response begins, `--request-timeout`. `None` for no limit.
    pub timeout: Option<Duration>,
    /// Generation of the credentials at the last request.
    pub generation: Cell<u32>,
    /// Tasks of tunnels.
    pub tasks: TaskTracker,
    pub drain: Drain,
}

/// Reply to a request, and the server that it is from. `None` if it is the proxy's own.
#[derive(Debug)]
pub(super) struct Sent {
    pub reply: Reply<Body>,
    pub server: Option<Arc<ApiServer>>,
}

/// Response of an API server to a request, which may be an upgrade.
type Answer = ApiResponse<UpgradeOutcome<Response<UpstreamBody>>>;

/// Failure of a request.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("cannot receive the request body: {0}")]
    Body(#[from] ReceiveError),
    #[error("the API server did not respond within {0:?} (--request-timeout)")]
    Timeout(Duration),
}

/// Body of a request, as far as it can be sent again.
enum Content {
    None,
    Kept(Bytes),
    Streamed(RequestBody),
}

impl Upstream {
    /// Sends a request and returns the response, or that for the failure.
    pub(super) async fn send(
        &self,
        request: &mut Request,
        interim: Option<Interim>,
        client: &ClientConnection,
    ) -> Sent {
        let method = request.head.method.clone();
        let target = request.head.target.clone();
        match self.try_send(request, interim, client).await {
            Ok(sent) => sent,
            Err(error) => {
                if FAILED.permits() {
                    tracing::error!(%method, path = target.path(), %error, "request failed");
                }
                failure(&error).into()
            }
        }
    }

    async fn try_send(
        &self,
        request: &mut Request,
        interim: Option<Interim>,
        client: &ClientConnection,
    ) -> Result<Sent, SendError> {
        let Request { head, body, .. } = request;
        let upgrade = Upgrade::from_request(head, None);
        let has_body = !matches!(body, RequestBody::Empty);
        prepare_headers(head, client.address, has_body);
        self.impersonate(&mut head.headers);
        // The client's own credentials win, as with kubectl.
        let own = head.headers.get(header::AUTHORIZATION);
        let authorization = if own.is_some_and(|own| !own.is_empty()) {
            None
        } else {
            self.authorization().await?
        };
        let body = std::mem::replace(body, RequestBody::Empty);
        let content = Content::read(body, head, authorization.is_some()).await?;
        let (content, again) = content.split();
        set_authorization(&mut head.headers, authorization.as_ref());
        let exchange = Exchange {
            upstream: self,
            upgrade: upgrade.as_ref(),
            interim: interim.as_ref(),
        };
        let kept = again.as_ref().map(|_| head.clone());
        let mut answer = exchange.send(head, content).await?;
        if let Some(rejected) = authorization
            && is_unauthorized(&answer.response)
            && let (Some(again), Some(mut head)) = (again, kept)
            && let Some(newer) = self.credentials.renew(&rejected).await?
        {
            set_authorization(&mut head.headers, Some(&newer));
            answer = exchange.send(&mut head, again).await?;
        }
        Ok(self.reply(answer, &client.permit))
    }

    /// Returns the current `Authorization` of the user.
    async fn authorization(&self) -> Result<Option<HeaderValue>, CredentialsError> {
        let authorization = self.credentials.authorization().await?;
        if self.probe_authorization.load().as_deref() != authorization.as_ref() {
            self.probe_authorization
                .store(authorization.clone().map(Arc::new));
        }
        Ok(authorization)
    }

    /// Returns the credential of connections, and retires those with an earlier certificate.
    fn credential(&self) -> Credential {
        let generation = self.credentials.generation();
        if self.generation.replace(generation) != generation {
            self.forwarder.retire_other_generations(generation);
        }
        Credential::Own { generation }
    }

    /// Adds the impersonation headers of the user, unless the client impersonates a user itself.
    fn impersonate(&self, headers: &mut HeaderMap) {
        let own = self.credentials.impersonation();
        let is_set = |name: &str| headers.get(name).is_some_and(|value| !value.is_empty());
        if own.is_empty() || is_set("impersonate-user") {
            return;
        }
        let others: Vec<_> = headers
            .keys()
            .filter(|name| name.as_str().starts_with("impersonate-"))
            .cloned()
            .collect();
        for name in others {
            headers.remove(name);
        }
        headers.extend(
            own.iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
    }

    /// Converts the outcome for the client, and starts the tunnel of an upgrade.
    fn reply(&self, answer: Answer, permit: &Rc<OwnedSemaphorePermit>) -> Sent {
        let ApiResponse { response, server } = answer;
        let server = Some(server);
        let (mut response, closes) = match response {
            UpgradeOutcome::Switched {
                response,
                upstream,
                guard,
            } => {
                let (sender, client) = oneshot::channel();
                let tunnel = Tunnel {
                    client,
                    upstream,
                    guard,
                };
                self.tunnel(tunnel, Rc::clone(permit));
                let reply = Reply {
                    response: response.map(|()| Body::empty()),
                    upgrade: Some(sender),
                };
                return Sent { reply, server };
            }
            UpgradeOutcome::Ignored(response) => (response, false),
            UpgradeOutcome::Refused(response) => (response, true),
        };
        // The response is framed for the client's connection, whatever version the server used.
        *response.version_mut() = Version::HTTP_11;
        remove_hop_by_hop(response.headers_mut(), |_| false);
        if closes {
            // The client may already have sent bytes of the protocol that it wanted.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        Sent {
            reply: Reply {
                response: response.map(|body| Body::Upstream(Box::new(body))),
                upgrade: None,
            },
            server,
        }
    }

    /// Copies bytes between both sides of a tunnel until either closes, or the end of the drain.
    fn tunnel(&self, tunnel: Tunnel, permit: Rc<OwnedSemaphorePermit>) {
        let drain = self.drain.clone();
        self.tasks.spawn_local(async move {
            let _permit = permit;
            tokio::select! {
                ended = async { tunnel.run(&Cell::new(0), &Cell::new(0)).await } => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "tunnel failed");
                    }
                }
                () = drain.begun() => {}
            }
        });
    }
}

/// Attempts to send one request.
struct Exchange<'a> {
    upstream: &'a Upstream,
    upgrade: Option<&'a Upgrade>,
    interim: Option<&'a Interim>,
}

impl Exchange<'_> {
    async fn send(&self, head: &mut RequestHead, content: Content) -> Result<Answer, SendError> {
        let Upstream {
            forwarder, timeout, ..
        } = self.upstream;
        let request = ApiRequest {
            head,
            body: content.outgoing(),
            interim: self.interim.cloned(),
            credential: self.upstream.credential(),
        };
        let sending = async {
            if let Some(upgrade) = self.upgrade {
                return forwarder.upgrade(request, upgrade).await;
            }
            let ApiResponse { response, server } = forwarder.send(request).await?;
            let response = UpgradeOutcome::Ignored(response);
            Ok(ApiResponse { response, server })
        };
        match *timeout {
            None => Ok(sending.await?),
            Some(timeout) => tokio::time::timeout(timeout, sending)
                .await
                .map_err(|_| SendError::Timeout(timeout))?
                .map_err(SendError::Api),
        }
    }
}

impl Content {
    /// Reads a body that is short and of known length, if the request may be sent again.
    async fn read(
        body: RequestBody,
        head: &RequestHead,
        may_repeat: bool,
    ) -> Result<Self, ReceiveError> {
        if matches!(body, RequestBody::Empty) {
            return Ok(Self::None);
        }
        let is_short = body
            .size_hint()
            .exact()
            .is_some_and(|length| length <= MAX_KEPT_BODY);
        // A client that waits for 100 sends its body only once the server has accepted the request.
        if !may_repeat || !is_short || head.headers.contains_key(header::EXPECT) {
            return Ok(Self::Streamed(body));
        }
        Ok(Self::Kept(body.collect().await?.to_bytes()))
    }

    /// Returns the body for the first attempt, and for a second one if it can be sent again.
    fn split(self) -> (Self, Option<Self>) {
        match self {
            Self::None => (Self::None, Some(Self::None)),
            Self::Kept(bytes) => (Self::Kept(bytes.clone()), Some(Self::Kept(bytes))),
            Self::Streamed(body) => (Self::Streamed(body), None),
        }
    }

    fn outgoing(self) -> Option<OutgoingBody> {
        let body = match self {
            Self::None => return None,
            Self::Kept(bytes) => RequestBody::Full(Box::new(bytes)),
            Self::Streamed(body) => body,
        };
        Some(OutgoingBody {
            body,
            received: Rc::default(),
            trailers: TrailerFilter(Rc::new(|_| {})),
        })
    }
}

fn is_unauthorized(response: &UpgradeOutcome<Response<UpstreamBody>>) -> bool {
    match response {
        UpgradeOutcome::Ignored(response) | UpgradeOutcome::Refused(response) => {
            response.status() == StatusCode::UNAUTHORIZED
        }
        UpgradeOutcome::Switched { .. } => false,
    }
}

/// Changes the headers of a request as kubectl's proxy does: removes hop-by-hop headers, appends the
/// address of the client to `X-Forwarded-For`, and adds a `User-Agent`.
fn prepare_headers(head: &mut RequestHead, address: Option<IpAddr>, has_body: bool) {
    let headers = &mut head.headers;
    remove_hop_by_hop(headers, |_| false);
    if let Some(address) = address {
        let mut value = Vec::new();
        for earlier in headers.get_all(FORWARDED_FOR) {
            value.extend_from_slice(earlier.as_bytes());
            value.extend_from_slice(b", ");
        }
        value.extend_from_slice(address.to_string().as_bytes());
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.insert(FORWARDED_FOR, value);
        }
    }
    if headers
        .get(header::USER_AGENT)
        .is_none_or(HeaderValue::is_empty)
    {
        headers.insert(header::USER_AGENT, USER_AGENT);
    }
    if !has_body && matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
        // As Go's client sends it (RFC 9110 section 8.6).
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
}

fn set_authorization(headers: &mut HeaderMap, authorization: Option<&HeaderValue>) {
    if let Some(authorization) = authorization {
        headers.insert(header::AUTHORIZATION, authorization.clone());
    }
}

/// Returns the response for a failure, a `Status` of the API.
fn failure(error: &SendError) -> Response<Body> {
    let message = error.to_string();
    let status = match error {
        SendError::Credentials(_) => Status::internal(message),
        SendError::Api(ApiError::Unreachable(_)) => {
            Status::service_unavailable(message).with_retry_after(RETRY_AFTER_SECONDS)
        }
        SendError::Api(ApiError::Failed { .. } | ApiError::Interrupted { .. }) => {
            Status::service_unavailable(message)
        }
        SendError::Api(ApiError::Client(_)) => Status::bad_request(message),
        SendError::Api(ApiError::InvalidRequestUri(_) | ApiError::Response(_)) => {
            Status::internal(message)
        }
        SendError::Body(_) => Status::bad_request(message),
        SendError::Timeout(_) => Status {
            code: StatusCode::GATEWAY_TIMEOUT,
            reason: None,
            message,
            details: None,
        },
    };
    let mut response = Response::new(Body::full(status.render(OutputFormat::Json)));
    *response.status_mut() = status.code;
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    if let Some(seconds) = status.retry_after() {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
