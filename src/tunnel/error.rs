//! Failures of tunnels.

use std::io;

use tokio::sync::oneshot;

/// Failure of a tunnel, by the side that caused it.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The client disconnected before the response to its upgrade was sent.
    #[error("the client disconnected before the upgrade")]
    Gone(#[from] oneshot::error::RecvError),
    /// The connection or stream of the client failed.
    #[error("the client's side of the tunnel failed: {0}")]
    Client(#[source] io::Error),
    /// The connection to the endpoint failed.
    #[error("the endpoint's side of the tunnel failed: {0}")]
    Endpoint(#[source] io::Error),
}
