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
#[path = "bounds/transfers.rs"]
mod transfers;

const MIB: usize = 1 << 20;

/// A complete response of an endpoint.
const OK_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
