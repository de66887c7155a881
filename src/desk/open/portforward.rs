//! Requests to a port of ready pods, on connections through the port-forward protocol.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::pods;
use super::ready::ReadyPods;
use super::site::SiteError;
use crate::apiservers::{ApiServers, Connect, Credential, ServerConfig};
use crate::desk::api::Api;
use crate::desk::client::{SendError, exchange, keep_sweeping, outgoing};
use crate::desk::portforward;
use crate::desk::portforward::session::{PortStream, Session};
use crate::desk::targets::DialError;
use crate::forward::{ApiError, ApiForwarder, ApiRequest, Upgrade, UpgradeOutcome, UpstreamBody};
use crate::http::{Interim, RequestBody, RequestHead, Stream, Transport};
use crate::model::error_chain;

/// Idle time of connections to applications. Some of them close after 5 s.
const POD_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum number of concurrent dials. Further ones wait.
const MAX_DIALS: usize = 64;

/// Client of a port of ready pods.
#[derive(Debug)]
pub struct PodClient {
    forwarder: ApiForwarder,
    /// Dials, and the expiry of idle connections.
    _background: JoinSet<()>,
}

/// Opens connections to a port of ready pods. Connections to one pod share a session; the next pod
/// is used when it ends.
#[derive(Debug)]
pub struct PodDial {
    api: Rc<Api>,
    pods: ReadyPods,
    namespace: String,
    target: IntOrString,
    session: RefCell<Option<(Session, u16)>>,
}

/// Connector that has a task of the thread dial, on which sessions are opened.
#[derive(Debug)]
struct PodConnector {
    dials: mpsc::Sender<oneshot::Sender<io::Result<Stream>>>,
}

impl PodClient {
    /// Creates the client of a target, which is named in logs.
    pub fn new(name: String, dial: PodDial) -> Self {
        let (sender, dials) = mpsc::channel(1);
        let pod = ServerConfig {
            name,
            host: None,
            path: String::new(),
            connector: Arc::new(PodConnector { dials: sender }),
        };
        let servers = ApiServers::unchecked(vec![pod]);
        let forwarder = ApiForwarder::with_idle_timeout(servers, POD_IDLE_TIMEOUT);
        let mut background = JoinSet::new();
        background.spawn_local(keep_dialing(Rc::new(dial), dials));
        background.spawn_local(keep_sweeping(Rc::clone(&forwarder.pool)));
        Self {
            forwarder,
            _background: background,
        }
    }

    /// Sends a request, which needs no credentials.
    ///
    /// # Errors
    /// [`SiteError`] without a response.
    pub async fn send(
        &self,
        head: &mut RequestHead,
        body: RequestBody,
        upgrade: Option<&Upgrade>,
        interim: Option<&Interim>,
    ) -> Result<UpgradeOutcome<http::Response<UpstreamBody>>, SiteError> {
        let has_body = !matches!(body, RequestBody::Empty);
        let request = ApiRequest {
            head,
            body: has_body.then(|| outgoing(body)),
            credential: Credential::Own { generation: 0 },
            interim: interim.cloned(),
        };
        let sent = exchange(&self.forwarder, request, upgrade).await;
        let answer = sent.map_err(|error| match error {
            ApiError::Unreachable(_) => {
                let servers = self.forwarder.servers.snapshot();
                let reasons = servers.iter().map(|server| server.reason());
                SiteError::Unreachable(reasons.collect())
            }
            ApiError::Failed { source, .. } | ApiError::Interrupted { source, .. } => {
                SiteError::Pod(source)
            }
            error => SendError::Api(error).into(),
        })?;
        Ok(answer.response)
    }
}

/// Opens a connection per message, until the connector is dropped. A dial whose request gives up goes
/// on, because the next request uses its session.
async fn keep_dialing(
    dial: Rc<PodDial>,
    mut dials: mpsc::Receiver<oneshot::Sender<io::Result<Stream>>>,
) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            waiting = dials.recv(), if running.len() < MAX_DIALS => {
                let Some(waiting) = waiting else { return };
                if waiting.is_closed() {
                    continue;
                }
                let dial = Rc::clone(&dial);
                running.spawn_local(async move {
                    let opened = dial.connect().await;
                    let opened = opened.map_err(|error| io::Error::other(error_chain(&error)));
                    // Fails if the request has given up.
                    let _ = waiting.send(opened);
                });
            }
            Some(_) = running.join_next() => {}
        }
    }
}

impl Connect for PodConnector {
    fn connect(&self, _: Credential, _: bool) -> BoxFuture<'_, io::Result<Stream>> {
        async {
            let (sender, opened) = oneshot::channel();
            let ended = || io::Error::other("the command ends");
            self.dials.send(sender).await.map_err(|_| ended())?;
            opened.await.map_err(|_| ended())?
        }
        .boxed()
    }
}

impl PodDial {
    pub fn new(api: Rc<Api>, pods: ReadyPods, namespace: &str, target: IntOrString) -> Self {
        Self {
            api,
            pods,
            namespace: namespace.to_owned(),
            target,
            session: RefCell::default(),
        }
    }

    /// Opens a session, which shows that a pod is ready and that the user may.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn check(&self) -> Result<(), DialError> {
        self.session().await.map(|_| ())
    }

    async fn connect(&self) -> Result<Stream, DialError> {
        let mut tries = 0;
        loop {
            let error = match self.session().await {
                Ok((session, port)) => match session.connect(port).await {
                    Ok(stream) => return Ok(Stream::Boxed(Box::new(stream))),
                    Err(error) => DialError::from(error),
                },
                // The pod may have been deleted after it was listed.
                Err(error)
                    if error
                        .refused_session()
                        .is_some_and(|status| status != StatusCode::FORBIDDEN) =>
                {
                    error
                }
                Err(error) => return Err(error),
            };
            if tries > 0 {
                return Err(error);
            }
            tracing::debug!(%error, "a session of port-forward failed");
            tries += 1;
            self.session.borrow_mut().take();
            self.pods.forget();
        }
    }

    /// Returns the open session, or opens one to the next ready pod.
    async fn session(&self) -> Result<(Session, u16), DialError> {
        if let Some((session, port)) = &*self.session.borrow()
            && session.is_open()
            && !session.is_held_up()
        {
            return Ok((session.clone(), *port));
        }
        let pod = self.pods.next().await?;
        let port = pods::container_port(&pod, &self.target)?;
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let client = &self.api.client;
        let opened = portforward::open(
            &client.forwarder,
            &client.credentials,
            &self.namespace,
            name,
        );
        let session = match opened.await {
            Ok(session) => session,
            Err(error) => {
                self.pods.forget();
                return Err(error.into());
            }
        };
        *self.session.borrow_mut() = Some((session.clone(), port));
        Ok((session, port))
    }
}

impl Transport for PortStream {}
