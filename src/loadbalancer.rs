//! Services of `type: LoadBalancer`.

pub mod listener;

pub use listener::{BindFailures, ListenerKey, ListenerSpec, Listeners, Protocol};
