//! Errors of the upstream side: the party to blame, and whether a retry is safe.

use std::net::SocketAddr;

use http::StatusCode;

use super::dial::DialError;
use super::request::BodyError;
use super::retry::RetrySafety;
use super::uri::InvalidRequestUri;
use crate::http::MAX_HEADERS;
use crate::http::h1::ExchangeError;
use crate::model::error_chain;

/// Party to blame for an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client disconnected, or sent an invalid request body.
    Client,
    /// The endpoint is unreachable, closed the connection, or sent an invalid response.
    Upstream,
    /// A bug in this program.
    Bastion,
}

/// Failure to get a response from any endpoint. [`Self::blame`] names the party that caused it,
/// [`Self::retry_safety`] whether the request may be sent again.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Every connect failed; in the order in which the endpoints were tried.
    #[error("{}", join(.0))]
    Dial(Vec<DialError>),
    /// The connection failed before the head of the response, or the response was not valid HTTP.
    /// `safety` tells how much of the request may have reached the endpoint. `requires_http1` is
    /// true if the endpoint requires HTTP/1.1.
    #[error("{address}: {source}")]
    Broken {
        address: SocketAddr,
        source: ConnectionError,
        safety: RetrySafety,
        requires_http1: bool,
    },
    /// The request cannot be written in the protocol of its connection.
    #[error("the request URI has no form in the protocol of the endpoint: {0}")]
    InvalidRequestUri(#[from] InvalidRequestUri),
    /// The client aborted the request body.
    #[error("the client aborted the request body: {0}")]
    Client(ConnectionError),
    /// The endpoint responded to an upgrade with neither 101 nor an error (C88).
    #[error("invalid upgrade response: status code {}", .0.as_u16())]
    InvalidUpgrade(StatusCode),
    /// The endpoint responded with 101 to a request without an upgrade.
    #[error("backend tried to switch protocol {0:?} when \"\" was requested")]
    UnrequestedUpgrade(String),
    /// The endpoint responded with 101 and named no protocol, or one that was not offered.
    #[error("backend tried to switch protocol {chosen:?} when {offered:?} was requested")]
    UnofferedUpgrade { chosen: String, offered: String },
    /// The response has more header fields than are forwarded. The endpoint processed the request.
    #[error("the response has more than {} header fields", MAX_HEADERS)]
    TooManyHeaders,
    /// The endpoint responded with 101 and a wrong or missing `Sec-WebSocket-Accept` (RFC 6455
    /// section 4.2.2).
    #[error("invalid upgrade response: Sec-WebSocket-Accept does not match the key")]
    InvalidAccept,
}

/// Failure of a connection to an endpoint, or of the request body that it sends.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error(transparent)]
    Http1(#[from] ExchangeError<BodyError>),
    #[error("{}", error_chain(.0))]
    Http2(#[from] hyper::Error),
    /// GOAWAY with `HTTP_1_1_REQUIRED`.
    #[error("the endpoint requires HTTP/1.1")]
    Http1Required,
}

impl ForwardError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Client(_) => Blame::Client,
            Self::InvalidRequestUri(_) => Blame::Bastion,
            Self::Dial(_)
            | Self::Broken { .. }
            | Self::InvalidUpgrade(_)
            | Self::UnrequestedUpgrade(_)
            | Self::UnofferedUpgrade { .. }
            | Self::TooManyHeaders
            | Self::InvalidAccept => Blame::Upstream,
        }
    }

    /// Returns true if the endpoint requires HTTP/1.1.
    pub(super) fn requires_http1(&self) -> bool {
        matches!(
            self,
            Self::Broken {
                requires_http1: true,
                ..
            }
        )
    }

    pub fn retry_safety(&self) -> RetrySafety {
        match self {
            Self::Dial(_) => RetrySafety::Unsent,
            Self::Broken { safety, .. } => *safety,
            // There is no client to retry for.
            Self::Client(_)
            // A retry would fail the same way.
            | Self::InvalidRequestUri(_)
            // Any response means that the request was processed, even if it is not forwarded.
            | Self::InvalidUpgrade(_)
            | Self::UnrequestedUpgrade(_)
            | Self::UnofferedUpgrade { .. }
            | Self::TooManyHeaders
            | Self::InvalidAccept => RetrySafety::Never,
        }
    }

    /// Returns the text for the access log: the error, the party to blame, and whether the request
    /// may have taken effect.
    pub fn log_text(&self) -> String {
        let blame = match self.blame() {
            Blame::Client => "client",
            Blame::Upstream => "upstream",
            Blame::Bastion => "internal",
        };
        let effect = match self.retry_safety() {
            RetrySafety::Unsent => "the request was not sent",
            RetrySafety::Unprocessed => "the request was not processed",
            RetrySafety::IfSafe | RetrySafety::Never => "the request may have been processed",
        };
        format!("{self} ({blame} error; {effect})")
    }

    /// Prepends the failed connects of earlier attempts.
    pub(super) fn after(self, mut earlier: Vec<DialError>) -> Self {
        match self {
            Self::Dial(last) => {
                earlier.extend(last);
                Self::Dial(earlier)
            }
            error => error,
        }
    }
}

fn join(errors: &[DialError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_report_blame_and_retry_safety() {
        let address = "10.0.0.1:80".parse().unwrap();
        let dial = ForwardError::Dial(vec![DialError::Timeout { address }]);
        let upgrade = ForwardError::InvalidUpgrade(StatusCode::OK);
        let unrequested = ForwardError::UnrequestedUpgrade("x".into());
        for (error, blame, safety) in [
            (dial, Blame::Upstream, RetrySafety::Unsent),
            (
                InvalidRequestUri::from("".parse::<http::uri::PathAndQuery>().unwrap_err()).into(),
                Blame::Bastion,
                RetrySafety::Never,
            ),
            (upgrade, Blame::Upstream, RetrySafety::Never),
            (unrequested, Blame::Upstream, RetrySafety::Never),
            (
                ForwardError::InvalidAccept,
                Blame::Upstream,
                RetrySafety::Never,
            ),
        ] {
            assert_eq!(
                (error.blame(), error.retry_safety()),
                (blame, safety),
                "{error}"
            );
        }
    }

    #[test]
    fn log_text_names_blame_and_effect() {
        let address = "10.0.0.1:80".parse().unwrap();
        let error = ForwardError::Dial(vec![DialError::Timeout { address }]);
        assert_eq!(
            error.log_text(),
            "dial tcp 10.0.0.1:80: i/o timeout (upstream error; the request was not sent)"
        );
    }

    #[test]
    fn lists_failed_connects_in_order_of_attempts() {
        let failed = |last: u8| DialError::Timeout {
            address: ([10, 0, 0, last], 80).into(),
        };
        let error = ForwardError::Dial(vec![failed(3)]).after(vec![failed(1), failed(2)]);
        let expected = [1, 2, 3].map(|last| format!("dial tcp 10.0.0.{last}:80: i/o timeout"));
        assert_eq!(error.to_string(), expected.join("; "));
    }
}
