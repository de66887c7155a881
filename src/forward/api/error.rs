//! Failures of requests to the API servers.

use crate::forward::uri::InvalidRequestUri;
use crate::forward::{ConnectionError, ForwardError};

/// Failure of a request to the API servers.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No server could be reached; nothing was carried out.
    #[error("no API server can be reached ({0})")]
    Unreachable(String),
    /// The last server that was tried failed; the request has no effect.
    #[error("the API server {server} failed: {source}")]
    Failed {
        server: String,
        source: ConnectionError,
    },
    /// The connection broke after the request was sent, and a repetition could have another effect.
    #[error(
        "the connection to API server {server} broke, and the request may have been carried out: {source}"
    )]
    Interrupted {
        server: String,
        source: ConnectionError,
    },
    /// The client aborted the request body.
    #[error("the client aborted the request body: {0}")]
    Client(ConnectionError),
    #[error("the request URI has no form in the protocol of the API server: {0}")]
    InvalidRequestUri(#[from] InvalidRequestUri),
    /// The response to an upgrade, or a 101 without one, cannot be forwarded.
    #[error(transparent)]
    Response(#[from] ForwardError),
}
