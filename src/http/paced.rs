//! Response bodies that know how fast their client is.

use std::pin::Pin;
use std::task::Context;

use bytes::Bytes;
use http_body::Body;

/// Body of a response to a client.
pub trait PacedBody: Body<Data = Bytes, Error: std::fmt::Display> + Unpin {
    /// Returns true for a response of the bastion itself, which has the shorter write timeout.
    fn is_own(&self) -> bool;

    /// The client does not take the last part yet. A body that comes from an endpoint keeps the
    /// request body moving and reads less in one step.
    fn poll_blocked(self: Pin<&mut Self>, context: &mut Context<'_>);
}
