//! An opened target: the way to it, and what its requests need on that way.

use std::cell::RefCell;
use std::rc::Rc;

use http::{HeaderValue, Response, StatusCode, Version, header};
use http_body_util::BodyExt;

use super::headers::{is_below, set, strip_prefix};
use super::lookup::Found;
use super::portforward::PodClient;
use super::ready::ReadyPods;
use super::reference::Kind;
use crate::apiservers::RequestGuard;
use crate::desk::api::{Api, StatusMessage};
use crate::desk::client::{Login, Outgoing, SendError};
use crate::desk::printable;
use crate::desk::proxy::Body;
use crate::desk::targets::DialError;
use crate::forward::{
    ApiError, ConnectionError, Upgrade, UpgradeOutcome, UpstreamBody, UpstreamError,
};
use crate::http::{
    Interim, KUBE_BASTION_HOST, RequestBody, RequestHead, UpgradedConnection, remove_hop_by_hop,
};
use crate::model::Scheme;

/// Maximum size of a response that may be a `Status`, in bytes.
const MAX_STATUS: u64 = 64 * 1024;

/// Way to the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// Through a bastion, as its HTTP proxy
    Bastion,
    /// Through port-forwarding of the API server
    PortForward,
    /// Through the /proxy/ subresource of the API server
    Proxy,
}

/// Way to one target.
#[derive(Debug)]
pub enum Route {
    /// Requests in absolute form to a bastion. Pods of a workload have different hosts.
    Bastion { host: Host },
    /// Requests in origin form on connections to the pods.
    PortForward { client: PodClient },
    /// Requests below a path of the API server.
    Subresource { host: Host },
}

/// Name of a service, a node, or the pod of a workload that is in use.
#[derive(Debug)]
pub enum Host {
    Fixed(String),
    Pod(ReadyPods),
}

/// Opened target.
#[derive(Debug)]
pub struct Site {
    pub found: Found,
    pub route: Route,
    pub api: Rc<Api>,
    /// Last problem that was printed.
    problem: RefCell<Option<String>>,
}

/// Failure of a request to a target.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("{server} rejects the credentials of the kubeconfig; log in again")]
    Rejected { server: String },
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No connection to a pod.
    #[error("{0}")]
    Unreachable(String),
    /// A connection to a pod failed.
    #[error("the connection failed before the response: {0}")]
    Pod(ConnectionError),
    /// An error response, which is read before it is passed on, broke off.
    #[error("the response broke off: {0}")]
    Cut(UpstreamError),
}

/// Response of a target.
#[derive(Debug)]
pub enum Answer {
    Response(Response<Body>),
    Switched(Response<()>, Box<Upstream>),
}

/// Connection of a target after an upgrade.
#[derive(Debug)]
pub struct Upstream {
    pub connection: UpgradedConnection,
    pub guard: Option<Box<RequestGuard>>,
}

impl SiteError {
    /// Returns the status of the response to the browser.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Send(SendError::Api(ApiError::Client(_)) | SendError::Body(_)) => {
                StatusCode::BAD_REQUEST
            }
            Self::Send(SendError::Api(ApiError::Unreachable(_)))
            | Self::Dial(_)
            | Self::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Send(SendError::Timeout(_)) => StatusCode::GATEWAY_TIMEOUT,
            Self::Rejected { .. } | Self::Send(_) | Self::Pod(_) | Self::Cut(_) => {
                StatusCode::BAD_GATEWAY
            }
        }
    }
}

impl Site {
    pub fn new(found: Found, route: Route, api: Rc<Api>) -> Self {
        Self {
            found,
            route,
            api,
            problem: RefCell::default(),
        }
    }

    /// Returns the name of the target for messages.
    pub fn name(&self) -> String {
        format!("{}/{}", self.found.kind.singular(), self.found.name)
    }

    /// Returns the target and the way to it, for people.
    pub fn describe(&self) -> String {
        let (name, server) = (self.name(), self.api.client.names());
        match self.route {
            Route::Bastion { .. } => format!("{name} through the bastion {server}"),
            Route::PortForward { .. } => format!("{name} through port-forwarding by {server}"),
            Route::Subresource { .. } => format!("{name} through /proxy/ of {server}"),
        }
    }

    /// Forwards a request of the browser.
    ///
    /// # Errors
    /// [`SiteError`] without a response of the target.
    pub async fn forward(
        &self,
        head: &mut RequestHead,
        body: &mut RequestBody,
        interim: Option<&Interim>,
    ) -> Result<Answer, SiteError> {
        let upgrade = Upgrade::from_request(head, None);
        remove_hop_by_hop(&mut head.headers, |name| name == KUBE_BASTION_HOST.as_str());
        let body = std::mem::replace(body, RequestBody::Empty);
        self.address(head).await?;
        let response = match &self.route {
            Route::PortForward { client } => {
                client.send(head, body, upgrade.as_ref(), interim).await?
            }
            Route::Bastion { .. } | Route::Subresource { .. } => {
                let sent = self.api.client.send(Outgoing {
                    head,
                    body,
                    upgrade: upgrade.as_ref(),
                    interim,
                    login: Some(self.login()),
                    timeout: None,
                });
                sent.await?.response
            }
        };
        let (mut response, is_refused) = match response {
            UpgradeOutcome::Switched {
                response,
                upstream: connection,
                guard,
            } => {
                let upstream = Box::new(Upstream { connection, guard });
                return Ok(Answer::Switched(response, upstream));
            }
            UpgradeOutcome::Ignored(response) => (response, false),
            UpgradeOutcome::Refused(response) => (response, true),
        };
        // A browser would ask for the credentials of a proxy that its user does not know.
        if matches!(self.route, Route::Bastion { .. })
            && response.status() == self.login().rejection()
        {
            let server = self.api.client.names();
            return Err(SiteError::Rejected { server });
        }
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        remove_hop_by_hop(headers, |_| false);
        // It describes requests only.
        headers.remove(header::TE);
        if is_refused {
            // Bytes behind the request are of the protocol that was refused.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(Answer::Response(self.finish(response).await?))
    }

    /// Returns the place of the credentials.
    fn login(&self) -> Login {
        match self.route {
            Route::Bastion { .. } => Login::Proxy,
            Route::PortForward { .. } | Route::Subresource { .. } => Login::Server,
        }
    }

    /// Sets the target, and the headers of the way to it.
    async fn address(&self, head: &mut RequestHead) -> Result<(), SiteError> {
        let target = &head.target;
        match &self.route {
            Route::PortForward { .. } => head.target = target.with_path(target.path()),
            Route::Bastion { host } => {
                let authority = self.authority(&host.name().await?);
                head.target = target.to_absolute_form(&authority);
                let headers = &mut head.headers;
                let browser = headers.get(header::HOST).cloned();
                set(headers, KUBE_BASTION_HOST, browser.as_ref());
                if let Ok(authority) = HeaderValue::try_from(authority) {
                    headers.insert(header::HOST, authority);
                }
            }
            Route::Subresource { host } => {
                let prefix = self.prefix(&host.name().await?);
                let path = target.path();
                // Links that the API server has rewritten have the prefix.
                head.target = if is_below(path, &prefix) {
                    target.with_path(path)
                } else {
                    target.with_path(&[&*prefix, path].concat())
                };
                head.headers.remove(header::AUTHORIZATION);
                self.api.client.credentials.impersonate(&mut head.headers);
            }
        }
        Ok(())
    }

    /// Returns the host of the target in URLs for a bastion. It has the port unless that follows
    /// from the name, so that a role which names the bare object suffices.
    fn authority(&self, name: &str) -> String {
        let Found {
            kind,
            namespace,
            port,
            ..
        } = &self.found;
        let zone = if *kind == Kind::Service { "svc" } else { "pod" };
        match port {
            Some(port) if !port.is_implied => format!("{name}.{namespace}.{zone}:{}", port.number),
            _ => format!("{name}.{namespace}.{zone}"),
        }
    }

    /// Returns the path of the subresource.
    fn prefix(&self, name: &str) -> String {
        let Found {
            kind,
            namespace,
            port,
            ..
        } = &self.found;
        let id = match port {
            None => name.to_owned(),
            Some(port) => match port.scheme() {
                Scheme::Http if port.is_implied => name.to_owned(),
                Scheme::Http => format!("{name}:{}", port.number),
                Scheme::Https => format!("https:{name}:{}", port.number),
            },
        };
        match kind {
            Kind::Node => format!("/api/v1/nodes/{id}/proxy"),
            Kind::Service => format!("/api/v1/namespaces/{namespace}/services/{id}/proxy"),
            _ => format!("/api/v1/namespaces/{namespace}/pods/{id}/proxy"),
        }
    }

    /// Prints the reason if the server could not reach the target, and converts URLs of a
    /// subresource to those of the site.
    ///
    /// # Errors
    /// The response broke off.
    async fn finish(
        &self,
        mut response: Response<UpstreamBody>,
    ) -> Result<Response<Body>, SiteError> {
        match &self.route {
            Route::PortForward { .. } => {
                self.report(None);
                return Ok(response.map(Body::upstream));
            }
            Route::Subresource {
                host: Host::Fixed(name),
            } => {
                let prefix = self.prefix(name);
                strip_prefix(response.headers_mut(), &prefix);
            }
            Route::Bastion { .. } | Route::Subresource { .. } => {}
        }
        if !may_be_status(&response) {
            self.report(None);
            return Ok(response.map(Body::upstream));
        }
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.map_err(SiteError::Cut)?.to_bytes();
        let message = StatusMessage::parse(&bytes);
        if message.is_some()
            && let Route::Bastion {
                host: Host::Pod(pods),
            }
            | Route::Subresource {
                host: Host::Pod(pods),
            } = &self.route
        {
            pods.forget();
        }
        self.report(message);
        Ok(Response::from_parts(parts, Body::full(bytes)))
    }

    /// Prints a problem unless it was the last one printed, and its end.
    pub fn report(&self, problem: Option<String>) {
        let mut last = self.problem.borrow_mut();
        if *last == problem {
            return;
        }
        let name = self.name();
        match &problem {
            Some(problem) => eprintln!("{name}: {}", printable(problem)),
            None => eprintln!("{name}: responds again"),
        }
        *last = problem;
    }
}

impl Host {
    async fn name(&self) -> Result<String, DialError> {
        match self {
            Self::Fixed(name) => Ok(name.clone()),
            Self::Pod(pods) => {
                let pod = pods.current().await?;
                Ok(pod.metadata.name.unwrap_or_default())
            }
        }
    }
}

/// Returns true for an error that may be the server's own.
fn may_be_status(response: &Response<UpstreamBody>) -> bool {
    use http_body::Body as _;
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|media_type| media_type.as_bytes().starts_with(b"application/json"));
    let length = response.body().size_hint().exact();
    (response.status().is_client_error() || response.status().is_server_error())
        && is_json
        && length.is_some_and(|length| length <= MAX_STATUS)
}
