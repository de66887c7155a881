//! Bytes and datagrams between a client and an endpoint.

mod error;
mod relay;

pub use error::TunnelError;
pub use relay::Relay;
