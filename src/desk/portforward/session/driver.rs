//! Task of a session, which reads and writes its connection.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_util::io::poll_read_buf;

use super::super::spdy::Decoder;
use super::{SessionError, Shared};

/// Number of bytes of one read.
const READ_SIZE: usize = 16 * 1024;
/// Time between two pings, as in client-go.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time without a received byte after which a connection is dead.
const SILENCE: Duration = Duration::from_secs(30);
/// The same while a backend may block the kubelet.
const SILENCE_OF_UPLOADS: Duration = Duration::from_mins(5);
/// Time for the last frames of a session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reader and writer of a connection.
pub(super) struct Driver<T> {
    io: T,
    shared: Arc<Shared>,
    decoder: Decoder,
    input: BytesMut,
    output: Vec<u8>,
    /// Number of bytes of the output that were written.
    written: usize,
    needs_flush: bool,
    ticks: Interval,
    received: Instant,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(io: T, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let mut ticks = interval_at(now + PING_INTERVAL, PING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            io,
            shared,
            decoder: Decoder::default(),
            input: BytesMut::new(),
            output: Vec::new(),
            written: 0,
            needs_flush: false,
            ticks,
            received: now,
        }
    }

    /// Runs the session until it ends.
    pub(super) async fn run(mut self) {
        let end = poll_fn(|context| self.poll(context)).await;
        let is_unused = end.is_none();
        let end = end.unwrap_or(SessionError::Closed);
        self.shared.lock().end(end.clone());
        self.shared.permits.close();
        self.shared.end.send_replace(Some(end));
        let goodbye = async {
            if is_unused {
                self.shared.lock().fill_last(&mut self.output);
                self.io.write_all(&self.output[self.written..]).await?;
            }
            self.io.shutdown().await
        };
        // The session has ended; a failure to close its connection changes nothing.
        let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    }

    /// Returns the end of the session, `None` if it is not used any more.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<SessionError>> {
        match self.drive(context) {
            Err(end) => Poll::Ready(Some(end)),
            Ok(()) if self.shared.lock().is_unused() => Poll::Ready(None),
            Ok(()) => Poll::Pending,
        }
    }

    fn drive(&mut self, context: &mut Context<'_>) -> Result<(), SessionError> {
        while self.ticks.poll_tick(context).is_ready() {
            self.tick()?;
        }
        loop {
            // What is received may have to be answered.
            self.send(context)?;
            if !self.receive(context)? {
                return Ok(());
            }
        }
    }

    fn tick(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        if state.check_stalls(now) {
            // Nothing is read, answers to pings neither.
            self.received = now;
        }
        let limit = if state.may_block_kubelet() {
            SILENCE_OF_UPLOADS
        } else {
            SILENCE
        };
        if now.duration_since(self.received) >= limit {
            return Err(SessionError::Silent(limit));
        }
        state.ping();
        Ok(())
    }

    fn send(&mut self, context: &mut Context<'_>) -> Result<(), SessionError> {
        loop {
            if self.written == self.output.len() {
                self.output.clear();
                self.written = 0;
                let mut state = self.shared.lock();
                state.register(context.waker());
                state.fill(&mut self.output);
            }
            let bytes = &self.output[self.written..];
            if bytes.is_empty() {
                break;
            }
            match Pin::new(&mut self.io).poll_write(context, bytes) {
                Poll::Ready(Ok(0)) => return Err(SessionError::Closed),
                Poll::Ready(Ok(length)) => self.written += length,
                Poll::Ready(Err(error)) => return Err(SessionError::Io(Arc::new(error))),
                Poll::Pending => return Ok(()),
            }
            self.needs_flush = true;
        }
        if self.needs_flush
            && let Poll::Ready(flushed) = Pin::new(&mut self.io).poll_flush(context)
        {
            flushed.map_err(|error| SessionError::Io(Arc::new(error)))?;
            self.needs_flush = false;
        }
        Ok(())
    }

    /// Reads once and handles the frames. Returns false if nothing can be read.
    fn receive(&mut self, context: &mut Context<'_>) -> Result<bool, SessionError> {
        if self.shared.lock().is_full() {
            return Ok(false);
        }
        self.input.reserve(READ_SIZE);
        match poll_read_buf(Pin::new(&mut self.io), context, &mut self.input) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(0)) => return Err(SessionError::Closed),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Err(SessionError::Io(Arc::new(error))),
        }
        self.received = Instant::now();
        let mut state = self.shared.lock();
        while let Some(frame) = self.decoder.decode(&mut self.input)? {
            state.receive(frame)?;
        }
        Ok(true)
    }
}
