//! Requests on their way to an endpoint, and the state needed to send them again.

mod replay;

use http::Request;
use http::request::Parts;

pub(super) use replay::{ReplayBody, RequestBody};

/// Request to be sent, with the state needed to send it again.
#[derive(Debug)]
pub(super) struct Pending {
    /// `None` while an attempt has it.
    request: Option<Request<RequestBody>>,
    /// Copy of the head, if the request may be sent again after an attempt consumed it. Cloned once
    /// per request, before the first attempt, because hyper consumes the original; retries, which
    /// are rare, clone it again.
    copy: Option<Parts>,
    body: Option<ReplayBody>,
    safe: bool,
}

impl Pending {
    /// `can_refuse` tells whether an endpoint may speak HTTP/2 and refuse the request without
    /// processing it.
    pub fn new(parts: Parts, body: Option<ReplayBody>, can_refuse: bool) -> Self {
        let safe = parts.method.is_safe() && body.is_none();
        let repeatable = safe || can_refuse && body.as_ref().is_none_or(ReplayBody::is_buffering);
        let copy = repeatable.then(|| parts.clone());
        Self {
            request: Some(Request::from_parts(parts, RequestBody::new(body.clone()))),
            copy,
            body,
            safe,
        }
    }

    /// Returns true if the request has a safe method and no body, so that a repetition has no
    /// effect.
    pub fn is_safe(&self) -> bool {
        self.safe
    }

    pub fn body(&self) -> Option<&ReplayBody> {
        self.body.as_ref()
    }

    /// Takes the request for an attempt. `can_refuse` tells whether the endpoint can refuse it on
    /// this connection.
    ///
    /// `None` if it was sent and no copy exists; [`Self::rewind`] and [`Self::is_safe`] tell that
    /// before.
    pub fn take(&mut self, can_refuse: bool) -> Option<Request<RequestBody>> {
        let request = self.request.take().or_else(|| {
            let parts = self.copy.clone()?;
            Some(Request::from_parts(
                parts,
                RequestBody::new(self.body.clone()),
            ))
        });
        if !can_refuse && let Some(body) = &self.body {
            // HTTP/1.1 cannot declare a request unprocessed, so once this connection has read part
            // of the body, no retry is possible. Buffering ends before the first byte is read.
            body.stop_buffering();
            self.copy = None;
        }
        request
    }

    /// Takes back a request of which nothing was sent.
    pub fn put_back(&mut self, request: Request<RequestBody>) {
        self.request = Some(request);
    }

    /// Prepares to send the request again from its first byte. False if its body is not buffered.
    pub fn rewind(&mut self) -> bool {
        self.copy.is_some() && self.body.as_ref().is_none_or(ReplayBody::rewind)
    }
}

#[cfg(test)]
mod tests {
    use super::replay::tests::{CHUNKED, receive, replay};
    use super::*;

    use http_body_util::BodyExt;
    use tokio::io::AsyncWriteExt;

    fn request(method: &str, body: Option<ReplayBody>, can_refuse: bool) -> Pending {
        let (parts, ()) = Request::builder()
            .method(method)
            .uri("/a")
            .body(())
            .unwrap()
            .into_parts();
        Pending::new(parts, body, can_refuse)
    }

    #[test]
    fn repeats_repeatable_request_any_number_of_times() {
        for (method, can_refuse) in [("GET", false), ("DELETE", true)] {
            let mut pending = request(method, None, can_refuse);
            for _ in 0..3 {
                let request = pending.take(can_refuse).unwrap();
                assert_eq!(
                    (request.method().as_str(), request.uri().path()),
                    (method, "/a")
                );
                assert!(pending.rewind(), "{method}");
            }
        }
    }

    #[test]
    fn repeats_unsafe_request_only_if_it_was_returned_unsent() {
        let mut pending = request("DELETE", None, false);
        let request = pending.take(false).unwrap();
        assert!(!pending.is_safe() && !pending.rewind());
        pending.put_back(request);
        assert!(pending.take(false).is_some());
        assert!(pending.take(false).is_none());
    }

    #[tokio::test]
    async fn request_with_body_is_not_safe() {
        let (incoming, _client) = receive(CHUNKED).await;
        assert!(!request("GET", Some(replay(incoming).0), true).is_safe());
    }

    #[tokio::test]
    async fn http1_attempt_ends_buffering() {
        let (incoming, mut client) = receive("content-length: 2").await;
        let (body, _) = replay(incoming);
        let mut pending = request("POST", Some(body.clone()), true);
        let sent = pending.take(false).unwrap();
        assert!(!body.is_buffering());
        client.write_all(b"ab").await.unwrap();
        assert_eq!(sent.into_body().collect().await.unwrap().to_bytes(), "ab");
        assert!(!pending.rewind() && pending.take(false).is_none());
    }
}
