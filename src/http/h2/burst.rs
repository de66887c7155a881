//! Frames that a connection writes at once, in full segments.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::{ObservedStream, ReadObserver};

/// Transport stream of h2, which writes each frame on its own. From the second write on, until
/// [`Burst::end`], the system sends full segments only: it handles fewer of them, and wakes the
/// client less often.
#[derive(Debug)]
pub(super) struct Burst<O>(Rc<RefCell<State<O>>>);

#[derive(Debug)]
struct State<O> {
    stream: ObservedStream<O>,
    /// Number of writes of this burst.
    writes: u32,
}

impl<O: ReadObserver> Burst<O> {
    /// Returns the two handles of a stream: that of h2, and that of the task that polls h2.
    pub fn new(stream: ObservedStream<O>) -> (Self, Self) {
        let state = Rc::new(RefCell::new(State { stream, writes: 0 }));
        (Self(Rc::clone(&state)), Self(state))
    }

    /// Sends what the system has held back.
    pub fn end(&self) {
        let mut state = self.0.borrow_mut();
        if std::mem::take(&mut state.writes) > 1 {
            state.stream.get_ref().set_cork(false);
        }
    }

    fn with<T>(&self, poll: impl FnOnce(Pin<&mut ObservedStream<O>>) -> T) -> T {
        poll(Pin::new(&mut self.0.borrow_mut().stream))
    }

    /// Counts a write.
    fn write<T>(&self, poll: impl FnOnce(Pin<&mut ObservedStream<O>>) -> T) -> T {
        let mut state = self.0.borrow_mut();
        state.writes = state.writes.saturating_add(1);
        if state.writes == 2 {
            state.stream.get_ref().set_cork(true);
        }
        poll(Pin::new(&mut state.stream))
    }
}

impl<O: ReadObserver> AsyncRead for Burst<O> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(context, buffer))
    }
}

impl<O: ReadObserver> AsyncWrite for Burst<O> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(|stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(|stream| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(context))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::http::Stream;

    struct Ignored;

    impl ReadObserver for Ignored {
        fn observe(&mut self, _: &[u8]) {}
    }

    #[tokio::test]
    async fn only_bursts_of_several_writes_are_held_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap());
        let (stream, accepted) = tokio::join!(stream, listener.accept());
        let mut peer = accepted.unwrap().0;
        let stream = ObservedStream::new(Stream::Plain(stream.unwrap()), Ignored);
        let (mut stream, burst) = Burst::new(stream);
        let is_corked = |burst: &Burst<Ignored>| {
            let state = burst.0.borrow();
            let Stream::Plain(stream) = state.stream.get_ref() else {
                panic!("a TCP stream");
            };
            SockRef::from(stream).tcp_cork().unwrap()
        };
        for _ in 0..2 {
            for corked in [false, true, true] {
                stream.write_all(b"x").await.unwrap();
                assert_eq!(is_corked(&burst), corked);
            }
            burst.end();
            assert!(!is_corked(&burst));
            let mut received = [0; 3];
            peer.read_exact(&mut received).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            burst.end();
            peer.read_exact(&mut received[..1]).await.unwrap();
        }
    }
}
