//! Upgrade of a connection to the port-forward protocol: in a WebSocket, else SPDY directly.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Collected, Limited};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::session::Session;
use super::websocket::WebSocket;
use crate::apiservers::RequestGuard;
use crate::desk::credentials::{Credentials, CredentialsError, Presented};
use crate::forward::{
    ApiError, ApiForwarder, ApiRequest, Upgrade, UpgradeOutcome, UpstreamBody, new_websocket_key,
    websocket_accept,
};
use crate::http::{RequestHead, RequestTarget, UpgradedConnection};

/// Version of the protocol.
const PROTOCOL: HeaderValue = HeaderValue::from_static("portforward.k8s.io");
/// WebSocket subprotocol that carries SPDY (KEP-4006).
const TUNNEL: HeaderValue = HeaderValue::from_static("SPDY/3.1+portforward.k8s.io");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Maximum time of one handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of a response that refuses an upgrade.
const MAX_REFUSAL: usize = 64 * 1024;

/// Failure to connect to a pod.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The server refused both upgrades. The message is that of its `Status`.
    #[error("the API server refuses port-forward to the pod: {message} ({status})")]
    Refused { status: StatusCode, message: String },
    #[error("the API server did not answer within 30 s")]
    Timeout,
}

/// Protocol of the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    WebSocket,
    Spdy,
}

/// Answer that is not an upgrade.
struct Refusal {
    status: StatusCode,
    message: String,
}

/// Connects to a pod. The WebSocket needs the verbs `get` and `create` of `pods/portforward`. SPDY
/// needs only `create`, and is tried after any answer to the WebSocket but an upgrade. After a 401
/// the credentials are renewed once.
///
/// # Errors
/// [`OpenError`] if no API server could be reached, or it refused both upgrades.
pub async fn open(
    forwarder: &ApiForwarder,
    credentials: &Credentials,
    namespace: &str,
    pod: &str,
) -> Result<Session, OpenError> {
    let handshake = Handshake {
        forwarder,
        credentials,
        path: path(namespace, pod),
    };
    let opened = credentials.with_renewal(
        async |presented: &Presented| handshake.open(presented).await,
        |opened| matches!(opened, Err(refusal) if refusal.status == StatusCode::UNAUTHORIZED),
    );
    Ok(opened.await??)
}

impl From<Refusal> for OpenError {
    fn from(Refusal { status, message }: Refusal) -> Self {
        Self::Refused { status, message }
    }
}

fn path(namespace: &str, pod: &str) -> String {
    let [namespace, pod] =
        [namespace, pod].map(|name| utf8_percent_encode(name, UNRESERVED).to_string());
    format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward")
}

/// Characters to encode in a segment of a path (RFC 3986 section 2.3).
const UNRESERVED: &percent_encoding::AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

struct Handshake<'a> {
    forwarder: &'a ApiForwarder,
    credentials: &'a Credentials,
    path: String,
}

impl Handshake<'_> {
    async fn open(&self, presented: &Presented) -> Result<Result<Session, Refusal>, OpenError> {
        let refusal = match self.upgrade(Transport::WebSocket, presented).await? {
            Err(refusal) if refusal.status != StatusCode::UNAUTHORIZED => refusal,
            result => return Ok(result),
        };
        tracing::debug!(
            status = %refusal.status,
            message = refusal.message,
            "no WebSocket for port-forward; trying SPDY"
        );
        self.upgrade(Transport::Spdy, presented).await
    }

    async fn upgrade(
        &self,
        transport: Transport,
        presented: &Presented,
    ) -> Result<Result<Session, Refusal>, OpenError> {
        let key = new_websocket_key();
        let mut head = self.head(transport, &key, presented.authorization());
        let Some(upgrade) = Upgrade::from_request(&head, None) else {
            unreachable!("the request offers an upgrade");
        };
        let request = ApiRequest {
            head: &mut head,
            body: None,
            credential: presented.credential(),
            interim: None,
        };
        let answer = timeout(HANDSHAKE_TIMEOUT, self.forwarder.upgrade(request, &upgrade)).await;
        let answer = match answer.map_err(|_| OpenError::Timeout)? {
            Ok(answer) => answer.response,
            // A switch to a protocol that was not offered.
            Err(ApiError::Response(error)) => return Ok(Err(refusal(&error.to_string()))),
            Err(error) => return Err(error.into()),
        };
        let (response, upstream, guard) = match answer {
            UpgradeOutcome::Switched {
                response,
                upstream,
                guard,
            } => (response, upstream, guard),
            UpgradeOutcome::Refused(response) | UpgradeOutcome::Ignored(response) => {
                return Ok(Err(Refusal::read(response).await));
            }
        };
        let connection = Connection {
            io: upstream,
            _guard: guard,
        };
        Ok(match transport {
            Transport::WebSocket if is_tunnel(&response, &key) => {
                Ok(Session::new(WebSocket::new(connection)))
            }
            Transport::Spdy if response.headers().get(PROTOCOL_VERSION) == Some(&PROTOCOL) => {
                Ok(Session::new(connection))
            }
            _ => Err(refusal("it switched to another protocol")),
        })
    }

    fn head(
        &self,
        transport: Transport,
        key: &HeaderValue,
        authorization: Option<&HeaderValue>,
    ) -> RequestHead {
        let mut headers = self.credentials.impersonation().clone();
        let mut set = |name: HeaderName, value: &HeaderValue| headers.insert(name, value.clone());
        set(header::CONNECTION, &HeaderValue::from_static("Upgrade"));
        let method = match transport {
            Transport::WebSocket => {
                set(header::UPGRADE, &HeaderValue::from_static("websocket"));
                set(header::SEC_WEBSOCKET_KEY, key);
                set(
                    header::SEC_WEBSOCKET_VERSION,
                    &HeaderValue::from_static("13"),
                );
                set(header::SEC_WEBSOCKET_PROTOCOL, &TUNNEL);
                Method::GET
            }
            Transport::Spdy => {
                set(header::UPGRADE, &HeaderValue::from_static("SPDY/3.1"));
                set(PROTOCOL_VERSION, &PROTOCOL);
                Method::POST
            }
        };
        if let Some(authorization) = authorization {
            set(header::AUTHORIZATION, authorization);
        }
        RequestHead {
            method,
            target: RequestTarget::from_valid_path(&self.path),
            version: Version::HTTP_11,
            headers,
            names: Default::default(),
        }
    }
}

fn is_tunnel(response: &Response<()>, key: &HeaderValue) -> bool {
    let headers = response.headers();
    let accept = headers.get(header::SEC_WEBSOCKET_ACCEPT);
    headers.get(header::SEC_WEBSOCKET_PROTOCOL) == Some(&TUNNEL)
        && accept.is_some_and(|accept| accept == &websocket_accept(key))
}

/// Describes a switch that cannot be used.
fn refusal(message: &str) -> Refusal {
    Refusal {
        status: StatusCode::SWITCHING_PROTOCOLS,
        message: message.to_owned(),
    }
}

impl Refusal {
    /// Reads the message of a response: that of a `Status`, or text.
    async fn read(response: Response<UpstreamBody>) -> Self {
        #[derive(Deserialize)]
        struct Status {
            message: String,
        }
        let (head, body) = response.into_parts();
        let body = timeout(HANDSHAKE_TIMEOUT, Limited::new(body, MAX_REFUSAL).collect()).await;
        let body = body.ok().and_then(Result::ok);
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        let message = match serde_json::from_slice(&body) {
            Ok(Status { message }) => message,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        // A terminal shows it.
        let message: String = message
            .chars()
            .map(|char| if char.is_control() { ' ' } else { char })
            .take(1000)
            .collect();
        Self {
            status: head.status,
            message: match message.trim() {
                "" => "no reason given".to_owned(),
                message => message.to_owned(),
            },
        }
    }
}

/// Connection to an API server, which counts as an outstanding request.
#[derive(Debug)]
struct Connection {
    io: UpgradedConnection,
    _guard: Option<Box<RequestGuard>>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
