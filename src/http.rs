//! HTTP for both sides of the proxy: header lists and hop-by-hop rules, interim responses, limits,
//! and the executor of hyper's tasks.

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

/// Bytes of the head of a message, as Go allows them (CONFORMANCE C102). The number of fields stays
/// at hyper's 100, which is Envoy's and HAProxy's too: a higher one makes hyper set up a list of
/// that length for every message, which at 256 was measured as an eighth of all instructions of a
/// request.
pub const MAX_HEADER_BYTES: u32 = 1024 * 1024;
