//! Requests for the API servers: all paths that are not those of a target of the bastion. The API
//! server authenticates and authorizes them.

mod identity;
mod proven;
mod watch;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use tokio::sync::oneshot;

use super::tunnel::Carrier;
use super::{AUDIT_ID, Body, Proxy, ProxyError, Reply};
use crate::apiservers::{ApiServers, Credential, is_long, is_watch};
use crate::authenticate::{Authenticator, DelegatedCaller, Peer};
use crate::config::CertificateCallers;
use crate::forward::{
    ApiForwarder, ApiRequest, ApiResponse, Tunnel, Upgrade, UpgradeOutcome, UpstreamBody,
};
use crate::http::{FORWARDED_FOR, Interim, MAX_HEADERS, Request, RequestBody, remove_hop_by_hop};
use crate::model::Identity;
use crate::telemetry::Record;
use crate::trust::FrontProxy;
pub use identity::IdentityHeaderError;
pub use proven::{ProvenTokens, UnprovenLimit, UnprovenPermit, UnprovenRequests};
pub use watch::Watch;

const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Pass-through to the API servers, shared by all workers.
#[derive(Debug)]
pub struct PassThrough {
    pub servers: ApiServers,
    /// Accepts requests without credentials.
    pub anonymous: bool,
    pub certificates: CertificateCallers,
    /// Names of the headers that a front proxy sends.
    pub front_proxy: FrontProxy,
    /// `Authorization` of the bastion itself, which impersonates callers.
    pub own_authorization: Arc<ArcSwapOption<HeaderValue>>,
    pub proven: ProvenTokens,
    pub unproven: UnprovenRequests,
    /// Time over which watches end when the process shuts down.
    pub drain_timeout: Duration,
}

/// Request that is refused before it reaches an API server.
#[derive(Debug, thiserror::Error)]
pub enum PassThroughError {
    /// The caller has a client certificate, and no way to pass its identity on is configured.
    #[error(
        "client certificates are not passed on to the API servers \
         (apiServers.clientCertificates is \"reject\"); use a bearer token"
    )]
    Certificate,
    #[error("requests without credentials are not passed on (apiServers.anonymous is false)")]
    Anonymous,
    #[error(transparent)]
    Unproven(#[from] UnprovenLimit),
    #[error(transparent)]
    Identity(#[from] IdentityHeaderError),
    /// The bastion has no token to impersonate with.
    #[error(
        "the bastion cannot impersonate the caller: its own account has no token; its operator must \
         run it with a service account, or set apiServers.clientCertificates to \"frontProxy\""
    )]
    NoToken,
}

/// Credentials of a request on their way to an API server.
struct Presented {
    credential: Credential,
    /// Hash of a token that is not known to be valid, or of one that is.
    token: Option<proven::TokenHash>,
    permit: Option<Box<UnprovenPermit>>,
}

impl Proxy {
    /// Sends a request to an API server, and returns its response unmodified.
    pub(super) async fn pass_through(
        &self,
        pass_through: &PassThrough,
        request: &mut Request,
        peer: &Peer,
        interim: Option<Interim>,
        record: &mut Record,
    ) -> Result<Reply, ProxyError> {
        record.is_for_api_server = true;
        let Request {
            head,
            body,
            protocol,
        } = request;
        let upgrade = Upgrade::from_request(head, protocol.as_ref());
        if head.method == Method::CONNECT && upgrade.is_none() {
            return Err(ProxyError::MethodNotAllowed);
        }
        let websocket = upgrade.as_ref().is_some_and(Upgrade::is_websocket);
        let (path, query) = (head.target.path(), head.target.query());
        let is_watch = is_watch(&head.method, path, query);
        let is_long = is_long(&head.method, path, query);
        // Before the credentials of the caller are read and those of the bastion are set: `Connection`
        // of a client must remove neither.
        remove_hop_by_hop(&mut head.headers, |_| false);
        let authenticator = &self.stages.authenticator;
        let caller = authenticator.delegate(&mut head.headers, peer, websocket)?;
        let presented = self
            .present(pass_through, caller, &mut head.headers, is_long, record)
            .await?;

        if let Some(authority) = head.target.authority()
            && let Ok(host) = HeaderValue::from_str(authority)
        {
            head.headers.insert(header::HOST, host);
            head.target = head.target.with_path(head.target.path());
        }
        // The addresses that API servers audit.
        head.headers.remove(REAL_IP);
        let address = HeaderValue::try_from(peer.client.to_string());
        let address = address.expect("an IP address is a header value");
        head.headers.insert(FORWARDED_FOR, address);
        head.headers
            .entry(header::HOST)
            .or_insert(HeaderValue::from_static("kubernetes.default.svc"));
        // The same id in the audit log of the API server.
        head.headers.insert(AUDIT_ID, record.audit_id.clone());

        let body = std::mem::replace(body, RequestBody::Empty);
        let body = self.outgoing_body(body, record);
        let request = ApiRequest {
            head,
            body,
            credential: presented.credential,
            interim,
        };
        let forwarder = ApiForwarder {
            servers: pass_through.servers.clone(),
            pool: Rc::clone(&self.forwarder.pool),
        };
        let Some(upgrade) = upgrade else {
            let ApiResponse { response, server } = forwarder.send(request).await?;
            record.api_server = Some(Arc::clone(&server.name));
            let presented = pass_through.learn(presented, &record.method, response.status());
            let response = sanitize(response)?;
            return Ok(Reply::Response(
                if is_watch && response.status() == StatusCode::OK {
                    let timeout = pass_through.drain_timeout;
                    let is_lines = watch::has_lines(response.headers());
                    response
                        .map(|body| Watch::new(body, is_lines, &self.drain, timeout))
                        .map(Body::watch)
                } else {
                    response.map(Body::upstream)
                }
                .map(|body| body.holding(presented.permit)),
            ));
        };
        let ApiResponse { response, server } = forwarder.upgrade(request, &upgrade).await?;
        record.api_server = Some(Arc::clone(&server.name));
        match response {
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
                // The API server ends the tunnel of a caller who has lost access, or not.
                let carrier = Carrier::Streams(tunnel);
                Ok(Reply::Upgrade(response, carrier, sender, None))
            }
            UpgradeOutcome::Ignored(response) | UpgradeOutcome::Refused(response) => {
                let mut response = sanitize(response)?;
                // The client may have sent bytes of the protocol that it wanted behind the request.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
                let response = response.map(Body::upstream);
                Ok(Reply::Response(
                    response.map(|body| body.holding(presented.permit)),
                ))
            }
        }
    }

    /// Prepares the credentials of a request for the API server.
    async fn present(
        &self,
        pass_through: &PassThrough,
        caller: DelegatedCaller,
        headers: &mut HeaderMap,
        is_long: bool,
        record: &mut Record,
    ) -> Result<Presented, ProxyError> {
        let proven = |credential| Presented {
            credential,
            token: None,
            permit: None,
        };
        let token = match caller {
            DelegatedCaller::Identified(identity) => {
                record.identity = Some(Arc::clone(&identity));
                let credential = match pass_through.certificates {
                    CertificateCallers::Reject => Err(PassThroughError::Certificate.into()),
                    CertificateCallers::FrontProxy => {
                        let names = pass_through.front_proxy.config();
                        identity::name_caller(&names, &identity, headers)
                            .map_err(PassThroughError::from)?;
                        Ok(Credential::FrontProxy)
                    }
                    CertificateCallers::Impersonation => {
                        let identity = self.final_identity(identity, headers, record).await?;
                        let own = pass_through.own_authorization.load();
                        let own = own.as_ref().ok_or(PassThroughError::NoToken)?;
                        headers.insert(header::AUTHORIZATION, HeaderValue::clone(own));
                        identity::impersonate(&identity, headers)
                            .map_err(PassThroughError::from)?;
                        Ok(Credential::Proven)
                    }
                };
                return credential.map(proven);
            }
            DelegatedCaller::Anonymous if !pass_through.anonymous => {
                return Err(PassThroughError::Anonymous.into());
            }
            DelegatedCaller::Anonymous => None,
            DelegatedCaller::Token => headers
                .get(header::AUTHORIZATION)
                .map(|authorization| pass_through.proven.hash(authorization)),
        };
        if let Some(token) = token
            && pass_through.proven.contains(token)
        {
            return Ok(Presented {
                credential: Credential::Proven,
                token: Some(token),
                permit: None,
            });
        }
        let permit = pass_through.unproven.enter(record.client.into());
        Ok(Presented {
            credential: if is_long {
                Credential::UnprovenWatch
            } else {
                Credential::Unproven
            },
            token,
            permit: Some(Box::new(permit.map_err(PassThroughError::from)?)),
        })
    }

    /// Returns the identity that a caller acts as, after a review of its right to impersonate.
    async fn final_identity(
        &self,
        identity: Arc<Identity>,
        headers: &mut HeaderMap,
        record: &mut Record,
    ) -> Result<Arc<Identity>, ProxyError> {
        let Some(impersonation) = Authenticator::take_impersonation(headers)? else {
            return Ok(identity);
        };
        let authorizer = &self.stages.authorizer;
        let reviewed = authorizer.impersonate(&identity, *impersonation, record.client.into());
        let identity = Box::pin(reviewed).await?;
        record.impersonated_user = Some(Arc::clone(&identity));
        Ok(identity)
    }
}

impl PassThrough {
    /// Remembers from a response that a token is valid, or is no longer. A permit is released if it
    /// is.
    fn learn(&self, presented: Presented, method: &Method, status: StatusCode) -> Presented {
        let Some(token) = presented.token else {
            return presented;
        };
        match (presented.credential, status) {
            // An API server answers preflight requests before it authenticates.
            _ if *method == Method::OPTIONS => {}
            (Credential::Proven, StatusCode::UNAUTHORIZED) => self.proven.remove(token),
            (Credential::Proven, _) => {}
            // Only after authentication: other responses may be those of an overloaded server.
            (_, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => self.proven.insert(token),
            (_, status) if status.is_success() => self.proven.insert(token),
            _ => {}
        }
        let is_proven = self.proven.contains(token);
        Presented {
            // Whatever is left of the response no longer counts as one with an unknown token.
            permit: presented.permit.filter(|_| !is_proven),
            ..presented
        }
    }
}

/// Prepares a response, which is framed for the client's connection.
fn sanitize(
    mut response: Response<UpstreamBody>,
) -> Result<Response<UpstreamBody>, crate::forward::ForwardError> {
    *response.version_mut() = Version::HTTP_11;
    remove_hop_by_hop(response.headers_mut(), |_| false);
    if response.headers().len() > MAX_HEADERS {
        return Err(crate::forward::ForwardError::TooManyHeaders);
    }
    Ok(response)
}
