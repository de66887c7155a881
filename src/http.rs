//! HTTP code shared by both sides of the proxy: header lists, hop-by-hop rules, interim responses,
//! limits, and the executor of hyper's tasks.

mod cgi;
mod executor;
mod header_list;
mod hop;
mod interim;

pub use cgi::reads_as;
pub use executor::LocalExecutor;
pub use header_list::tokens;
pub use hop::{MAX_HEADERS, is_hop_by_hop, remove_hop_by_hop};
pub use interim::{Interim, WithInterim};

/// Maximum size of a message head in bytes, Go's limit (CONFORMANCE C102).
///
/// The maximum number of HTTP/1.1 fields stays at hyper's 100, which Envoy and HAProxy use too.
/// With a higher one hyper initializes a list of that length for each message, which at 256 was
/// measured as an eighth of all instructions of a request.
pub const MAX_HEADER_BYTES: u32 = 1024 * 1024;
