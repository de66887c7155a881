//! HTTP code shared by both sides of the proxy: header lists, hop-by-hop rules, interim responses,
//! limits, and the executor of hyper's tasks.

mod cgi;
mod executor;
mod header_list;
mod hop;
mod interim;

use http::HeaderValue;

pub use cgi::cgi_starts_with;
pub use executor::LocalExecutor;
pub use header_list::tokens;
pub use hop::{is_hop_by_hop, remove_hop_by_hop};
pub use interim::{Interim, WithInterim};

/// Maximum size of a message head in bytes, Go's limit (CONFORMANCE C102).
///
/// The maximum number of HTTP/1.1 fields stays at hyper's 100, which Envoy and HAProxy use too.
/// With a higher one hyper initializes a list of that length for each message, which at 256 was
/// measured as an eighth of all instructions of a request.
pub const MAX_HEADER_BYTES: u32 = 1024 * 1024;

/// Maximum number of header fields, and of trailer fields, of one message on either side.
///
/// Browsers send about 20, and applications that split a session into cookies a few hundred. Over
/// HTTP/1.1, hyper's limit of 100 applies before. `http::HeaderMap` panics at 24,576 names, so this
/// leaves ample room for fields that the bastion adds.
pub const MAX_HEADERS: usize = 1000;

/// `Cache-Control` of responses that do not set it, as in kube-apiserver (CONFORMANCE C71).
pub const DEFAULT_CACHE_CONTROL: HeaderValue = HeaderValue::from_static("no-cache, private");
