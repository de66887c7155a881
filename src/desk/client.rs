//! Client of the API servers of a context: balanced and checked by the common forwarder, with the
//! credentials of the user.

mod content;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::api::StatusMessage;
use super::credentials::{Credentials, CredentialsError, Presented};
use crate::apiservers::{ApiServers, Credential, Probe, ServerConfig, keep_probing};
use crate::forward::{
    ApiError, ApiForwarder, ApiRequest, ApiResponse, Pool, Upgrade, UpgradeOutcome, UpstreamBody,
};
use crate::http::{Interim, ReceiveError, RequestBody, RequestHead};
use crate::model::Target;
use content::Content;
pub use content::outgoing;

/// `User-Agent` of requests whose client sends none.
pub const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("kube-bastion/", env!("CARGO_PKG_VERSION")));

/// Interval at which idle connections are checked for expiry.
const POOL_SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum wait for the body of a response that may be that of an application.
const PEEK_TIMEOUT: Duration = Duration::from_secs(1);

/// Client of the API servers of a context.
#[derive(Debug)]
pub struct Client {
    pub forwarder: ApiForwarder,
    pub credentials: Arc<Credentials>,
    /// `Authorization` of health checks: that of the last request, so that they run no plugin.
    probe_authorization: Arc<ArcSwapOption<HeaderValue>>,
    /// Starts the health checks, which wait for a certificate that a plugin may return.
    has_credentials: Rc<Notify>,
    /// Generation of the credentials at the last request.
    generation: Cell<u32>,
    /// Health checks, and the expiry of idle connections.
    _background: JoinSet<()>,
}

/// Request to the API servers.
#[derive(Debug)]
pub struct Outgoing<'a> {
    pub head: &'a RequestHead,
    pub body: RequestBody,
    pub upgrade: Option<&'a Upgrade>,
    /// Receives interim responses.
    pub interim: Option<&'a Interim>,
    /// `None` to send the request without the credentials of the user, except for a certificate.
    pub login: Option<Login>,
    /// Maximum time of an attempt until its response begins. `None` for no limit.
    pub timeout: Option<Duration>,
}

/// Place of the credentials in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// `Authorization`, for the API.
    Server,
    /// `Proxy-Authorization`, for a bastion as a proxy.
    Proxy,
}

/// Response of an API server to a request, which may be an upgrade.
pub type Answer = ApiResponse<UpgradeOutcome<Response<UpstreamBody>>>;

/// Failure of a request.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("cannot receive the request body: {0}")]
    Body(#[from] ReceiveError),
    #[error("the API server did not respond within {0:?} (--request-timeout)")]
    Timeout(Duration),
}

impl Login {
    fn header(self) -> HeaderName {
        match self {
            Self::Server => header::AUTHORIZATION,
            Self::Proxy => header::PROXY_AUTHORIZATION,
        }
    }

    /// Returns the status with which the credentials are rejected.
    pub fn rejection(self) -> StatusCode {
        match self {
            Self::Server => StatusCode::UNAUTHORIZED,
            Self::Proxy => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        }
    }

    /// Returns true if the server rejects the credentials. A 401 behind the API server's proxy may be
    /// that of an application, for which a request with an effect must not be sent again (RFC 9110
    /// section 9.2.2): the API server sends a `Status`.
    async fn is_rejected(self, head: &RequestHead, answer: &mut Answer) -> bool {
        if status(answer) != self.rejection() {
            return false;
        }
        if self == Self::Proxy
            || head.method.is_safe()
            || Target::parse(head.target.path()).is_err()
        {
            return true;
        }
        let (UpgradeOutcome::Ignored(response) | UpgradeOutcome::Refused(response)) =
            &mut answer.response
        else {
            return false;
        };
        let peeked = tokio::time::timeout(PEEK_TIMEOUT, response.body_mut().peek()).await;
        let body = response.body().peeked();
        peeked.is_ok() && body.is_some_and(|body| StatusMessage::is_unauthorized(body))
    }
}

impl Client {
    /// Creates the client, and starts health checks on the current thread.
    pub fn new(servers: Vec<ServerConfig>, credentials: Arc<Credentials>) -> Self {
        let forwarder = ApiForwarder::new(ApiServers::new(servers));
        let probe_authorization = Arc::default();
        let generation = credentials.generation();
        let has_credentials = Rc::new(Notify::new());
        if !credentials.may_obtain_certificate() {
            has_credentials.notify_one();
        }
        let mut background = JoinSet::new();
        let probing = keep_probing(
            forwarder.servers.clone(),
            Probe {
                credential: Credential::Own { generation },
                authorization: Arc::clone(&probe_authorization),
                always: false,
            },
        );
        background.spawn_local({
            let has_credentials = Rc::clone(&has_credentials);
            async move {
                has_credentials.notified().await;
                probing.await;
            }
        });
        background.spawn_local(keep_sweeping(Rc::clone(&forwarder.pool)));
        Self {
            forwarder,
            credentials,
            probe_authorization,
            has_credentials,
            generation: Cell::new(generation),
            _background: background,
        }
    }

    /// Sends a request. If the server rejects the credentials, they are renewed, and a request
    /// without a body, or with a short one, is sent again.
    ///
    /// # Errors
    /// [`SendError`] without a response.
    pub async fn send(&self, request: Outgoing<'_>) -> Result<Answer, SendError> {
        let Outgoing {
            head,
            body,
            upgrade,
            interim,
            login,
            timeout,
        } = request;
        let may_repeat = login.is_some() && self.credentials.is_renewable();
        let mut content = Content::read(body, head, may_repeat).await?;
        let can_repeat = content.can_repeat();
        let mut attempt = async |presented: Option<&Presented>| {
            let mut head = head.clone();
            if let Some(login) = login
                && let Some(authorization) = presented.and_then(Presented::authorization)
            {
                head.headers.insert(login.header(), authorization.clone());
            }
            let request = ApiRequest {
                head: &mut head,
                body: content.outgoing(),
                interim: interim.cloned(),
                credential: self.credential(presented),
            };
            let sending = exchange(&self.forwarder, request, upgrade);
            match timeout {
                None => Ok(sending.await?),
                Some(timeout) => tokio::time::timeout(timeout, sending)
                    .await
                    .map_err(|_| SendError::Timeout(timeout))?
                    .map_err(SendError::Api),
            }
        };
        let Some(login) = login else {
            // Before the dial, which has a timeout: the user may be logging in. The server decides on a
            // client with credentials of its own.
            if self.credentials.may_obtain_certificate() && self.credentials.current().await.is_ok()
            {
                self.has_credentials.notify_one();
            }
            return attempt(None).await;
        };
        let sent = self.credentials.with_renewal(
            async |presented: &Presented| {
                self.remember(presented);
                let mut answer = attempt(Some(presented)).await?;
                let is_rejected = can_repeat && login.is_rejected(head, &mut answer).await;
                Ok((answer, is_rejected))
            },
            |&(_, is_rejected)| is_rejected,
        );
        sent.await.map(|(answer, _)| answer)
    }

    /// Returns the names of the servers.
    pub fn names(&self) -> String {
        let servers = self.forwarder.servers.snapshot();
        let names: Vec<_> = servers.iter().map(|server| &*server.name).collect();
        names.join(", ")
    }

    /// Uses the credentials for health checks.
    fn remember(&self, presented: &Presented) {
        self.has_credentials.notify_one();
        let authorization = presented.authorization();
        if self.probe_authorization.load().as_deref() != authorization {
            self.probe_authorization
                .store(authorization.cloned().map(Arc::new));
        }
    }

    /// Returns the credential of connections, and retires those with an earlier certificate.
    fn credential(&self, presented: Option<&Presented>) -> Credential {
        let generation =
            presented.map_or_else(|| self.credentials.generation(), Presented::generation);
        if self.generation.replace(generation) != generation {
            self.forwarder.retire_other_generations(generation);
        }
        Credential::Own { generation }
    }
}

/// Sends a request or an upgrade by a forwarder.
///
/// # Errors
/// As [`ApiForwarder::send`] and [`ApiForwarder::upgrade`].
pub async fn exchange(
    forwarder: &ApiForwarder,
    request: ApiRequest<'_>,
    upgrade: Option<&Upgrade>,
) -> Result<Answer, ApiError> {
    if let Some(upgrade) = upgrade {
        return forwarder.upgrade(request, upgrade).await;
    }
    let ApiResponse { response, server } = forwarder.send(request).await?;
    let response = UpgradeOutcome::Ignored(response);
    Ok(ApiResponse { response, server })
}

/// Closes the connections of a pool that have been idle for too long. Never returns.
pub async fn keep_sweeping(pool: Rc<Pool>) {
    loop {
        tokio::time::sleep(POOL_SWEEP_INTERVAL).await;
        pool.sweep();
    }
}

fn status(answer: &Answer) -> StatusCode {
    match &answer.response {
        UpgradeOutcome::Ignored(response) | UpgradeOutcome::Refused(response) => response.status(),
        UpgradeOutcome::Switched { response, .. } => response.status(),
    }
}
