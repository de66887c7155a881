//! The port-forward protocol of Kubernetes: TCP connections to the ports of a pod through the API
//! server.

pub mod session;
pub mod spdy;
pub mod websocket;
