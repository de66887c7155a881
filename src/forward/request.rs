//! The bodies of requests as they pass: what the endpoint does not take the client does not send.
//! Nothing is held back.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::http::MAX_HEADERS;

/// How much of a body is remembered until the answer begins.
const MAX_REPLAY_BYTES: usize = 64 * 1024;

/// A request that is to be sent, with what it takes to send it again.
#[derive(Debug)]
pub(super) struct Pending {
    /// None while an attempt has it.
    request: Option<Request<RequestBody>>,
    /// A copy, where the request may be repeated after an attempt has used it up. Cloned once per
    /// request, before the first attempt, because hyper consumes the original; repetitions, which
    /// are rare, clone it again.
    copy: Option<Parts>,
    body: Option<ReplayBody>,
    safe: bool,
}

impl Pending {
    /// `can_refuse` is whether an endpoint may speak HTTP/2 and refuse the request without a look
    /// at it.
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

    /// Whether the request has a safe method and no body, so that to repeat it changes nothing.
    pub fn is_safe(&self) -> bool {
        self.safe
    }

    pub fn body(&self) -> Option<&ReplayBody> {
        self.body.as_ref()
    }

    /// Takes the request for an attempt on a connection on which the endpoint can refuse it, or
    /// cannot.
    ///
    /// None where it was sent and no copy was kept: [`Self::rewind`] and [`Self::is_safe`] tell
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
            // HTTP/1.1 has no way to say that a request was not looked at: this body cannot be
            // needed again.
            body.stop_buffering();
            self.copy = None;
        }
        request
    }

    /// Takes back a request of which not a byte was sent.
    pub fn put_back(&mut self, request: Request<RequestBody>) {
        self.request = Some(request);
    }

    /// Makes ready to send the request again from its beginning. False where its body is no longer
    /// remembered.
    pub fn rewind(&mut self) -> bool {
        self.copy.is_some() && self.body.as_ref().is_none_or(ReplayBody::rewind)
    }
}

/// A client's body, and what has passed of it, in case an HTTP/2 endpoint says that it did not look
/// at the request. The bytes pass at once all the same; that they are remembered costs no copy.
/// Clones share it.
#[derive(Clone, Debug)]
pub(super) struct ReplayBody(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    incoming: Incoming,
    received: Rc<Cell<u64>>,
    /// Counts up with every rewind: who holds an older one reads no more.
    run: u32,
    /// What has passed, from the first byte. None once it is too much, or no longer needed.
    passed: Option<Vec<Passed>>,
    /// Nobody will ask for it again: it is kept only until the run that reads it is through.
    last: bool,
    length: usize,
    /// The client broke off.
    broken: bool,
    /// The time when the last of it came from the client.
    ended: Option<Instant>,
}

/// Why a client's body does not end as it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error(transparent)]
    Incoming(#[from] hyper::Error),
    #[error("more than {} trailer fields", MAX_HEADERS)]
    TooManyTrailers,
}

#[derive(Clone, Debug)]
enum Passed {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Passed {
    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

impl ReplayBody {
    /// `received` counts the bytes as they come from the client. `keep` has them remembered.
    pub fn new(incoming: Incoming, received: Rc<Cell<u64>>, keep: bool) -> Self {
        let passed = keep.then(Vec::new);
        let (run, length, last, broken, ended) = (0, 0, false, false, None);
        Self(Rc::new(RefCell::new(State {
            incoming,
            received,
            run,
            passed,
            last,
            length,
            broken,
            ended,
        })))
    }

    /// Whether all that has passed is remembered.
    pub fn is_buffering(&self) -> bool {
        self.0.borrow().passed.is_some()
    }

    /// Whether the client broke off: what fails then is no fault of the endpoint.
    pub fn is_broken(&self) -> bool {
        self.0.borrow().broken
    }

    /// The time when the last of it came from the client. None where more is to come.
    pub fn ended(&self) -> Option<Instant> {
        self.0.borrow().ended
    }

    /// Lets the body pass from its beginning once more. False where that is no longer remembered.
    pub fn rewind(&self) -> bool {
        let mut state = self.0.borrow_mut();
        state.run += 1;
        state.passed.is_some() && !state.last
    }

    /// The request will not be repeated. What is remembered and still to be read in this run stays
    /// until it is.
    pub fn stop_buffering(&self) {
        let mut state = self.0.borrow_mut();
        state.last = true;
        if state.run == 0 {
            state.passed = None;
        }
    }
}

impl State {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(context));
        let frame = frame.map(|frame| match frame? {
            frame
                if frame
                    .trailers_ref()
                    .is_some_and(|trailers| trailers.len() > MAX_HEADERS) =>
            {
                Err(BodyError::TooManyTrailers)
            }
            frame => Ok(frame),
        });
        self.broken |= matches!(frame, Some(Err(_)));
        if self.ended.is_none() && (frame.is_none() || self.incoming.is_end_stream()) {
            self.ended = Some(Instant::now());
        }
        if let Some(Ok(frame)) = &frame {
            let data = frame.data_ref();
            let length = data.map_or(0, Bytes::len);
            self.received.set(self.received.get() + length as u64);
            // Only a run that is through with what is remembered gets here, so that nothing of it
            // is lost.
            self.length += length;
            if self.last || self.length > MAX_REPLAY_BYTES {
                self.passed = None;
            }
            if let Some(passed) = &mut self.passed {
                let data = data.cloned().map(Passed::Data);
                passed.extend(data.or_else(|| frame.trailers_ref().cloned().map(Passed::Trailers)));
            }
        }
        Poll::Ready(frame)
    }
}

/// The body of a request on its way to an endpoint.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Option<ReplayBody>,
    run: u32,
    /// How many of the remembered pieces have passed in this run.
    at: usize,
}

impl RequestBody {
    pub fn new(body: Option<ReplayBody>) -> Self {
        let run = body.as_ref().map_or(0, |body| body.0.borrow().run);
        Self { body, run, at: 0 }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(body) = &this.body else {
            return Poll::Ready(None);
        };
        let mut state = body.0.borrow_mut();
        if state.run != this.run {
            return Poll::Ready(None);
        }
        let remembered = state
            .passed
            .as_ref()
            .and_then(|passed| passed.get(this.at))
            .cloned();
        let frame = match remembered {
            Some(passed) => Some(Ok(passed.frame())),
            None => std::task::ready!(state.poll_frame(context)),
        };
        this.at += 1;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| {
            let state = body.0.borrow();
            let replayed = state
                .passed
                .as_ref()
                .is_none_or(|passed| passed.len() <= self.at);
            replayed && state.incoming.is_end_stream()
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(body) = &self.body else {
            return SizeHint::with_exact(0);
        };
        let state = body.0.borrow();
        let mut hint = state.incoming.size_hint();
        // hyper asks before the first byte: of a body that is sent again, what has passed is to
        // pass again.
        let again = state
            .passed
            .iter()
            .flatten()
            .skip(self.at)
            .map(|passed| match passed {
                Passed::Data(data) => data.len() as u64,
                Passed::Trailers(_) => 0,
            });
        let again: u64 = again.sum();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + again);
        }
        hint.set_lower(hint.lower() + again);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(method: &str, can_refuse: bool) -> Pending {
        let (parts, ()) = Request::builder()
            .method(method)
            .uri("/a")
            .body(())
            .unwrap()
            .into_parts();
        Pending::new(parts, None, can_refuse)
    }

    #[test]
    fn a_request_that_may_be_repeated_is_repeated_as_often_as_it_takes() {
        for (method, can_refuse) in [("GET", false), ("DELETE", true)] {
            let mut pending = pending(method, can_refuse);
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
    fn a_request_that_may_have_acted_is_sent_once_unless_it_comes_back() {
        let mut pending = pending("DELETE", false);
        let request = pending.take(false).unwrap();
        assert!(!pending.is_safe() && !pending.rewind());
        pending.put_back(request);
        assert!(pending.take(false).is_some());
        assert!(pending.take(false).is_none());
    }
}
