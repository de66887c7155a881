//! Connections to the port of ready pods, through the port-forward protocol.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio_util::task::AbortOnDropHandle;

use super::client::Dial;
use super::dial::DialError;
use super::pods;
use super::ready::ReadyPods;
use crate::apiservers::{ApiServers, Credential, Probe, ServerConfig, keep_probing};
use crate::desk::credentials::Credentials;
use crate::desk::portforward;
use crate::desk::portforward::session::{PortStream, Session};
use crate::forward::ApiForwarder;
use crate::http::{Stream, Transport};

/// Idle time of connections to applications. Some of them close after 5 s.
const POD_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Opens connections to a port of ready pods. Connections to one pod share a session; the next pod
/// is used when it ends.
#[derive(Debug)]
pub struct PodDial {
    forwarder: ApiForwarder,
    credentials: Arc<Credentials>,
    /// Checks API servers that could not be reached.
    _probing: AbortOnDropHandle<()>,
    pods: ReadyPods,
    namespace: String,
    target: IntOrString,
    session: RefCell<Option<(Session, u16)>>,
}

impl PodDial {
    pub fn new(
        servers: Vec<ServerConfig>,
        credentials: Arc<Credentials>,
        pods: ReadyPods,
        namespace: &str,
        target: IntOrString,
    ) -> Self {
        let servers = ApiServers::new(servers);
        let probe = Probe {
            credential: Credential::Own {
                generation: credentials.generation(),
            },
            authorization: Arc::default(),
            always: false,
        };
        let probing = tokio::task::spawn_local(keep_probing(servers.clone(), probe));
        Self {
            forwarder: ApiForwarder::new(servers),
            credentials,
            _probing: AbortOnDropHandle::new(probing),
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
            let (session, port) = self.session().await?;
            match session.connect(port).await {
                Ok(stream) => return Ok(Stream::Boxed(Box::new(stream))),
                Err(error) if tries > 0 => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, "a session of port-forward failed");
                    tries += 1;
                    self.session.borrow_mut().take();
                    self.pods.forget();
                }
            }
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
        let opened = portforward::open(&self.forwarder, &self.credentials, &self.namespace, name);
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

impl Dial for PodDial {
    fn dial(&self) -> LocalBoxFuture<'_, Result<Stream, DialError>> {
        self.connect().boxed_local()
    }

    fn idle_timeout(&self) -> Duration {
        POD_IDLE_TIMEOUT
    }

    fn generation(&self) -> u32 {
        // Connections to a pod have no certificate.
        0
    }
}
