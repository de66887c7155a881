//! Tunnels: the bytes in both directions after an upgrade.

use std::cell::Cell;

use tokio::sync::oneshot;

use crate::apiservers::RequestGuard;
use crate::http::{Upgraded, UpgradedConnection};
use crate::tunnel::{Relay, TunnelError};

/// Connections of a client and an endpoint about to be joined.
#[derive(Debug)]
pub struct Tunnel {
    /// Arrives after the response to the upgrade is sent.
    pub client: oneshot::Receiver<Upgraded>,
    pub upstream: UpgradedConnection,
    /// Request on an API server, which lasts as long as the tunnel.
    pub guard: Option<Box<RequestGuard>>,
}

impl Tunnel {
    /// Relays in both directions until both sides have ended. `received` and `sent` count the bytes
    /// from and to the client. Either side may send data directly behind its head (C90), which is
    /// relayed before the rest.
    ///
    /// # Errors
    /// [`TunnelError`] if the upgrade of a side or its connection fails.
    pub async fn run(self, received: &Cell<u64>, sent: &Cell<u64>) -> Result<(), TunnelError> {
        let client = self.client.await?;
        Relay::new(client, Upgraded::Http1(self.upstream))
            .run(received, sent)
            .await
    }
}
