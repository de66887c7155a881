//! Bodies of requests, as far as they can be sent again.

use std::rc::Rc;

use bytes::Bytes;
use http::header;
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::forward::{OutgoingBody, TrailerFilter};
use crate::http::{ReceiveError, RequestBody, RequestHead};

/// Maximum length in bytes of a body that is read before the request is sent, so that it can be sent
/// again with other credentials.
const MAX_KEPT_BODY: u64 = 64 * 1024;

/// Body of a request, as far as it can be sent again.
pub(super) enum Content {
    None,
    Kept(Bytes),
    Streamed(RequestBody),
}

impl Content {
    /// Reads a body that is short and of known length, if the request may be sent again.
    pub async fn read(
        body: RequestBody,
        head: &RequestHead,
        may_repeat: bool,
    ) -> Result<Self, ReceiveError> {
        if matches!(body, RequestBody::Empty) {
            return Ok(Self::None);
        }
        let is_short = body
            .size_hint()
            .exact()
            .is_some_and(|length| length <= MAX_KEPT_BODY);
        // A client that waits for 100 sends its body only once the server has accepted the request.
        if !may_repeat || !is_short || head.headers.contains_key(header::EXPECT) {
            return Ok(Self::Streamed(body));
        }
        Ok(Self::Kept(body.collect().await?.to_bytes()))
    }

    pub fn can_repeat(&self) -> bool {
        !matches!(self, Self::Streamed(_))
    }

    /// Returns the body of an attempt. One that is streamed has a single attempt.
    pub fn outgoing(&mut self) -> Option<OutgoingBody> {
        let body = match self {
            Self::None => return None,
            Self::Kept(bytes) => RequestBody::Full(Box::new(bytes.clone())),
            Self::Streamed(body) => std::mem::replace(body, RequestBody::Empty),
        };
        Some(outgoing(body))
    }
}

/// Returns the body of a request.
pub fn outgoing(body: RequestBody) -> OutgoingBody {
    OutgoingBody {
        body,
        received: Rc::default(),
        trailers: TrailerFilter(Rc::new(|_| {})),
    }
}
