//! The commands for the desk, and the API server as they use it.

mod kubelet;
mod plugin;

pub use kubelet::{kubectl, kubectl_reaches_containers_through_the_kubelet, reach_containers};
pub use plugin::*;
