//! Way from a local connection to its target.

use std::rc::Rc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep};

use super::bastion::{TunnelError, Tunnels};
use super::endpoints::{Endpoints, TargetPort};
use super::sessions::{Sessions, is_transient};
use crate::desk::portforward::OpenError;
use crate::desk::targets::{DialError, Protocol};
use crate::http::Transport;

/// Maximum number of pods that are tried for one connection.
const MAX_TRIES: usize = 3;
/// Time for which a connection waits for a pod, as while it is replaced.
const POD_TIMEOUT: Duration = Duration::from_secs(20);

/// Way to a port of a target.
#[derive(Clone, Debug)]
pub enum Route {
    /// The bastion selects the endpoint.
    Bastion {
        tunnels: Rc<Tunnels>,
        protocol: Protocol,
        /// `NAME.NAMESPACE.svc:PORT` or `NAME.NAMESPACE.pod:PORT`
        authority: String,
    },
    /// Pods in turn.
    Pods {
        endpoints: Rc<Endpoints>,
        port: TargetPort,
        way: PodWay,
    },
}

/// Way to a pod.
#[derive(Clone, Debug)]
pub enum PodWay {
    Bastion(Rc<Tunnels>, Protocol),
    ApiServer(Rc<Sessions>),
}

/// Failure of a connection to a target.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{error}{}", .0.remedy(), error = .0)]
    Tunnel(#[from] TunnelError),
    #[error(transparent)]
    Pod(#[from] DialError),
}

impl ConnectError {
    /// Returns the kind of the failure, of which one message is enough.
    pub fn kind(&self) -> String {
        match self {
            Self::Tunnel(error) => error.kind(),
            Self::Pod(DialError::NoPod(_)) => "no pod".to_owned(),
            Self::Pod(DialError::Session(OpenError::Refused { status, .. })) => status.to_string(),
            Self::Pod(DialError::Pod(_)) => "stream".to_owned(),
            Self::Pod(_) => "unreachable".to_owned(),
        }
    }

    /// Returns true if another pod may accept the connection.
    fn is_transient(&self) -> bool {
        match self {
            Self::Tunnel(TunnelError::Refused(refusal)) => matches!(
                refusal.status,
                StatusCode::NOT_FOUND
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            ),
            Self::Tunnel(_) => false,
            Self::Pod(error) => is_transient(error),
        }
    }
}

impl Route {
    /// Connects to the target, to the next of its pods. Datagrams of UDP are in capsules
    /// (RFC 9297).
    ///
    /// # Errors
    /// [`ConnectError`]
    pub async fn connect(&self) -> Result<Box<dyn Transport>, ConnectError> {
        let (endpoints, port, way) = match self {
            Self::Bastion {
                tunnels,
                protocol,
                authority,
            } => return open(tunnels, *protocol, authority).await,
            Self::Pods {
                endpoints,
                port,
                way,
            } => (endpoints, port, way),
        };
        let namespace = endpoints.namespace();
        let mut tries = 1;
        loop {
            let (pod, number) = endpoints.wait(port, POD_TIMEOUT).await?;
            if way.has_ended(namespace, &pod) {
                // Probably with its pod.
                endpoints.forget();
                continue;
            }
            match way.connect(namespace, &pod, number).await {
                Err(error) if tries < MAX_TRIES && error.is_transient() => {
                    tracing::debug!(%error, pod, "trying the next pod");
                    endpoints.forget();
                    tries += 1;
                }
                result => return result,
            }
        }
    }
}

/// Opens a tunnel whose endpoint the bastion selects, and waits for one.
async fn open(
    tunnels: &Tunnels,
    protocol: Protocol,
    authority: &str,
) -> Result<Box<dyn Transport>, ConnectError> {
    const PAUSE: Duration = Duration::from_millis(500);
    let last = Instant::now() + POD_TIMEOUT;
    loop {
        match tunnels.open(protocol, authority).await {
            Err(TunnelError::Refused(refusal))
                if refusal.status == StatusCode::SERVICE_UNAVAILABLE && Instant::now() < last =>
            {
                tracing::debug!(%refusal, authority, "waiting for an endpoint");
                sleep(PAUSE).await;
            }
            opened => return Ok(Box::new(opened?)),
        }
    }
}

impl PodWay {
    fn has_ended(&self, namespace: &str, pod: &str) -> bool {
        match self {
            Self::Bastion(..) => false,
            Self::ApiServer(sessions) => sessions.has_ended(namespace, pod),
        }
    }

    async fn connect(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        Ok(match self {
            Self::Bastion(tunnels, protocol) => {
                let authority = format!("{pod}.{namespace}.pod:{port}");
                Box::new(tunnels.open(*protocol, &authority).await?)
            }
            Self::ApiServer(sessions) => Box::new(sessions.connect(namespace, pod, port).await?),
        })
    }
}
