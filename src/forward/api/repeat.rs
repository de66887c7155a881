//! Requests that may be sent to another API server.

use http::{HeaderMap, Method, header};

use crate::apiservers::Credential;
use crate::forward::OutgoingBody;
use crate::forward::request::{MAX_REPLAY_BYTES, Pending, ReplayBody};
use crate::forward::retry::RetrySafety;

/// Maximum number of bytes of a server-side apply that are kept for a retry, if its caller is known:
/// somewhat less than etcd's limit for an object.
const MAX_APPLY_BYTES: usize = 1024 * 1024;
/// Media types of server-side apply, without parameters.
const APPLY_TYPES: [&str; 2] = [
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
];
/// Limits the replay of a body.
pub(super) fn replayable(
    outgoing: OutgoingBody,
    credential: Credential,
    is_apply: bool,
) -> ReplayBody {
    let OutgoingBody {
        body,
        received,
        trailers,
    } = outgoing;
    let limit = match credential {
        // Anyone can send it.
        Credential::Unproven | Credential::UnprovenWatch => MAX_REPLAY_BYTES,
        _ if is_apply => MAX_APPLY_BYTES,
        _ => MAX_REPLAY_BYTES,
    };
    ReplayBody::new(body, received, trailers, limit)
}

/// Returns true for server-side apply: a repetition changes nothing.
pub(super) fn is_apply(method: &Method, headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE);
    let media_type = media_type.and_then(|value| value.to_str().ok());
    let media_type = media_type.and_then(|value| value.split(';').next());
    *method == Method::PATCH
        && media_type.is_some_and(|media_type| {
            let media_type = media_type.trim();
            APPLY_TYPES
                .iter()
                .any(|apply| media_type.eq_ignore_ascii_case(apply))
        })
}

/// Returns true if a request that failed may be sent again, after preparing its body for that.
pub(super) fn is_repeatable(safety: RetrySafety, pending: &mut Pending<'_>) -> bool {
    match safety {
        // The body was not touched.
        RetrySafety::Unsent => true,
        RetrySafety::Unprocessed => pending.rewind(),
        RetrySafety::IfSafe => pending.is_safe() && pending.rewind(),
        RetrySafety::Never => false,
    }
}
