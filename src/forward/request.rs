//! The bodies of requests as they pass: what the endpoint does not take the client does not send. Nothing is held back.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::headers::MAX_HEADERS;

/// How much of a body is remembered until the answer begins.
const REMEMBERED: usize = 64 * 1024;

/// A client's body, and what has passed of it, in case an HTTP/2 endpoint says that it did not look at the request. The
/// bytes pass at once all the same; that they are remembered costs no copy. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Replay(Rc<RefCell<State>>);

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

impl Replay {
    /// `received` counts the bytes as they come from the client. `keep` has them remembered.
    pub fn new(incoming: Incoming, received: Rc<Cell<u64>>, keep: bool) -> Self {
        let passed = keep.then(Vec::new);
        Self(Rc::new(RefCell::new(State { incoming, received, run: 0, passed, last: false, length: 0, broken: false })))
    }

    /// Whether all that has passed is remembered.
    pub fn keeps(&self) -> bool {
        self.0.borrow().passed.is_some()
    }

    /// Whether the client broke off: what fails then is no fault of the endpoint.
    pub fn is_broken(&self) -> bool {
        self.0.borrow().broken
    }

    /// Lets the body pass from its beginning once more. False where that is no longer remembered.
    pub fn rewind(&self) -> bool {
        let mut state = self.0.borrow_mut();
        state.run += 1;
        state.passed.is_some() && !state.last
    }

    /// The request will not be repeated. What is remembered and still to be read in this run stays until it is.
    pub fn forget(&self) {
        let mut state = self.0.borrow_mut();
        state.last = true;
        if state.run == 0 {
            state.passed = None;
        }
    }
}

impl State {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(context));
        let frame = frame.map(|frame| match frame? {
            frame if frame.trailers_ref().is_some_and(|trailers| trailers.len() > MAX_HEADERS) => {
                Err(BodyError::TooManyTrailers)
            }
            frame => Ok(frame),
        });
        self.broken |= matches!(frame, Some(Err(_)));
        if let Some(Ok(frame)) = &frame {
            let data = frame.data_ref();
            let length = data.map_or(0, Bytes::len);
            self.received.set(self.received.get() + length as u64);
            // Only a run that is through with what is remembered gets here, so that nothing of it is lost.
            self.length += length;
            if self.last || self.length > REMEMBERED {
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
    body: Option<Replay>,
    run: u32,
    /// How many of the remembered pieces have passed in this run.
    at: usize,
}

impl RequestBody {
    pub fn new(body: Option<Replay>) -> Self {
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
        let Some(body) = &this.body else { return Poll::Ready(None) };
        let mut state = body.0.borrow_mut();
        if state.run != this.run {
            return Poll::Ready(None);
        }
        let remembered = state.passed.as_ref().and_then(|passed| passed.get(this.at)).cloned();
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
            let replayed = state.passed.as_ref().is_none_or(|passed| passed.len() <= self.at);
            replayed && state.incoming.is_end_stream()
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(body) = &self.body else { return SizeHint::with_exact(0) };
        let state = body.0.borrow();
        let mut hint = state.incoming.size_hint();
        // hyper asks before the first byte: of a body that is sent again, what has passed is to pass again.
        let again = state.passed.iter().flatten().skip(self.at).map(|passed| match passed {
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
