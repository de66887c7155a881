//! Commands of the desk, with the binary on loopback.

#[path = "desk/api.rs"]
mod api;
#[path = "desk/kubeconfig.rs"]
mod kubeconfig;
#[path = "desk/proxy.rs"]
mod proxy;

#[path = "desk/open.rs"]
mod open;
#[path = "support/mod.rs"]
mod support;
