//! What a client's connection takes up as long as anything of it is open.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::metrics::OpenGuard;

/// A peer that is silent for so long is asked whether it is there, as often again, and given up after so many times: one
/// that vanished must not hold its place, and its tunnel's other end, for ever. They are Go's.
const SILENCE: Duration = Duration::from_secs(15);
const PROBES: u32 = 9;

/// Sets up a connection, of either side.
///
/// # Errors
/// Where the peer has reset it already.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    // Without it a small message waits for the acknowledgement of the one before (Nagle).
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE).with_retries(PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// A place among the connections that may be open, and one in the metrics. The connection holds it, and so does each of
/// its requests until the answer's last byte, and each tunnel, which may outlive the connection's own task.
#[derive(Clone, Debug)]
pub struct Held(Rc<Place>);

#[derive(Debug)]
struct Place {
    _counted: OpenGuard,
    _permit: Option<OwnedSemaphorePermit>,
    /// How many times it was taken up.
    used: Cell<u64>,
}

impl Held {
    pub fn new(counted: OpenGuard, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self(Rc::new(Place { _counted: counted, _permit: permit, used: Cell::new(0) }))
    }

    /// For one more request.
    pub fn by_request(&self) -> Self {
        self.0.used.set(self.0.used.get() + 1);
        self.clone()
    }

    /// How many requests there have been, where none is open now and the connection alone holds its place.
    pub fn idle_since(&self) -> Option<u64> {
        (Rc::strong_count(&self.0) == 1).then(|| self.0.used.get())
    }
}
