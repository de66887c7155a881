//! Way from a local connection to its target.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep};

use super::bastion::{TunnelError, Tunnels};
use super::endpoints::{Endpoints, TargetPort};
use super::sessions::{Sessions, is_transient};
use crate::desk::targets::{DialError, Protocol};
use crate::http::Upgraded;

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
        /// The bastion has known the target. A pod may be unknown while it is replaced.
        known: Rc<Cell<bool>>,
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
            Self::Pod(DialError::Pod(_)) => "stream".to_owned(),
            Self::Pod(error) => match error.refused_session() {
                Some(status) => status.to_string(),
                None => "unreachable".to_owned(),
            },
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
    /// Waits until the bastion can reach an endpoint that it selects, by a tunnel that is closed at
    /// once. An endpoint that refuses the connection exists. Pods are waited for by their list.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub async fn wait(&self, limit: Duration) -> Result<(), ConnectError> {
        let Self::Bastion {
            tunnels,
            protocol,
            authority,
            known,
        } = self
        else {
            return Ok(());
        };
        match open(tunnels, *protocol, authority, known, limit).await {
            Err(ConnectError::Tunnel(TunnelError::Refused(refusal)))
                if matches!(
                    refusal.status,
                    StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT
                ) =>
            {
                Ok(())
            }
            opened => opened.map(drop),
        }
    }

    /// Connects to the target, to the next of its pods. Datagrams of UDP are in capsules
    /// (RFC 9297).
    ///
    /// # Errors
    /// [`ConnectError`]
    pub async fn connect(&self) -> Result<Upgraded, ConnectError> {
        let (endpoints, port, way) = match self {
            Self::Bastion {
                tunnels,
                protocol,
                authority,
                known,
            } => return open(tunnels, *protocol, authority, known, POD_TIMEOUT).await,
            Self::Pods {
                endpoints,
                port,
                way,
            } => (endpoints, port, way),
        };
        let namespace = endpoints.namespace();
        let mut failed = Vec::new();
        loop {
            let (pod, number) = endpoints.wait(port, &failed, POD_TIMEOUT).await?;
            if way.has_ended(namespace, &pod) {
                // Probably with its pod.
                endpoints.forget();
                continue;
            }
            match way.connect(namespace, &pod, number).await {
                Err(error) if failed.len() + 1 < MAX_TRIES && error.is_transient() => {
                    tracing::debug!(%error, pod, "trying the next pod");
                    endpoints.forget();
                    failed.push(pod);
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
    known: &Cell<bool>,
    limit: Duration,
) -> Result<Upgraded, ConnectError> {
    const PAUSE: Duration = Duration::from_millis(500);
    let last = Instant::now() + limit;
    loop {
        let refusal = match tunnels.open(protocol, authority).await {
            Err(TunnelError::Refused(refusal)) => refusal,
            opened => {
                known.set(known.get() || opened.is_ok());
                return Ok(opened?.into());
            }
        };
        let waits = match refusal.status {
            StatusCode::NOT_FOUND => known.get(),
            StatusCode::SERVICE_UNAVAILABLE => true,
            _ => false,
        };
        if !waits || Instant::now() >= last {
            return Err(TunnelError::Refused(refusal).into());
        }
        tracing::debug!(%refusal, authority, "waiting for an endpoint");
        sleep(PAUSE).await;
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
    ) -> Result<Upgraded, ConnectError> {
        Ok(match self {
            Self::Bastion(tunnels, protocol) => {
                let authority = format!("{pod}.{namespace}.pod:{port}");
                tunnels.open(*protocol, &authority).await?.into()
            }
            Self::ApiServer(sessions) => {
                let stream = sessions.connect(namespace, pod, port).await?;
                Upgraded::from_transport(Box::new(stream))
            }
        })
    }
}
