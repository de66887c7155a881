//! Injected failures under load. No request fails, except where a scenario states the reason.

mod api;
mod endpoints;
mod rotation;

pub use api::*;
pub use endpoints::*;
pub use rotation::*;
