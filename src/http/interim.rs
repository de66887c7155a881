//! Interim answers (1xx, RFC 9110 section 15.2; 103 Early Hints, RFC 8297) on their way to an
//! HTTP/1.1 client.
//!
//! hyper's server has no way to send them, so they are written around it: the client's stream is
//! wrapped, and an interim answer goes out when hyper has flushed all that it wrote before and has
//! not begun the final answer. Where that moment does not come the answer is dropped, as a proxy
//! may. HTTP/2 clients get none: hyper gives no way there.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::header::{CONNECTION, HeaderName};
use http::{HeaderMap, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::header_list::tokens;

/// How many bytes of interim answers may wait for a client; further ones are dropped, as a proxy
/// may.
const MAX_PENDING_BYTES: usize = 16 * 1024;

/// The interim answers of one connection. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Interim(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Whether anything waits, so that a write learns with one load that nothing does.
    waiting: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// The final answer has begun: what still waits comes too late.
    over: bool,
    connection: Option<Waker>,
}

impl Interim {
    /// A request begins. Its task is woken when an interim answer is there.
    pub async fn begin(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            state.over = false;
            state.bytes.clear();
            if !state
                .connection
                .as_ref()
                .is_some_and(|known| known.will_wake(context.waker()))
            {
                state.connection = Some(context.waker().clone());
            }
            Poll::Ready(())
        })
        .await;
    }

    /// The final answer of the request begins.
    pub fn end(&self) {
        self.state().over = true;
    }

    /// Passes on the interim responses to `request`, without the fields that `stays_on_hop` names.
    pub fn listen<B>(&self, request: &mut Request<B>, stays_on_hop: fn(&HeaderName) -> bool) {
        let interim = self.clone();
        hyper::ext::on_informational(request, move |answer| {
            interim.push(answer.status(), answer.headers(), stays_on_hop);
        });
    }

    /// 100 is hyper's own to say, on both sides; 101 is no interim answer.
    fn push(&self, status: StatusCode, headers: &HeaderMap, stays_on_hop: fn(&HeaderName) -> bool) {
        if matches!(
            status,
            StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS
        ) {
            return;
        }
        let mut state = self.state();
        let length: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        if state.bytes.len() + length > MAX_PENDING_BYTES {
            // The client does not read them: an endpoint must not fill the memory with what nobody
            // waits for.
            return;
        }
        let line = format!(
            "HTTP/1.1 {} {}\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default()
        );
        state.bytes.extend_from_slice(line.as_bytes());
        let named: Vec<&[u8]> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(tokens)
            .collect();
        let stays = |name: &HeaderName| {
            stays_on_hop(name)
                || named
                    .iter()
                    .any(|named| named.eq_ignore_ascii_case(name.as_str().as_bytes()))
        };
        for (name, value) in headers.iter().filter(|(name, _)| !stays(name)) {
            state.bytes.extend_from_slice(name.as_str().as_bytes());
            state.bytes.extend_from_slice(b": ");
            state.bytes.extend_from_slice(value.as_bytes());
            state.bytes.extend_from_slice(b"\r\n");
        }
        state.bytes.extend_from_slice(b"\r\n");
        self.0.waiting.store(true, Ordering::Release);
        if let Some(connection) = &state.connection {
            connection.wake_by_ref();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's stream with a way in for interim answers.
#[derive(Debug)]
pub struct WithInterim<I> {
    io: I,
    interim: Interim,
    /// hyper has flushed, and written nothing since.
    clean: bool,
    /// What is being written of interim answers, and how much of it has been.
    going: Vec<u8>,
    gone: usize,
}

impl<I: AsyncWrite + Unpin> WithInterim<I> {
    pub fn new(io: I, interim: Interim) -> Self {
        Self {
            io,
            interim,
            clean: true,
            going: Vec::new(),
            gone: 0,
        }
    }

    /// Writes what waits, where this is the moment. hyper's own bytes must wait until it is ready.
    fn poll_interim(&mut self, context: &mut Context<'_>, flushed: bool) -> Poll<io::Result<()>> {
        if self.interim.0.waiting.load(Ordering::Acquire) && self.clean {
            let mut state = self.interim.state();
            let late = flushed && state.over;
            let bytes = std::mem::take(&mut state.bytes);
            self.interim.0.waiting.store(false, Ordering::Release);
            drop(state);
            if !late {
                self.going.extend_from_slice(&bytes);
            }
        }
        while self.gone < self.going.len() {
            let written =
                ready!(Pin::new(&mut self.io).poll_write(context, &self.going[self.gone..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gone += written;
        }
        self.going.clear();
        self.gone = 0;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for WithInterim<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for WithInterim<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(context, false))?;
        self.clean = false;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(context, false))?;
        self.clean = false;
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes the stream only once its own buffer is empty.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let after_write = !self.clean;
        self.clean = true;
        ready!(self.poll_interim(context, after_write))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
