//! The port-forward protocol of Kubernetes: TCP connections to the ports of a pod through the API
//! server.

mod open;
pub mod session;
pub mod spdy;
pub mod websocket;

pub use open::{OpenError, open};
pub use session::{PortStream, Session, SessionError, StreamError};
