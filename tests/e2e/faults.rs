//! Faults with requests flowing through all of them: no request fails, unless a scenario says why.

mod api;
mod endpoints;
mod rotation;

pub use api::*;
pub use endpoints::*;
pub use rotation::*;
