//! The commands for the desk, and the API server as they use it.

mod kubelet;

pub use kubelet::kubectl_reaches_containers_through_the_kubelet;
