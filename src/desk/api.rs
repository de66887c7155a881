//! Look-ups of objects through the API.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use http_body_util::{BodyExt, Limited};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::printable;
use crate::apiservers::ServerConfig;
use crate::desk::client::{Client, Login, Outgoing, SendError, USER_AGENT};
use crate::desk::credentials::Credentials;
use crate::forward::{UpgradeOutcome, UpstreamBody};
use crate::http::h1::FieldNames;
use crate::http::{RequestBody, RequestHead, RequestTarget};
use crate::model::Status;

/// Maximum time of a request, if the user sets none.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of a response in bytes.
const MAX_RESPONSE: usize = 32 * 1024 * 1024;
/// Maximum number of objects of a list.
pub const MAX_OBJECTS: u32 = 500;

/// Look-ups, by the client of the API servers.
#[derive(Debug)]
pub struct Api {
    pub client: Client,
    timeout: Duration,
}

/// Failure of a look-up.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("{message} (status {})", code.as_u16())]
    Status { code: StatusCode, message: String },
    #[error("the response of the API server to GET {path} is malformed: {source}")]
    Malformed {
        path: String,
        source: serde_json::Error,
    },
    #[error("the response of the API server to GET {path} broke off: {source}")]
    Body {
        path: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ApiError {
    /// Returns true if the object or the path does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { code, .. } if *code == StatusCode::NOT_FOUND)
    }

    /// Returns true if the same request may succeed later: no server responded, or it failed or was
    /// overloaded.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Send(error) => !matches!(error, SendError::Credentials(_)),
            Self::Body { .. } => true,
            Self::Status { code, .. } => {
                code.is_server_error() || *code == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Malformed { .. } => false,
        }
    }

    /// Returns true if the server does not serve the path at all, as a bastion that passes nothing
    /// to API servers.
    pub fn is_no_route(&self) -> bool {
        match self {
            Self::Status { code, message } => {
                let no_route = Status::route_not_found();
                *code == no_route.code && *message == no_route.message
            }
            _ => false,
        }
    }
}

/// Objects of a list.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Items<T> {
    items: Vec<T>,
}

/// The part of a `metav1.Status` that people read.
#[derive(Debug, Deserialize)]
pub struct StatusMessage {
    kind: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    details: Option<StatusDetails>,
}

#[derive(Debug, Default, Deserialize)]
struct StatusDetails {
    #[serde(default)]
    causes: Option<Vec<StatusCause>>,
}

#[derive(Debug, Deserialize)]
struct StatusCause {
    #[serde(default)]
    message: String,
}

impl StatusMessage {
    /// Returns true for the `Status` with which an API server rejects credentials.
    pub fn is_unauthorized(body: &[u8]) -> bool {
        serde_json::from_slice(body)
            .is_ok_and(|status: Self| status.kind == "Status" && status.reason == "Unauthorized")
    }

    /// Returns the message of a `Status` with its causes. `None` for other bodies.
    pub fn parse(body: &[u8]) -> Option<String> {
        let status: Self = serde_json::from_slice(body).ok()?;
        if status.kind != "Status" || status.message.is_empty() {
            return None;
        }
        let causes = status.details.and_then(|details| details.causes);
        let causes: Vec<_> = causes.into_iter().flatten().map(|it| it.message).collect();
        let message = if causes.is_empty() {
            status.message
        } else {
            format!("{}: {}", status.message, causes.join(", "))
        };
        Some(printable(&message))
    }
}

impl Api {
    pub fn new(
        servers: Vec<ServerConfig>,
        credentials: Arc<Credentials>,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            client: Client::new(servers, credentials),
            timeout: timeout.unwrap_or(TIMEOUT),
        }
    }

    /// Reads an object or a list. `path` includes the query.
    ///
    /// # Errors
    /// [`ApiError`], with the message of the API server if it responded.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let mut head = head(path);
        self.client.credentials.impersonate(&mut head.headers);
        let (code, body) = self.fetch(&head, Some(Login::Server)).await?;
        if !code.is_success() {
            let message = StatusMessage::parse(&body);
            let mut message =
                message.unwrap_or_else(|| "the API server rejects the request".into());
            if code == StatusCode::UNAUTHORIZED {
                message += ": the credentials are not accepted; log in again";
            }
            return Err(ApiError::Status { code, message });
        }
        serde_json::from_slice(&body).map_err(|source| ApiError::Malformed {
            path: path.to_owned(),
            source,
        })
    }

    /// Lists the objects of a collection that a label selector matches.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn select<T: DeserializeOwned>(
        &self,
        path: &str,
        selector: &str,
    ) -> Result<Vec<T>, ApiError> {
        let selector = escape(selector);
        let path = format!("{path}?labelSelector={selector}&limit={MAX_OBJECTS}");
        let items: Items<T> = self.get(&path).await?;
        Ok(items.items)
    }

    /// Sends a request, and reads the complete response.
    ///
    /// # Errors
    /// [`ApiError`] without a complete response in time.
    pub async fn fetch(
        &self,
        head: &RequestHead,
        login: Option<Login>,
    ) -> Result<(StatusCode, Vec<u8>), ApiError> {
        let sent = self.client.send(Outgoing {
            head,
            body: RequestBody::Empty,
            upgrade: None,
            interim: None,
            login,
            timeout: Some(self.timeout),
        });
        let (UpgradeOutcome::Ignored(response) | UpgradeOutcome::Refused(response)) =
            sent.await?.response
        else {
            unreachable!("the request offers no upgrade");
        };
        let code = response.status();
        let body = tokio::time::timeout(self.timeout, read(response.into_body()))
            .await
            .map_err(|_| SendError::Timeout(self.timeout))?;
        let body = body.map_err(|source| ApiError::Body {
            path: head.target.path_and_query().to_owned(),
            source,
        })?;
        Ok((code, body))
    }

    /// Returns true if the URLs of the servers have no path, as that of a bastion.
    pub fn are_roots(&self) -> bool {
        let servers = self.client.forwarder.servers.snapshot();
        servers.iter().all(|server| server.config.path.is_empty())
    }
}

/// Returns the head of a GET. `path` includes the query.
pub fn head(path: &str) -> RequestHead {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, USER_AGENT);
    RequestHead {
        method: Method::GET,
        // Names are escaped.
        target: RequestTarget::parse(&Method::GET, path.as_bytes())
            .unwrap_or_else(|_| RequestTarget::from_valid_path("/")),
        version: Version::HTTP_11,
        headers,
        names: FieldNames::default(),
    }
}

async fn read(body: UpstreamBody) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let collected = Limited::new(body, MAX_RESPONSE).collect().await?;
    Ok(collected.to_bytes().to_vec())
}

/// Escapes a path segment or the value of a query.
pub fn escape(text: &str) -> String {
    /// All but the unreserved characters (RFC 3986 section 2.3).
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_a_status_has_its_causes() {
        for (body, expected) in [
            (r#"{"kind":"Status","message":"m"}"#, Some("m")),
            (
                r#"{"kind":"Status","message":"m","details":{"causes":[{"message":"a"},{"message":"b"}]}}"#,
                Some("m: a, b"),
            ),
            (
                r#"{"kind":"Status","message":"m","details":{"causes":null}}"#,
                Some("m"),
            ),
            (
                r#"{"kind":"Status","message":"m","details":null}"#,
                Some("m"),
            ),
            (
                r#"{"kind":"Status","message":"a\u001b[2Jb\nc"}"#,
                Some("a [2Jb c"),
            ),
            (r#"{"kind":"Pod","message":"m"}"#, None),
            ("not found", None),
        ] {
            assert_eq!(
                StatusMessage::parse(body.as_bytes()).as_deref(),
                expected,
                "{body}"
            );
        }
    }
}
