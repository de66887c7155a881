//! Requests on their way to an endpoint, and the state needed to send them again.

mod replay;

pub use replay::{BodyError, TrailerFilter};
pub(super) use replay::{MAX_REPLAY_BYTES, ReplayBody, RequestBody};

use http::header;

use crate::http::RequestHead;

/// Request to be sent, with the state needed to send it again.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    pub head: &'a mut RequestHead,
    body: Option<ReplayBody>,
    safe: bool,
    idempotent: bool,
}

impl<'a> Pending<'a> {
    pub fn new(head: &'a mut RequestHead, body: Option<ReplayBody>) -> Self {
        let safe = head.method.is_safe() && body.is_none();
        Self {
            head,
            body,
            safe,
            idempotent: false,
        }
    }

    /// Declares that a repetition of the request has the effect of one, whatever its method, so that
    /// its body is buffered on all connections.
    pub fn idempotent(self) -> Self {
        Self {
            safe: true,
            idempotent: true,
            ..self
        }
    }

    /// Declares that a repetition may have an effect, whatever the method.
    pub fn with_effect(self) -> Self {
        Self {
            safe: false,
            ..self
        }
    }

    /// Returns true if a repetition has no effect: the request has a safe method and no body, or is
    /// declared idempotent.
    pub fn is_safe(&self) -> bool {
        self.safe
    }

    pub fn body(&self) -> Option<&ReplayBody> {
        self.body.as_ref()
    }

    /// Returns the body for an attempt. `can_refuse` tells whether the endpoint can refuse the
    /// request on this connection.
    pub fn attempt_body(&self, can_refuse: bool) -> RequestBody {
        if !(can_refuse || self.idempotent)
            && let Some(body) = &self.body
        {
            // HTTP/1.1 cannot declare a request unprocessed, so once this connection has read part
            // of the body, no retry is possible. Buffering ends before the first byte is read.
            body.stop_buffering();
        }
        RequestBody::new(self.body.clone())
    }

    /// Returns true if the client waits for 100 before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.body.is_some() && self.head.headers.contains_key(header::EXPECT)
    }

    /// Prepares to send the request again from its first byte. False if its body is not buffered.
    pub fn rewind(&mut self) -> bool {
        self.body.as_ref().is_none_or(ReplayBody::rewind)
    }
}

#[cfg(test)]
mod tests {
    use super::replay::tests::{CHUNKED, receive, replay};
    use super::*;

    use http::Request;
    use http_body_util::BodyExt;
    use tokio::io::AsyncWriteExt;

    fn head(method: &str) -> RequestHead {
        crate::testing::head(Request::builder().method(method).uri("/a"))
    }

    #[tokio::test]
    async fn only_safe_methods_without_body_are_safe() {
        assert!(Pending::new(&mut head("GET"), None).is_safe());
        assert!(!Pending::new(&mut head("DELETE"), None).is_safe());
        let (incoming, _client) = receive(CHUNKED).await;
        assert!(!Pending::new(&mut head("GET"), Some(replay(incoming).0)).is_safe());
    }

    #[tokio::test]
    async fn http1_attempt_ends_buffering() {
        let (incoming, mut client) = receive("content-length: 2").await;
        let (body, _) = replay(incoming);
        let mut head = head("POST");
        let mut pending = Pending::new(&mut head, Some(body.clone()));
        let sent = pending.attempt_body(false);
        assert!(!body.is_buffering());
        client.write_all(b"ab").await.unwrap();
        assert_eq!(sent.collect().await.unwrap().to_bytes(), "ab");
        assert!(!pending.rewind());
    }
}
