//! Request bodies, streamed with backpressure: a frame is read from the client only when the
//! endpoint's connection asks for it. The first bytes are buffered, so that a request that an
//! HTTP/2 endpoint refused can be sent again.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::http::{MAX_HEADERS, ReceiveError, RequestBody as Incoming};

/// Maximum number of body bytes that are buffered for a retry until the response begins.
pub(in crate::forward) const MAX_REPLAY_BYTES: usize = 64 * 1024;

/// Maximum memory of the buffered frames of all bodies of a worker. Beyond it, bodies are not
/// buffered, so that their requests cannot be sent again.
const MAX_HELD_BYTES: usize = 16 * 1024 * 1024;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Body of a client's request, with a buffer of the frames read so far. The frames pass through
/// without delay, and buffering copies no data: [`Bytes`] is reference-counted. Clones share one
/// state.
#[derive(Clone, Debug)]
pub(in crate::forward) struct ReplayBody(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    incoming: Incoming,
    received: Rc<Cell<u64>>,
    filter: TrailerFilter,
    /// Number of the current attempt; every rewind increments it. The body of an earlier attempt
    /// may still be owned by hyper's connection task, and must not take frames from the current
    /// one.
    attempt: u32,
    /// Frames read from the client, from the first one. `None` if they exceed the limit, or are no
    /// longer needed.
    buffered: Option<Vec<BufferedFrame>>,
    /// No further attempt will follow: the buffer is kept only until the current attempt has read
    /// it.
    last_attempt: bool,
    /// Bytes read from the client.
    length: usize,
    /// Maximum number of bytes that are buffered.
    limit: usize,
    /// Memory of the buffered frames, at most twice the limit: small ones cost more than their bytes.
    held: usize,
    /// The client aborted the body.
    broken: bool,
    /// Time when the client sent the last frame.
    ended: Option<Instant>,
}

/// Removes trailers of the client that must not reach the endpoint.
#[derive(Clone)]
pub struct TrailerFilter(pub Rc<dyn Fn(&mut HeaderMap)>);

impl fmt::Debug for TrailerFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrailerFilter")
    }
}

/// Error of a client's request body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Incoming(#[from] ReceiveError),
    #[error("the request has more than {} trailer fields", MAX_HEADERS)]
    TooManyTrailers,
}

#[derive(Clone, Debug)]
enum BufferedFrame {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl BufferedFrame {
    fn from_frame(frame: &Frame<Bytes>) -> Option<Self> {
        let data = frame.data_ref().cloned().map(Self::Data);
        data.or_else(|| frame.trailers_ref().cloned().map(Self::Trailers))
    }

    fn into_frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }

    fn data_len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

impl ReplayBody {
    /// `received` counts the bytes as they come from the client. `limit` is the number of bytes to
    /// buffer for retries, 0 for none.
    pub fn new(
        incoming: Incoming,
        received: Rc<Cell<u64>>,
        filter: TrailerFilter,
        limit: usize,
    ) -> Self {
        Self(Rc::new(RefCell::new(State {
            incoming,
            received,
            filter,
            attempt: 0,
            buffered: (limit > 0).then(Vec::new),
            last_attempt: false,
            length: 0,
            limit,
            held: 0,
            broken: false,
            ended: None,
        })))
    }

    /// Returns true if all frames read so far are buffered.
    #[cfg(test)]
    pub fn is_buffering(&self) -> bool {
        self.0.borrow().buffered.is_some()
    }

    /// Returns true if the client aborted the body, in which case the endpoint is not to blame for
    /// the failure of the request.
    pub fn is_broken(&self) -> bool {
        self.0.borrow().broken
    }

    /// Returns the time when the client sent the last frame. `None` while more may follow.
    pub fn ended(&self) -> Option<Instant> {
        self.0.borrow().ended
    }

    /// Starts a new attempt, which reads the body from its first byte. False if it is not buffered.
    pub fn rewind(&self) -> bool {
        let mut state = self.0.borrow_mut();
        // Incremented even without a buffer: the earlier attempt has failed and must not consume
        // any more of the body.
        state.attempt += 1;
        state.buffered.is_some() && !state.last_attempt
    }

    /// Declares that no further attempt will follow. Buffered frames that the current attempt has
    /// not read yet stay until it has.
    pub fn stop_buffering(&self) {
        let mut state = self.0.borrow_mut();
        state.last_attempt = true;
        // The first attempt reads from the client directly and never from the buffer.
        if state.attempt == 0 {
            state.release();
        }
    }
}

impl State {
    /// Ends the buffering.
    fn release(&mut self) {
        self.buffered = None;
        HELD.set(HELD.get() - std::mem::take(&mut self.held));
    }

    /// Reads the next frame from the client.
    fn poll_client(
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
            frame => Ok(match frame.into_trailers() {
                Ok(mut trailers) => {
                    (self.filter.0)(&mut trailers);
                    Frame::trailers(trailers)
                }
                Err(frame) => frame,
            }),
        });
        // Too many trailers count as well: the client, not the endpoint, is the cause.
        self.broken |= matches!(frame, Some(Err(_)));
        // `is_end_stream` gives the time without another poll, which hyper omits after the last
        // byte of a body with a Content-Length.
        if self.ended.is_none() && (frame.is_none() || self.incoming.is_end_stream()) {
            self.ended = Some(Instant::now());
        }
        if let Some(Ok(frame)) = &frame {
            let length = frame.data_ref().map_or(0, Bytes::len);
            // Counted here and not per attempt, so that replayed bytes count once.
            self.received.set(self.received.get() + length as u64);
            self.length += length;
            // An attempt gets here only after it has read the whole buffer, so dropping the buffer
            // loses no frame of the current attempt.
            let cost = length + size_of::<BufferedFrame>();
            let exceeds = self.held + cost > 2 * self.limit || HELD.get() + cost > MAX_HELD_BYTES;
            if self.last_attempt || self.length > self.limit || exceeds {
                self.release();
            }
            if let Some(buffered) = &mut self.buffered {
                self.held += cost;
                HELD.set(HELD.get() + cost);
                buffered.extend(BufferedFrame::from_frame(frame));
            }
        }
        Poll::Ready(frame)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.release();
    }
}

/// Request body of one attempt.
#[derive(Debug)]
pub(in crate::forward) struct RequestBody {
    body: Option<ReplayBody>,
    attempt: u32,
    /// Number of frames that this attempt has read, from the buffer or the client.
    frames_read: usize,
}

impl RequestBody {
    pub fn new(body: Option<ReplayBody>) -> Self {
        let attempt = body.as_ref().map_or(0, |body| body.0.borrow().attempt);
        Self {
            body,
            attempt,
            frames_read: 0,
        }
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
        // The body of an earlier attempt. Its stream has failed already, so the endpoint cannot
        // mistake this end for a complete body.
        if state.attempt != this.attempt {
            return Poll::Ready(None);
        }
        let buffered = state
            .buffered
            .as_ref()
            .and_then(|buffered| buffered.get(this.frames_read))
            .cloned();
        let frame = match buffered {
            Some(buffered) => Some(Ok(buffered.into_frame())),
            // `Incoming` keeps only the waker of its last poll. An earlier attempt that waits for
            // the client is no longer woken, and needs no more frames.
            None => std::task::ready!(state.poll_client(context)),
        };
        this.frames_read += 1;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| {
            let state = body.0.borrow();
            // If this is true before the first frame, hyper's HTTP/2 client ends the stream with
            // the head. Buffered frames that are not read yet must prevent that.
            let buffer_read = state
                .buffered
                .as_ref()
                .is_none_or(|buffered| buffered.len() <= self.frames_read);
            buffer_read && state.incoming.is_end_stream()
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(body) = &self.body else {
            return SizeHint::with_exact(0);
        };
        let state = body.0.borrow();
        let mut hint = state.incoming.size_hint();
        // hyper derives `Content-Length` from the hint before the first frame. The hint of the
        // client's body covers only the frames that were not read yet, so those of the buffer are
        // added.
        let buffered: u64 = state
            .buffered
            .iter()
            .flatten()
            .skip(self.frames_read)
            .map(BufferedFrame::data_len)
            .sum();
        // The upper bound first: `set_lower` panics if the lower one exceeds it.
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + buffered);
        }
        hint.set_lower(hint.lower() + buffered);
        hint
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncWriteExt, DuplexStream};

    pub const CHUNKED: &str = "transfer-encoding: chunked";

    /// Body of a request that the test writes to the returned stream.
    pub async fn receive(framing: &str) -> (Incoming, DuplexStream) {
        crate::testing::request_body(framing)
    }

    pub fn replay(incoming: Incoming) -> (ReplayBody, Rc<Cell<u64>>) {
        let received = Rc::new(Cell::new(0));
        (
            ReplayBody::new(
                incoming,
                Rc::clone(&received),
                TrailerFilter(Rc::new(|_| ())),
                MAX_REPLAY_BYTES,
            ),
            received,
        )
    }

    fn body(replay: &ReplayBody) -> RequestBody {
        RequestBody::new(Some(replay.clone()))
    }

    async fn next_data(body: &mut RequestBody) -> Option<Bytes> {
        let frame = body.frame().await?.unwrap();
        Some(frame.into_data().unwrap())
    }

    #[tokio::test]
    async fn replays_data_and_trailers_from_first_byte() {
        let (incoming, mut client) = receive(&format!("{CHUNKED}\r\ntrailer: x-sum")).await;
        let (replay, received) = replay(incoming);
        client
            .write_all(b"2\r\nab\r\n1\r\nc\r\n0\r\nx-sum: 1\r\n\r\n")
            .await
            .unwrap();
        for attempt in 0..3 {
            let whole = body(&replay).collect().await.unwrap();
            assert_eq!(whole.trailers().unwrap()["x-sum"], "1", "{attempt}");
            assert_eq!(whole.to_bytes(), "abc", "{attempt}");
            assert!(replay.rewind());
        }
        assert_eq!(received.get(), 3, "replayed bytes are counted once");
        assert!(replay.ended().is_some() && !replay.is_broken());
    }

    #[tokio::test]
    async fn continues_with_client_after_replay() {
        let (incoming, mut client) = receive("content-length: 5").await;
        let (replay, _) = replay(incoming);
        client.write_all(b"abc").await.unwrap();
        let mut first = body(&replay);
        assert_eq!(next_data(&mut first).await.unwrap(), "abc");
        assert!(replay.ended().is_none() && replay.rewind());
        client.write_all(b"de").await.unwrap();
        let mut second = body(&replay);
        assert_eq!(second.size_hint().exact(), Some(5));
        assert_eq!(next_data(&mut second).await.unwrap(), "abc");
        assert_eq!(second.size_hint().exact(), Some(2));
        assert!(
            first.frame().await.is_none(),
            "a failed attempt reads nothing"
        );
        assert_eq!(next_data(&mut second).await.unwrap(), "de");
        assert!(second.is_end_stream());
    }

    #[tokio::test]
    async fn keeps_unread_buffer_when_buffering_stops_during_replay() {
        let (incoming, mut client) = receive("content-length: 3").await;
        let (replay, _) = replay(incoming);
        client.write_all(b"ab").await.unwrap();
        assert_eq!(next_data(&mut body(&replay)).await.unwrap(), "ab");
        assert!(replay.rewind());
        let second = body(&replay);
        replay.stop_buffering();
        client.write_all(b"c").await.unwrap();
        assert_eq!(second.collect().await.unwrap().to_bytes(), "abc");
        assert!(!replay.is_buffering() && !replay.rewind());
    }

    #[tokio::test]
    async fn small_frames_count_with_their_overhead() {
        let (incoming, mut client) = receive(CHUNKED).await;
        let (replay, received) = replay(incoming);
        let sent = body(&replay);
        let reader = tokio::spawn(async move {
            for _ in 0..3000 {
                client.write_all(b"1\r\na\r\n").await.unwrap();
                client.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let mut sent = std::pin::pin!(sent);
        let mut frames = 0;
        while received.get() < 3000 {
            sent.frame().await.unwrap().unwrap();
            frames += 1;
        }
        let held = HELD.get();
        assert!(
            held <= 2 * MAX_REPLAY_BYTES,
            "{held} bytes of {frames} frames"
        );
        drop(reader.await.unwrap());
    }

    #[tokio::test]
    async fn drops_buffer_beyond_limit() {
        let length = MAX_REPLAY_BYTES + 1;
        let (incoming, mut client) = receive(&format!("content-length: {length}")).await;
        let (replay, received) = replay(incoming);
        let mut first = body(&replay);
        client.write_all(&vec![0; MAX_REPLAY_BYTES]).await.unwrap();
        while received.get() < MAX_REPLAY_BYTES as u64 {
            next_data(&mut first).await.unwrap();
        }
        assert!(replay.is_buffering());
        client.write_all(&[0]).await.unwrap();
        next_data(&mut first).await.unwrap();
        assert!(!replay.is_buffering() && !replay.rewind());
    }

    #[tokio::test]
    async fn reports_body_that_client_aborts() {
        let (incoming, mut client) = receive("content-length: 3").await;
        let (replay, _) = replay(incoming);
        client.write_all(b"ab").await.unwrap();
        let mut first = body(&replay);
        assert_eq!(next_data(&mut first).await.unwrap(), "ab");
        drop(client);
        assert!(first.frame().await.unwrap().is_err());
        assert!(replay.is_broken());
    }
}
