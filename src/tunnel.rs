//! Bytes and datagrams between a client and an endpoint.

pub mod capsule;
pub mod connect_udp;
mod error;
mod relay;
pub mod udp;

pub use error::TunnelError;
pub use relay::Relay;
