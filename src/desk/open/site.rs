//! An opened target: the way to it, and what its requests need on that way.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;

use super::api::{Api, StatusMessage};
use super::body::Body;
use super::client::{Client, ResponseBody, SendError, Upgraded};
use super::dial::DialError;
use super::headers::{is_below, set, strip_prefix, take_upgrade};
use super::lookup::Found;
use super::printable;
use super::ready::ReadyPods;
use super::reference::Kind;
use crate::desk::credentials::CredentialsError;
use crate::http::{
    Interim, KUBE_BASTION_HOST, RequestBody, RequestHead, RequestTarget, UpgradedConnection,
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
    PortForward,
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
    pub client: Rc<Client>,
    pub api: Rc<Api>,
    /// Last problem that was printed.
    problem: RefCell<Option<String>>,
}

/// Failure of a request to a target.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error(transparent)]
    Login(#[from] CredentialsError),
    #[error("{server} rejects the credentials of the kubeconfig; log in again")]
    Rejected { server: String },
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// Response of a target.
#[derive(Debug)]
pub enum Answer {
    Response(Response<Body>),
    Switched(Response<()>, UpgradedConnection),
}

impl SiteError {
    /// Returns the status of the response to the browser.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Login(_) | Self::Rejected { .. } => StatusCode::BAD_GATEWAY,
            Self::Send(SendError::Exchange(_)) => StatusCode::BAD_GATEWAY,
            Self::Send(SendError::Dial(_)) | Self::Dial(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Site {
    pub fn new(found: Found, route: Route, client: Rc<Client>, api: Rc<Api>) -> Self {
        Self {
            found,
            route,
            client,
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
        let (name, server) = (self.name(), self.api.servers.name());
        match self.route {
            Route::Bastion { .. } => format!("{name} through the bastion {server}"),
            Route::PortForward => format!("{name} through port-forwarding by {server}"),
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
        let upgrade = take_upgrade(&mut head.headers);
        let can_repeat = matches!(body, RequestBody::Empty);
        let browser = Browser::of(head);
        let mut authorization = match self.route {
            Route::PortForward => None,
            Route::Bastion { .. } | Route::Subresource { .. } => {
                self.api.credentials.authorization().await?
            }
        };
        loop {
            self.address(head, &browser, authorization.as_ref()).await?;
            let response = if upgrade {
                match self.client.upgrade(head).await? {
                    Upgraded::Switched(response, connection) => {
                        return Ok(Answer::Switched(response, connection));
                    }
                    Upgraded::Refused(mut response) => {
                        // Bytes behind the request are of the protocol that was refused.
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(header::CONNECTION, close);
                        response
                    }
                }
            } else {
                self.client.send(head, body, interim).await?
            };
            if Some(response.status()) != self.rejection() {
                return Ok(Answer::Response(self.finish(response).await));
            }
            if can_repeat
                && let Some(rejected) = &authorization
                && let Some(renewed) = self.api.credentials.renew(rejected).await?
            {
                authorization = Some(renewed);
                continue;
            }
            // A browser would ask for the credentials of a proxy that its user does not know.
            if matches!(self.route, Route::Bastion { .. }) {
                let server = self.api.servers.name().to_owned();
                return Err(SiteError::Rejected { server });
            }
            return Ok(Answer::Response(self.finish(response).await));
        }
    }

    /// Returns the status with which the server rejects credentials.
    fn rejection(&self) -> Option<StatusCode> {
        match self.route {
            Route::Bastion { .. } => Some(StatusCode::PROXY_AUTHENTICATION_REQUIRED),
            Route::PortForward => None,
            Route::Subresource { .. } => Some(StatusCode::UNAUTHORIZED),
        }
    }

    /// Sets target, `Host` and credentials of a request.
    async fn address(
        &self,
        head: &mut RequestHead,
        browser: &Browser,
        authorization: Option<&HeaderValue>,
    ) -> Result<(), SiteError> {
        match &self.route {
            Route::PortForward => {
                head.target = browser.target.with_path(browser.target.path());
            }
            Route::Bastion { host } => {
                let authority = self.authority(&host.name().await?);
                head.target = browser.target.to_absolute_form(&authority);
                let headers = &mut head.headers;
                set(headers, KUBE_BASTION_HOST, browser.host.as_ref());
                set(headers, header::PROXY_AUTHORIZATION, authorization);
                if let Ok(authority) = HeaderValue::try_from(authority) {
                    headers.insert(header::HOST, authority);
                }
            }
            Route::Subresource { host } => {
                let prefix = self.prefix(&host.name().await?);
                let text = browser.target.path_and_query();
                // Links that the API server has rewritten have the prefix.
                let path = if is_below(browser.target.path(), &prefix) {
                    text.to_owned()
                } else {
                    [&*prefix, text].concat()
                };
                let removed: Vec<_> = head
                    .headers
                    .keys()
                    .filter(|name| name.as_str().starts_with("impersonate-"))
                    .cloned()
                    .collect();
                for name in removed {
                    head.headers.remove(name);
                }
                head.headers.remove(header::AUTHORIZATION);
                self.api.authorize(&mut head.headers, authorization);
                self.api.servers.address(head, &path);
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
    async fn finish(&self, mut response: Response<ResponseBody>) -> Response<Body> {
        match &self.route {
            Route::PortForward => {
                self.report(None);
                return response.map(Body::upstream);
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
            return response.map(Body::upstream);
        }
        let (parts, body) = response.into_parts();
        let bytes = match body.collect().await {
            Ok(collected) => collected.to_bytes(),
            // The browser gets a response that is cut short, too.
            Err(error) => {
                tracing::debug!(%error, "a response broke off");
                Bytes::new()
            }
        };
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
        Response::from_parts(parts, Body::full(bytes))
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

/// Request of the browser, before it is addressed.
struct Browser {
    target: RequestTarget,
    host: Option<HeaderValue>,
}

impl Browser {
    fn of(head: &RequestHead) -> Self {
        Self {
            target: head.target.clone(),
            host: head.headers.get(header::HOST).cloned(),
        }
    }
}

/// Returns true for an error that may be the server's own.
fn may_be_status(response: &Response<ResponseBody>) -> bool {
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
