//! Responses of API servers that shut down.

use std::time::Duration;

use http::{StatusCode, header};
use tokio::time::timeout;

use super::Answer;

/// Start of the response of an API server that shuts down (`--shutdown-send-retry-after`).
const SHUTTING_DOWN: &[u8] = b"The apiserver is shutting down";
/// Maximum wait for the start of a response that may be that of a shutdown.
const PEEK_TIMEOUT: Duration = Duration::from_secs(1);

/// Recognizes the response of a server that shuts down, which has not carried the request out. The
/// start of its body distinguishes it from other limits: HTTP/2 does not show `Connection: close`.
pub(super) async fn announces_shutdown(answer: Answer) -> (Answer, bool) {
    let Answer::Response(mut response) = answer else {
        return (answer, false);
    };
    let is_text = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|media_type| media_type.as_bytes().starts_with(b"text/plain"));
    if !(response.status() == StatusCode::TOO_MANY_REQUESTS && is_text) {
        return (Answer::Response(response), false);
    }
    let peeked = timeout(PEEK_TIMEOUT, response.body_mut().peek()).await;
    let start = response.body().peeked();
    let announced = peeked.is_ok() && start.is_some_and(|start| start.starts_with(SHUTTING_DOWN));
    (Answer::Response(response), announced)
}
