//! The commands for the desk, and the API server as they use it.

mod kubelet;
mod plugin;

pub use kubelet::*;
pub use plugin::*;
