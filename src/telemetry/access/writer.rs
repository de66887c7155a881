//! Buffers of the workers, and the thread that writes their lines.

use std::convert::Infallible;
use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;

use super::format::{Clock, Line};
use crate::config::LogFormat;
use crate::drain::Drain;
use crate::metrics::LostLines;

/// Size at which a batch is sent, unless [`flush`](super::Recorder::flush) sends it earlier.
const FLUSH_BYTES: usize = 32 * 1024;
/// Maximum number of batches that wait for the writer before lines are dropped.
pub(super) const QUEUE_LEN: usize = 64;
/// Maximum number of waiting batches with which another one of unauthenticated requests is
/// accepted.
pub(super) const MAX_QUEUED_UNAUTHENTICATED: usize = QUEUE_LEN / 2;
/// Maximum time at the end of the process for standard output to accept the remaining lines.
pub(super) const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);
/// The same after a forced drain: enough for a reader that keeps up, too short for users to notice.
pub(super) const FORCED_SHUTDOWN_WAIT: Duration = Duration::from_millis(100);

/// Access log of the process: a thread that writes the batches that the workers send.
#[derive(Debug)]
pub struct AccessLog {
    /// `None` once the log is being dropped.
    batches: Option<SyncSender<Batch>>,
    format: LogFormat,
    pub(super) unwritten: Arc<Unwritten>,
    /// Disconnected once the thread has ended. Only `drop` uses it; the mutex makes the log `Sync`
    /// for the workers.
    ended: Mutex<Receiver<Infallible>>,
    drain: Drain,
}

/// Batches that were sent and are not written yet.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    pub lines: AtomicU64,
    batches: AtomicUsize,
}

impl Unwritten {
    fn add(&self, lines: u64) {
        self.lines.fetch_add(lines, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, lines: u64) {
        self.lines.fetch_sub(lines, Ordering::Relaxed);
        self.batches.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Complete lines.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

impl AccessLog {
    /// Starts the thread that writes to `sink`. A forced `drain` shortens the wait when the log is
    /// dropped.
    ///
    /// # Errors
    /// Failure to start the thread.
    pub fn start(
        format: LogFormat,
        mut sink: impl Write + Send + 'static,
        drain: Drain,
    ) -> std::io::Result<Self> {
        let (batches, received) = sync_channel::<Batch>(QUEUE_LEN);
        let (end, ended) = channel();
        let unwritten = Arc::new(Unwritten::default());
        let left = Arc::clone(&unwritten);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                let _end = end;
                for batch in received {
                    // A closed pipe must not stop the proxy, so errors are ignored.
                    let _ = sink.write_all(&batch.bytes).and_then(|()| sink.flush());
                    left.remove(batch.lines);
                }
            })?;
        Ok(Self {
            batches: Some(batches),
            format,
            unwritten,
            ended: Mutex::new(ended),
            drain,
        })
    }
}

impl Drop for AccessLog {
    /// Waits until the sent batches are written, for a limited time: a thread that is blocked in a
    /// write is abandoned to the end of the process. All recorders are dropped before, so nothing
    /// is sent any more.
    fn drop(&mut self) {
        self.batches = None;
        let forced = self.drain.forced().now_or_never().is_some();
        let wait = if forced {
            FORCED_SHUTDOWN_WAIT
        } else {
            SHUTDOWN_WAIT
        };
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            let lines = self.unwritten.lines.load(Ordering::Relaxed);
            tracing::warn!(
                lines,
                "standard output is blocked; the last lines of the access log are lost"
            );
        }
    }
}

/// Buffers of one worker.
#[derive(Debug)]
pub(super) struct Buffers {
    batches: SyncSender<Batch>,
    unwritten: Arc<Unwritten>,
    format: LogFormat,
    authenticated: Batch,
    unauthenticated: Batch,
    clock: Clock,
}

impl Batch {
    fn with_capacity() -> Self {
        Self {
            bytes: Vec::with_capacity(FLUSH_BYTES),
            lines: 0,
        }
    }
}

impl Buffers {
    /// Creates the buffers of a worker; `None` while the log is being dropped.
    pub fn new(log: &AccessLog) -> Option<Self> {
        Some(Self {
            batches: log.batches.clone()?,
            unwritten: Arc::clone(&log.unwritten),
            format: log.format,
            authenticated: Batch::with_capacity(),
            // Allocated with its first line: most deployments have none.
            unauthenticated: Batch::default(),
            clock: Clock::default(),
        })
    }

    /// Appends a line, and sends its batch if it is large enough.
    pub fn write(&mut self, line: &Line<'_>, lost: &LostLines) {
        let authenticated = line.record.is_authenticated();
        let batch = if authenticated {
            &mut self.authenticated
        } else {
            &mut self.unauthenticated
        };
        batch.lines += 1;
        match self.format {
            LogFormat::Json => line.write_json(&mut self.clock, &mut batch.bytes),
            LogFormat::Text => line.write_text(&mut self.clock, &mut batch.bytes),
        }
        if batch.bytes.len() >= FLUSH_BYTES {
            self.send(authenticated, lost);
        }
    }

    /// Sends both batches.
    pub fn flush(&mut self, lost: &LostLines) {
        self.send(true, lost);
        self.send(false, lost);
    }

    fn send(&mut self, authenticated: bool, lost: &LostLines) {
        let (batch, lost, max_queued) = if authenticated {
            (&mut self.authenticated, &lost.authenticated, QUEUE_LEN)
        } else {
            (
                &mut self.unauthenticated,
                &lost.unauthenticated,
                MAX_QUEUED_UNAUTHENTICATED,
            )
        };
        if batch.bytes.is_empty() {
            return;
        }
        // Two workers can pass this check at the same time and both send. The queue has a bound of
        // its own, so the limit is only exceeded by the number of workers.
        if self.unwritten.batches.load(Ordering::Relaxed) >= max_queued {
            lost.inc_by(batch.lines);
            batch.bytes.clear();
            batch.lines = 0;
            return;
        }
        let batch = std::mem::replace(batch, Batch::with_capacity());
        let lines = batch.lines;
        // Counted before the send: the writer may complete the batch before `try_send` returns, and
        // the counter must not underflow.
        self.unwritten.add(lines);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.batches.try_send(batch)
        {
            self.unwritten.remove(lines);
            lost.inc_by(lines);
        }
    }
}
