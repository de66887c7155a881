//! Streams of HTTP/2 as byte streams, of both sides (RFC 9113 section 8.5).

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::task::AtomicWaker;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum payload of a DATA frame, whose head of 9 bytes shares a TLS record with it. One byte more
/// would take another record.
const MAX_FRAME: usize = 16 * 1024 - 9;
/// Maximum number of bytes of one write, in full frames.
const MAX_WRITE: usize = 4 * MAX_FRAME;
/// Number of unsent bytes above which a stream has no room. The sender is read once for several
/// frames then, not for each that has left.
const LOW_WATER: usize = 16 * 1024;
/// Memory of a write and its frame beside their bytes, which counts as unsent bytes.
const OVERHEAD: usize = 512;

/// Reset of a stream by its peer, or failure of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// `NO_ERROR`, of the stream or of a GOAWAY that excludes it: the peer accepts no more bytes. What
    /// it sent is complete if reads reach its end (RFC 9113 section 8.1).
    NoError,
    /// Any other reason, or the connection failed.
    Error,
}

/// DATA frames of a stream as bytes. Shutting it down closes the sending side only (`END_STREAM`).
/// Dropping it before both sides have ended resets the stream. A reset by the peer is an error of
/// kind `ConnectionReset`.
#[derive(Debug)]
pub struct ByteStream<G> {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received bytes that were not read.
    input: Bytes,
    unsent: Arc<Unsent>,
    is_shut_down: bool,
    /// Held as long as the stream.
    guard: G,
}

impl<G> ByteStream<G> {
    pub fn new(send: SendStream<Bytes>, receive: RecvStream, guard: G) -> Self {
        Self {
            send,
            receive,
            input: Bytes::new(),
            unsent: Arc::default(),
            is_shut_down: false,
            guard,
        }
    }

    /// Hides the type of the guard.
    pub fn erased(self) -> ByteStream<Box<dyn Any>>
    where
        G: 'static,
    {
        ByteStream {
            send: self.send,
            receive: self.receive,
            input: self.input,
            unsent: self.unsent,
            is_shut_down: self.is_shut_down,
            guard: Box::new(self.guard),
        }
    }

    /// Returns the next bytes, which [`Self::release`] returns to the window. `None` is the end.
    pub fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.input.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.input))));
        }
        loop {
            let chunk = match ready!(self.receive.poll_data(context)) {
                None => None,
                // An empty frame without END_STREAM.
                Some(Ok(data)) if data.is_empty() => continue,
                Some(data) => Some(data.map_err(failure)?),
            };
            return Poll::Ready(Ok(chunk));
        }
    }

    /// Returns `length` bytes to the flow-control window.
    pub fn release(&mut self, length: usize) {
        // Fails only if the stream has been reset, which the next read reports.
        let _ = self.receive.flow_control().release_capacity(length);
    }

    /// Returns the number of bytes to write next. Pending while most of those before have not left.
    pub fn poll_room(&self, context: &Context<'_>) -> Poll<usize> {
        let mut unsent = self.unsent.bytes.load(Ordering::Relaxed);
        if unsent > LOW_WATER {
            self.unsent.waker.register(context.waker());
            unsent = self.unsent.bytes.load(Ordering::Relaxed);
        }
        if unsent > LOW_WATER {
            return Poll::Pending;
        }
        Poll::Ready(MAX_WRITE - unsent)
    }

    /// Resets the stream.
    pub fn abort(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    /// Ready once the peer has reset the stream or its connection has failed.
    pub fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<Reset> {
        self.send.poll_reset(context).map(|reason| match reason {
            Ok(Reason::NO_ERROR) => Reset::NoError,
            Ok(_) | Err(_) => Reset::Error,
        })
    }
}

/// Bytes that were written to a stream, and that h2 has not written to the connection. Atomic,
/// because [`Bytes`] may be dropped on any thread.
#[derive(Debug, Default)]
struct Unsent {
    /// With the overhead of each write.
    bytes: AtomicUsize,
    /// Task that waits for room.
    waker: AtomicWaker,
}

/// Bytes of one write. h2 drops them once they have left, or the stream is reset.
struct Chunk {
    bytes: Box<[u8]>,
    unsent: Arc<Unsent>,
}

impl Chunk {
    /// Copies bytes.
    fn copy(bytes: &[u8], unsent: &Arc<Unsent>) -> Bytes {
        unsent
            .bytes
            .fetch_add(OVERHEAD + bytes.len(), Ordering::Relaxed);
        Bytes::from_owner(Self {
            bytes: bytes.into(),
            unsent: Arc::clone(unsent),
        })
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let cost = OVERHEAD + self.bytes.len();
        let before = self.unsent.bytes.fetch_sub(cost, Ordering::Relaxed);
        if before > LOW_WATER && before - cost <= LOW_WATER {
            self.unsent.waker.wake();
        }
    }
}

fn failure(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() && error.is_remote() {
        io::ErrorKind::ConnectionReset
    } else {
        // Not the kind of the connection's own error: the end of TLS without an alert would count
        // as an end of the stream.
        io::ErrorKind::ConnectionAborted
    };
    io::Error::new(kind, error)
}

impl<G: Unpin> AsyncRead for ByteStream<G> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.input.is_empty() {
            match ready!(this.poll_chunk(context))? {
                None => return Poll::Ready(Ok(())),
                Some(data) => this.input = data,
            }
        }
        let length = this.input.len().min(buffer.remaining());
        buffer.put_slice(&this.input[..length]);
        this.input.advance(length);
        this.release(length);
        Poll::Ready(Ok(()))
    }
}

impl<G: Unpin> AsyncWrite for ByteStream<G> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len().min(MAX_WRITE));
        let mut capacity = self.send.capacity();
        while capacity == 0 {
            capacity = match ready!(self.send.poll_capacity(context)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => return Poll::Ready(Err(failure(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let length = capacity.min(bytes.len()).min(MAX_WRITE);
        let mut data = Chunk::copy(&bytes[..length], &self.unsent);
        while !data.is_empty() {
            let frame = data.split_to(data.len().min(MAX_FRAME));
            self.send.send_data(frame, false).map_err(failure)?;
        }
        Poll::Ready(Ok(length))
    }

    /// Writes are with h2 already, whose connection task sends them.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut_down {
            self.is_shut_down = true;
            self.send.send_data(Bytes::new(), true).map_err(failure)?;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http::{Request, Response};
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn has_room_again_once_frames_have_left() {
        const LENGTH: usize = 60 * 1024;
        const SMALL: usize = 3;
        let (near, far) = tokio::io::duplex(1 << 20);
        let client = async {
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(1 << 20);
            let (sender, connection) = builder.handshake::<_, Bytes>(far).await.unwrap();
            tokio::spawn(connection);
            let mut sender = sender.ready().await.unwrap();
            let request = Request::connect("a:1").body(()).unwrap();
            let (response, _sending) = sender.send_request(request, false).unwrap();
            let mut body = response.await.unwrap().into_body();
            let (mut frames, mut sum) = (Vec::new(), 0);
            while sum < LENGTH {
                let data = body.data().await.unwrap().unwrap();
                sum += data.len();
                frames.push(data.len());
            }
            frames
        };
        let server = async {
            let mut builder = h2::server::Builder::new();
            builder.max_send_buffer_size(64 * 1024);
            let mut connection = builder.handshake::<_, Bytes>(near).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            let send = respond.send_response(Response::new(()), false).unwrap();
            let mut stream = ByteStream::new(send, request.into_body(), ());
            // The connection is not polled, so that no frame leaves.
            let room = poll_fn(|context| Poll::Ready(stream.poll_room(context))).await;
            assert_eq!(room, Poll::Ready(MAX_WRITE));
            for _ in 0..SMALL {
                stream.write_all(b"x").await.unwrap();
            }
            let room = poll_fn(|context| Poll::Ready(stream.poll_room(context))).await;
            assert_eq!(room, Poll::Ready(MAX_WRITE - SMALL * (OVERHEAD + 1)));
            stream.write_all(&vec![0; LENGTH - SMALL]).await.unwrap();
            let room = poll_fn(|context| Poll::Ready(stream.poll_room(context))).await;
            assert_eq!(room, Poll::Pending);
            let room = poll_fn(|context| stream.poll_room(context));
            let room = tokio::select! {
                room = room => room,
                _ = connection.accept() => panic!("one request"),
            };
            assert_eq!(room, MAX_WRITE);
            tokio::select! {
                () = std::future::pending() => {}
                _ = connection.accept() => {}
            }
        };
        let frames = tokio::select! {
            frames = client => frames,
            () = server => panic!("the client is served until it has ended"),
        };
        assert_eq!(frames.iter().sum::<usize>(), LENGTH);
        assert!(frames.iter().all(|frame| *frame <= MAX_FRAME), "{frames:?}");
    }
}
