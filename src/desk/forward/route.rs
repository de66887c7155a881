//! Way from a local connection to its target.

use std::rc::Rc;
use std::time::Duration;

use http::StatusCode;

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
    /// Pods of a workload through a bastion, in turn.
    BastionPods {
        tunnels: Rc<Tunnels>,
        protocol: Protocol,
        endpoints: Rc<Endpoints>,
        port: TargetPort,
    },
    /// Pods through the API server, in turn.
    Pods {
        sessions: Rc<Sessions>,
        endpoints: Rc<Endpoints>,
        port: TargetPort,
    },
}

/// Failure of a connection to a target.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{error}{}", remedy(.0), error = .0)]
    Tunnel(#[from] TunnelError),
    #[error(transparent)]
    Pod(#[from] DialError),
}

/// Returns what helps against a refusal of a bastion.
fn remedy(error: &TunnelError) -> &'static str {
    let TunnelError::Refused(refusal) = error else {
        return "";
    };
    match refusal.status {
        StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => "; log in again",
        StatusCode::FORBIDDEN if refusal.message.contains("services/portforward") => {
            "; the right to create pods/portforward in the namespace suffices, too"
        }
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            "; the server offers no tunnels; use --via=api-server"
        }
        StatusCode::BAD_GATEWAY => {
            "; what a pod binds to its own loopback address cannot be reached through a bastion: \
             use --via=api-server for it"
        }
        _ => "",
    }
}

impl ConnectError {
    /// Returns the kind of the failure, of which one message is enough.
    pub fn kind(&self) -> String {
        match self {
            Self::Tunnel(TunnelError::Refused(refusal)) => refusal.status.to_string(),
            Self::Tunnel(TunnelError::Login(_)) => "login".to_owned(),
            Self::Tunnel(TunnelError::NoUdp { .. }) => "udp".to_owned(),
            Self::Tunnel(TunnelError::Unreachable { .. } | TunnelError::Timeout { .. }) => {
                "unreachable".to_owned()
            }
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
        let (endpoints, port) = match self {
            Self::Bastion {
                tunnels,
                protocol,
                authority,
            } => {
                let tunnel = tunnels.open(*protocol, authority).await?;
                return Ok(Box::new(tunnel));
            }
            Self::BastionPods {
                endpoints, port, ..
            }
            | Self::Pods {
                endpoints, port, ..
            } => (endpoints, port),
        };
        let mut tries = 1;
        loop {
            let (pod, number) = endpoints.wait(port, POD_TIMEOUT).await?;
            if let Self::Pods { sessions, .. } = self
                && sessions.has_ended(endpoints.namespace(), &pod)
            {
                // Probably with its pod.
                endpoints.forget();
                continue;
            }
            match self.connect_to(endpoints.namespace(), &pod, number).await {
                Err(error) if tries < MAX_TRIES && error.is_transient() => {
                    tracing::debug!(%error, pod, "trying the next pod");
                    endpoints.forget();
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    async fn connect_to(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        Ok(match self {
            Self::Bastion {
                tunnels, protocol, ..
            }
            | Self::BastionPods {
                tunnels, protocol, ..
            } => {
                let authority = format!("{pod}.{namespace}.pod:{port}");
                Box::new(tunnels.open(*protocol, &authority).await?)
            }
            Self::Pods { sessions, .. } => Box::new(sessions.connect(namespace, pod, port).await?),
        })
    }
}
