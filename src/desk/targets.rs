//! Objects of a cluster that commands reach: the arguments that name them, their look-up, their
//! ports, and their ready pods.

mod dial;
pub mod lookup;
pub mod pods;
pub mod ports;
pub mod probe;
pub mod ready;
pub mod reference;

pub use dial::DialError;
pub use lookup::{Found, LookupError, Object, Pods};
pub use ports::{Port, Protocol};
pub use ready::ReadyPods;
pub use reference::{Kind, Reference, ReferenceError};
