//! The port-forward protocol of Kubernetes: TCP connections to the ports of a pod through the API
//! server.

pub mod spdy;
