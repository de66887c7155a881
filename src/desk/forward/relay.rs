//! Relay of a local connection.

use std::cell::Cell;

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::http::Upgraded;
use crate::tunnel::{Relay, TunnelError};

/// Connections and bytes of a target so far.
#[derive(Debug, Default)]
pub struct Traffic {
    pub open: Cell<usize>,
    pub total: Cell<u64>,
    /// Bytes towards the target.
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
}

/// Local connection that is reset when it is dropped, unless it has been relayed to its end.
#[derive(Debug)]
pub struct Client(Option<TcpStream>);

impl Client {
    pub fn new(stream: TcpStream) -> Self {
        Self(Some(stream))
    }

    /// Relays bytes, first those of `input` to the target, until both sides have ended. The end of
    /// one is passed on as its end only, and a failure resets the other.
    ///
    /// # Errors
    /// [`TunnelError`] with the side that failed.
    pub async fn relay(
        mut self,
        input: Bytes,
        remote: Upgraded,
        traffic: &Traffic,
    ) -> Result<(), TunnelError> {
        let Some(local) = self.0.take() else {
            return Ok(());
        };
        let relay = Relay::new(Upgraded::from_tcp(local, input), remote);
        relay.run(&traffic.sent, &traffic.received).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            // Fails if the client has closed the connection.
            let _ = stream.set_zero_linger();
        }
    }
}
