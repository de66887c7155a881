//! Interim responses (1xx, RFC 9110 section 15.2; 103 Early Hints, RFC 8297) to HTTP/1.1 clients.
//!
//! hyper's server cannot send them, so [`WithInterim`] wraps the client's stream and inserts them
//! into the bytes that hyper writes. The only safe position is between two messages: after hyper
//! has flushed all that it wrote before, and before it writes the first byte of the final response.
//! An interim response that misses this position is dropped, which a proxy may do. HTTP/2 clients
//! get none, because frames of hyper's streams cannot be inserted from outside.

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

/// Maximum number of bytes of interim responses that wait for a client; more are dropped.
const MAX_PENDING_BYTES: usize = 16 * 1024;

/// Interim responses of one connection. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Interim(Arc<Shared>);

/// The stream belongs to hyper's connection, whose upgrades require `Send`: hence atomics and a
/// mutex, although both users run on one worker. The mutex is never contended.
#[derive(Debug, Default)]
struct Shared {
    /// Set while `State::bytes` may be non-empty, so that a write without interim responses costs
    /// one load.
    has_pending: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// The final response has begun: interim responses are too late.
    ended: bool,
    /// Task that runs the connection and so writes to its stream.
    connection: Option<Waker>,
}

impl Interim {
    /// Begins a request. Must be called in the connection's task, which [`Self::listen`] wakes for
    /// each interim response.
    pub async fn begin(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            state.ended = false;
            // A late interim response of the previous request must not precede this response.
            state.bytes.clear();
            if !state
                .connection
                .as_ref()
                // Requests of a kept-alive connection usually have the same waker, which is not
                // cloned again.
                .is_some_and(|known| known.will_wake(context.waker()))
            {
                state.connection = Some(context.waker().clone());
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Declares that the final response begins.
    pub fn end(&self) {
        // Pending bytes stay: they are sent before hyper's first write of the final response.
        self.state().ended = true;
    }

    /// Forwards the interim responses to `request`, without the fields for which `stays_on_hop`
    /// returns true.
    pub fn listen<B>(&self, request: &mut Request<B>, stays_on_hop: fn(&HeaderName) -> bool) {
        let interim = self.clone();
        hyper::ext::on_informational(request, move |response| {
            interim.push(response.status(), response.headers(), stays_on_hop);
        });
    }

    fn push(&self, status: StatusCode, headers: &HeaderMap, stays_on_hop: fn(&HeaderName) -> bool) {
        // 100 is for one hop: hyper's server sends its own when the body is first read. 101 is a
        // final response.
        if matches!(
            status,
            StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS
        ) {
            return;
        }
        let mut state = self.state();
        if state.ended {
            // The final response may have begun, and a body could be cut in two.
            return;
        }
        // Four bytes per field for `: ` and the line break. The status line is not counted, so the
        // limit is approximate.
        let length: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        // If the client does not read, a limit keeps the endpoint from filling the memory.
        if state.bytes.len() + length > MAX_PENDING_BYTES {
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
        // hyper has validated names and values, so none contains a line break.
        for (name, value) in headers.iter().filter(|(name, _)| !stays(name)) {
            state.bytes.extend_from_slice(name.as_str().as_bytes());
            state.bytes.extend_from_slice(b": ");
            state.bytes.extend_from_slice(value.as_bytes());
            state.bytes.extend_from_slice(b"\r\n");
        }
        state.bytes.extend_from_slice(b"\r\n");
        // Both stores of the flag happen under the lock: whenever the lock is free, the flag is
        // true while bytes are pending.
        self.0.has_pending.store(true, Ordering::Release);
        // Woken, hyper polls its connection and flushes the stream, which writes the bytes.
        if let Some(connection) = &state.connection {
            connection.wake_by_ref();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Client stream that writes interim responses between the messages of hyper.
#[derive(Debug)]
pub struct WithInterim<I> {
    io: I,
    interim: Interim,
    /// hyper has flushed and written nothing since, so the stream is between two messages, or
    /// between two parts of a body; `State::ended` tells the two apart.
    flushed: bool,
    /// Interim responses being written, and the number of bytes written of them. Once begun, they
    /// must be written to the end before any byte of hyper.
    writing: Vec<u8>,
    written: usize,
}

impl<I: AsyncWrite + Unpin> WithInterim<I> {
    pub fn new(io: I, interim: Interim) -> Self {
        Self {
            io,
            interim,
            flushed: true,
            writing: Vec::new(),
            written: 0,
        }
    }

    /// Writes pending interim responses if the stream is between two messages. hyper's bytes must
    /// wait until this is ready.
    ///
    /// `after_write` is true if hyper wrote bytes before this flush, which may be the head of the
    /// final response.
    fn poll_interim(
        &mut self,
        context: &mut Context<'_>,
        after_write: bool,
    ) -> Poll<io::Result<()>> {
        if self.interim.0.has_pending.load(Ordering::Acquire) && self.flushed {
            let mut state = self.interim.state();
            // On hyper's first write of the final response `ended` is set too, and the pending
            // bytes still precede it. Only after that write they are late.
            let late = after_write && state.ended;
            let bytes = std::mem::take(&mut state.bytes);
            self.interim.0.has_pending.store(false, Ordering::Release);
            drop(state);
            if !late {
                self.writing.extend_from_slice(&bytes);
            }
        }
        while self.written < self.writing.len() {
            let count =
                ready!(Pin::new(&mut self.io).poll_write(context, &self.writing[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.writing.clear();
        self.written = 0;
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
        // `false`: either nothing was written since the last flush, or `flushed` is unset and
        // pending bytes wait for the next one.
        ready!(self.poll_interim(context, false))?;
        self.flushed = false;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(context, false))?;
        self.flushed = false;
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes the stream only when its own buffer is empty, so no message is half written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let after_write = !self.flushed;
        // Before `poll_interim`, which sends nothing while hyper's bytes are unflushed.
        self.flushed = true;
        ready!(self.poll_interim(context, after_write))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use http::HeaderValue;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const EARLY_HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    async fn connection() -> (Interim, WithInterim<DuplexStream>, DuplexStream) {
        let (server, client) = duplex(1 << 20);
        let interim = Interim::default();
        interim.begin().await;
        (interim.clone(), WithInterim::new(server, interim), client)
    }

    fn push(interim: &Interim, status: u16, headers: &[(&'static str, &'static str)]) {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        let status = StatusCode::from_u16(status).unwrap();
        interim.push(status, &headers, |name| name == "content-length");
    }

    fn push_hints(interim: &Interim) {
        push(interim, 103, &[("link", "</a>")]);
    }

    /// All bytes that the client received, after the server closed the connection.
    async fn sent(server: WithInterim<DuplexStream>, mut client: DuplexStream) -> String {
        drop(server);
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn flush_writes_interim_response() {
        let (interim, mut server, client) = connection().await;
        push_hints(&interim);
        push(&interim, 102, &[]);
        server.flush().await.unwrap();
        let expected = format!("{EARLY_HINTS}HTTP/1.1 102 Processing\r\n\r\n");
        assert_eq!(sent(server, client).await, expected);
    }

    #[tokio::test]
    async fn writes_interim_response_before_final_one() {
        let (interim, mut server, client) = connection().await;
        push_hints(&interim);
        interim.end();
        server.write_all(b"final").await.unwrap();
        assert_eq!(sent(server, client).await, format!("{EARLY_HINTS}final"));
    }

    #[tokio::test]
    async fn does_not_split_unflushed_message() {
        let (interim, mut server, client) = connection().await;
        server.write_all(b"HTTP/1.1 100 ").await.unwrap();
        push_hints(&interim);
        server.write_all(b"Continue\r\n\r\n").await.unwrap();
        server.flush().await.unwrap();
        let expected = format!("HTTP/1.1 100 Continue\r\n\r\n{EARLY_HINTS}");
        assert_eq!(sent(server, client).await, expected);
    }

    #[tokio::test]
    async fn drops_interim_response_after_final_head() {
        let (interim, mut server, client) = connection().await;
        server.write_all(b"final").await.unwrap();
        push_hints(&interim);
        interim.end();
        server.flush().await.unwrap();
        server.write_all(b" body").await.unwrap();
        assert_eq!(sent(server, client).await, "final body");
    }

    #[tokio::test]
    async fn next_request_discards_pending_interim_response() {
        let (interim, mut server, client) = connection().await;
        push_hints(&interim);
        interim.begin().await;
        server.write_all(b"final").await.unwrap();
        assert_eq!(sent(server, client).await, "final");
    }

    #[tokio::test]
    async fn drops_100_and_101() {
        let (interim, mut server, client) = connection().await;
        push(&interim, 100, &[]);
        push(&interim, 101, &[("upgrade", "websocket")]);
        server.flush().await.unwrap();
        assert_eq!(sent(server, client).await, "");
    }

    #[tokio::test]
    async fn removes_fields_that_stay_on_hop() {
        let (interim, mut server, client) = connection().await;
        let headers = [
            ("connection", "x-hop, Connection"),
            ("x-hop", "1"),
            ("content-length", "0"),
            ("link", "</a>"),
        ];
        push(&interim, 103, &headers);
        server.flush().await.unwrap();
        assert_eq!(sent(server, client).await, EARLY_HINTS);
    }

    #[tokio::test]
    async fn drops_interim_responses_beyond_limit() {
        let (interim, mut server, client) = connection().await;
        let count = 2 * MAX_PENDING_BYTES / EARLY_HINTS.len();
        (0..count).for_each(|_| push_hints(&interim));
        server.flush().await.unwrap();
        let length = sent(server, client).await.len();
        assert_eq!(length % EARLY_HINTS.len(), 0, "no response is cut");
        // The limit is compared without the status line.
        let limit = MAX_PENDING_BYTES + EARLY_HINTS.len();
        assert!(
            (MAX_PENDING_BYTES / 2..=limit).contains(&length),
            "{length}"
        );
    }

    #[tokio::test]
    async fn resumes_interim_response_after_partial_write() {
        let (server, mut client) = duplex(10);
        let interim = Interim::default();
        let mut server = WithInterim::new(server, interim.clone());
        push_hints(&interim);
        let write = async {
            server.write_all(b"final").await.unwrap();
            drop(server);
        };
        let mut text = String::new();
        let ((), read) = tokio::join!(write, client.read_to_string(&mut text));
        read.unwrap();
        assert_eq!(text, format!("{EARLY_HINTS}final"));
    }

    #[test]
    fn wakes_connection_of_current_request() {
        #[derive(Default)]
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let interim = Interim::default();
        let begun = std::pin::pin!(interim.begin()).poll(&mut Context::from_waker(&waker));
        assert!(begun.is_ready());
        push_hints(&interim);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
