//! Bounds of one process under attack: memory, file descriptors, pending reviews.
//!
//! The limits are generous and do not depend on time. Each test prints its measurements.

#[path = "bounds/descriptors.rs"]
mod descriptors;
#[path = "bounds/heads.rs"]
mod heads;
#[path = "bounds/pages.rs"]
mod pages;
#[path = "bounds/reviews.rs"]
mod reviews;
#[path = "support/mod.rs"]
mod support;

const MIB: usize = 1 << 20;
