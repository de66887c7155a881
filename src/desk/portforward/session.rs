//! Session: one connection to a pod that carries the connections to its ports.
//!
//! Each connection to a port has two SPDY streams: one for its data, and one on which the kubelet
//! explains a failure. An error ends only the connection that it belongs to.
//!
//! # Backpressure
//! Kubernetes uses SPDY without flow control, so that a session has the backpressure of its
//! connection only. Towards the pod, each stream has a buffer of 64 KiB, and streams take turns.
//! From the pod, each stream has a buffer of 128 KiB. Once one is full, the session is held up: it
//! reads nothing, for no stream, until the local client has read half of it. Other streams wait
//! meanwhile, for two reasons: dropping bytes would break the transfer, and buffering more would
//! only postpone the same. Their wait is bounded: a local client that reads nothing for 15 s is
//! disconnected if the session has other streams. [`Session::is_held_up`] lets callers open further
//! connections on another session.
//!
//! # Liveness
//! A ping is sent every 10 s. A session that has received nothing for 30 s has ended. After an
//! upload without an answer the limit is 5 min, because the kubelet answers no pings while a
//! backend does not read.

mod driver;
mod state;
mod stream;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::spdy::SpdyError;
use driver::Driver;
use state::State;
pub use stream::PortStream;

/// Maximum number of connections to ports at the same time. Further ones wait.
const MAX_STREAMS: usize = 512;
/// Time for the kubelet to accept the streams of a connection, as in client-go.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Connection to a pod. Clones share it. It is closed when the last clone and the last
/// [`PortStream`] are dropped.
#[derive(Clone, Debug)]
pub struct Session {
    shared: Arc<Shared>,
    _handle: Arc<Handle>,
}

/// State that the session, its streams and its task share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    permits: Arc<Semaphore>,
    end: watch::Sender<Option<SessionError>>,
}

/// Ends the session when the last clone is dropped.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics with the lock; a state that is left behind would still be consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// End of a session, and of all its streams.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the server closed the connection to the pod")]
    Closed,
    #[error("the connection to the pod failed: {0}")]
    Io(Arc<io::Error>),
    #[error("the server violates the port-forward protocol: {0}")]
    Spdy(#[from] SpdyError),
    #[error("the server sends requests and does not read the answers")]
    Flooded,
    #[error("the connection to the pod is dead: nothing was received for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the connection to the pod has used all its stream ids")]
    Exhausted,
}

/// Failure of one connection to a port.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The kubelet's own text.
    #[error("{text}")]
    Remote { text: String },
    #[error("the connection to port {port} of the pod was reset")]
    Reset { port: u16 },
    #[error("the kubelet did not accept a connection to port {port} within 30 s")]
    NoReply { port: u16 },
    #[error(
        "the local client of port {port} read nothing for 15 s while others waited for the same connection to the pod"
    )]
    Stalled { port: u16 },
    #[error("the connection to the pod takes no more requests")]
    Congested,
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Session(_) => io::ErrorKind::ConnectionAborted,
            StreamError::Reset { .. } => io::ErrorKind::ConnectionReset,
            StreamError::NoReply { .. } | StreamError::Stalled { .. } => io::ErrorKind::TimedOut,
            StreamError::Remote { .. } | StreamError::Congested => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl Session {
    /// Starts a session on a connection that was upgraded to SPDY. Its task runs in the current
    /// tokio runtime.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_STREAMS)),
            end: watch::Sender::new(None),
        });
        tokio::spawn(Driver::new(io, Arc::clone(&shared)).run());
        Self {
            _handle: Arc::new(Handle(Arc::clone(&shared))),
            shared,
        }
    }

    /// Opens a connection to a port of the pod. The kubelet accepts it before it connects to the
    /// port: a refused connection is an error of the first read.
    ///
    /// # Errors
    /// [`StreamError`] if the session has ended or the kubelet does not accept the connection.
    pub async fn connect(&self, port: u16) -> Result<PortStream, StreamError> {
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await;
        let permit = permit.map_err(|_| self.end().unwrap_or(SessionError::Closed))?;
        let id = self.shared.lock().open(port)?;
        // Dropping it resets the streams, too if this future is dropped.
        let stream = PortStream::new(Arc::clone(&self.shared), id, port, permit);
        match timeout(REPLY_TIMEOUT, stream.opened()).await {
            Ok(opened) => opened.map(|()| stream),
            Err(_) => Err(StreamError::NoReply { port }),
        }
    }

    /// Returns true if a local client that does not read, or slowly, holds up all streams.
    pub fn is_held_up(&self) -> bool {
        self.shared.lock().is_held_up()
    }

    /// Returns false if the session has ended or the server accepts no further streams.
    pub fn is_open(&self) -> bool {
        self.shared.lock().is_open()
    }

    /// Waits until the session has ended. Returns the reason.
    pub async fn ended(&self) -> SessionError {
        let mut end = self.shared.end.subscribe();
        match end.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(end)) => end.clone(),
            _ => SessionError::Closed,
        }
    }

    fn end(&self) -> Option<SessionError> {
        self.shared.end.borrow().clone()
    }
}

#[cfg(test)]
mod tests;
