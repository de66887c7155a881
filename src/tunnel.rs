//! Bytes and datagrams between a client and an endpoint.

pub mod capsule;
mod error;
mod relay;

pub use error::TunnelError;
pub use relay::Relay;
