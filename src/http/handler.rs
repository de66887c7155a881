//! Interface between the connections of clients and the pipeline.

use http::{HeaderMap, Response, StatusCode};
use tokio::sync::oneshot;

use super::h1::{self, FieldNames, RejectedLine, RequestError};
use super::{PacedBody, Request, Upgraded, h2};

/// Handler of the requests of a connection.
pub trait Handler {
    type Body: PacedBody;

    /// Handles a request, which is borrowed because a future keeps two copies of what it owns.
    /// `interim` is `None` if the client cannot receive interim responses.
    fn handle(
        &self,
        request: &mut Request,
        interim: Option<Interim>,
    ) -> impl Future<Output = Reply<Self::Body>>;

    /// Returns the response to a request that is malformed or exceeds a limit.
    fn reject(&self, error: RequestError, line: RejectedLine) -> Response<Self::Body>;
}

/// Response to a request, and the receiver of the connection if it is an upgrade.
#[derive(Debug)]
pub struct Reply<B> {
    pub response: Response<B>,
    /// With the response to an accepted upgrade: gets the connection or stream behind it.
    pub upgrade: Option<oneshot::Sender<Upgraded>>,
}

/// Sender of interim responses (1xx, RFC 9110 section 15.2) to the current request.
#[derive(Clone, Debug)]
pub enum Interim {
    Http1(h1::Interim),
    Http2(h2::Interim),
}

impl Interim {
    /// Returns false if a response with these headers would be dropped, so that it needs no work.
    pub fn has_room(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Http1(interim) => interim.has_room(headers),
            Self::Http2(interim) => interim.has_room(headers),
        }
    }

    /// Sends an interim response. It is dropped if the final response has begun, or the client does
    /// not read. `names` are the spellings of the endpoint.
    pub fn send(&self, status: StatusCode, headers: HeaderMap, names: Option<&FieldNames>) {
        match self {
            Self::Http1(interim) => interim.send(status, &headers, names),
            Self::Http2(interim) => interim.send(status, headers),
        }
    }
}
