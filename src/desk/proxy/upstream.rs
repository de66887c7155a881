//! Requests to the API servers, with the credentials of the user.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::task::TaskTracker;

use super::body::Body;
use super::handler::ClientConnection;
use crate::apiservers::ApiServer;
use crate::desk::client::{Answer, Client, Login, Outgoing, SendError, USER_AGENT};
use crate::drain::Drain;
use crate::forward::{ApiError, ApiResponse, Tunnel, Upgrade, UpgradeOutcome};
use crate::http::{
    FORWARDED_FOR, Interim, Reply, Request, RequestBody, RequestHead, remove_hop_by_hop,
};
use crate::model::Status;
use crate::model::status::OutputFormat;
use crate::telemetry::LogLimit;

/// `Retry-After` while no API server can be reached.
const RETRY_AFTER_SECONDS: u32 = 1;
/// Events about requests that failed.
static FAILED: LogLimit = LogLimit::new(10);

/// Sender of requests to the API servers.
#[derive(Debug)]
pub struct Upstream {
    pub client: Client,
    /// Maximum time until a response begins, `--request-timeout`. `None` for no limit.
    pub timeout: Option<Duration>,
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
        let has_own = own.is_some_and(|own| !own.is_empty());
        let answer = self.client.send(Outgoing {
            head,
            body: std::mem::replace(body, RequestBody::Empty),
            upgrade: upgrade.as_ref(),
            interim: interim.as_ref(),
            login: (!has_own).then_some(Login::Server),
            timeout: self.timeout,
        });
        Ok(self.reply(answer.await?, &client.permit))
    }

    /// Adds the impersonation headers of the user, unless the client impersonates a user itself.
    fn impersonate(&self, headers: &mut HeaderMap) {
        let is_set = |name: &str| headers.get(name).is_some_and(|value| !value.is_empty());
        if !self.client.credentials.impersonation().is_empty() && !is_set("impersonate-user") {
            self.client.credentials.impersonate(headers);
        }
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
                response: response.map(Body::upstream),
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
