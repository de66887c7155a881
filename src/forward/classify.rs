//! Classification of failed connections: the party to blame, whether the request may be sent again,
//! and whether the endpoint requires HTTP/1.1.

use std::net::SocketAddr;

use super::connection::SendError;
use super::error::{ConnectionError, ForwardError};
use super::http1_signal::Http1Reason;
use super::request::{Pending, ReplayBody};
use super::retry::RetrySafety;
use super::uri::InvalidRequestUri;
use crate::http::h1::ExchangeError;

/// Failure of a connection, classified.
#[derive(Debug)]
pub(super) enum Classified {
    InvalidRequestUri(InvalidRequestUri),
    /// The client aborted the request body.
    Client(ConnectionError),
    Broken {
        source: ConnectionError,
        safety: RetrySafety,
        requires_http1: bool,
    },
}

impl Classified {
    /// Returns the error of a request to an endpoint.
    pub fn at(self, address: SocketAddr) -> ForwardError {
        match self {
            Self::InvalidRequestUri(error) => error.into(),
            Self::Client(source) => ForwardError::Client(source),
            Self::Broken {
                source,
                safety,
                requires_http1,
            } => ForwardError::Broken {
                address,
                source,
                safety,
                requires_http1,
            },
        }
    }
}

/// Determines from the failure of a connection how much of the request may have been processed.
pub(super) fn classify(error: SendError, pending: &Pending<'_>) -> Classified {
    // A failed request body fails the connection too; without this check an aborting client would
    // be counted against the endpoint.
    let client_failed = pending.body().is_some_and(ReplayBody::is_broken);
    let mut requires_http1 = false;
    let (source, safety) = match error {
        SendError::InvalidRequestUri(error) => return Classified::InvalidRequestUri(error),
        SendError::Http1(error) => {
            let safety = match &error {
                ExchangeError::Io { sent: false, .. } | ExchangeError::Closed { sent: false } => {
                    RetrySafety::Unsent
                }
                ExchangeError::Io { .. } | ExchangeError::Closed { .. } => RetrySafety::IfSafe,
                // A malformed response means that the endpoint processed the request.
                ExchangeError::Response(_) | ExchangeError::Body(_) => RetrySafety::Never,
            };
            (ConnectionError::Http1(error), safety)
        }
        SendError::Http1Required => {
            requires_http1 = true;
            (ConnectionError::Http1Required, RetrySafety::IfSafe)
        }
        SendError::Http2 {
            source,
            sent,
            http1,
        } => {
            let declared = declaration(&source);
            requires_http1 = http1.is_some() || declared == Some(h2::Reason::HTTP_1_1_REQUIRED);
            let safety = match sent {
                // hyper returns the request only if it wrote none of it, for example because the
                // connection was closed while it was idle.
                false => RetrySafety::Unsent,
                // An endpoint that does not speak HTTP/2 processes no request of it.
                true if declared.is_some() || http1 == Some(Http1Reason::Response) => {
                    RetrySafety::Unprocessed
                }
                true if source.is_parse() => RetrySafety::Never,
                true => RetrySafety::IfSafe,
            };
            (ConnectionError::Http2(source), safety)
        }
    };
    if client_failed {
        return Classified::Client(source);
    }
    Classified::Broken {
        source,
        safety,
        requires_http1,
    }
}

/// Returns the reason with which the endpoint declared the request unprocessed: it refused the
/// stream, or its GOAWAY excluded it (RFC 9113 section 8.7), or it requires HTTP/1.1 (section 7).
fn declaration(error: &hyper::Error) -> Option<h2::Reason> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // Only the peer's word counts: a GOAWAY that this side sends, as after a protocol
            // error, does not tell what the endpoint has done.
            return error.reason().filter(|reason| {
                let refused = matches!(
                    *reason,
                    h2::Reason::REFUSED_STREAM | h2::Reason::HTTP_1_1_REQUIRED
                );
                error.is_remote() && (error.is_go_away() || refused)
            });
        }
        cause = error.source();
    }
    None
}
