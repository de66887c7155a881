//! Bounds of what one process holds, whoever asks and whatever answers: memory, file descriptors,
//! reviews in flight.
//!
//! The limits are generous, and none is a time. Each test prints what it measured.

#[path = "bounds/descriptors.rs"]
mod descriptors;
#[path = "bounds/pages.rs"]
mod pages;
#[path = "bounds/reviews.rs"]
mod reviews;
#[path = "support/mod.rs"]
mod support;

const MIB: usize = 1 << 20;
