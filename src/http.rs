//! HTTP code shared by both sides of the proxy: the HTTP/1.1 codec, request types, streams, header
//! lists, hop-by-hop rules, headers of front proxies, limits, frames of the WebSocket protocol, and
//! the executor of hyper's HTTP/2 tasks.

mod authority;
mod byte_check;
mod cgi;
mod clock;
mod date;
mod executor;
mod forwarded;
pub mod h1;
pub mod h2;
mod handler;
mod head_memory;
mod header_list;
mod hop;
mod observed;
mod paced;
mod request;
mod stream;
mod target;
mod upgraded;
pub mod websocket;

use http::{HeaderName, HeaderValue};

pub use authority::is_authority;
pub use byte_check::all_bytes;
pub use cgi::cgi_starts_with;
pub use clock::Clock;
pub use executor::LocalExecutor;
pub use forwarded::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, Forwarded};
pub use handler::{Handler, Interim, Reply};
pub use head_memory::HeadMemory;
pub use header_list::tokens;
pub use hop::{is_hop_by_hop, remove_hop_by_hop, rules_origin, speaks_for_origin};
pub use observed::{ObservedStream, ReadObserver};
pub use paced::PacedBody;
pub use request::{ReceiveError, Request, RequestBody, RequestHead, without_forbidden_trailers};
pub use stream::{ReadSize, Stream, Transport};
pub use target::{InvalidTarget, RequestTarget};
pub use upgraded::{Upgraded, UpgradedConnection};

/// Maximum size of a message head in bytes, Go's limit (CONFORMANCE C102).
pub const MAX_HEADER_BYTES: u32 = 1024 * 1024;

/// Maximum number of header fields, and of trailer fields, of one message on either side.
///
/// Browsers send about 20, and applications that split a session into cookies a few hundred.
/// `http::HeaderMap` panics at 24,576 names, so this leaves ample room for fields that the bastion
/// adds.
pub const MAX_HEADERS: usize = 1000;

/// `Cache-Control` of responses that do not set it, as in kube-apiserver (CONFORMANCE C71).
pub const DEFAULT_CACHE_CONTROL: HeaderValue = HeaderValue::from_static("no-cache, private");

/// Host that the browser of a client used, in a request of the forward-proxy form. The endpoint gets
/// it as `Host`, so that an application that compares `Host` with `Origin` finds them equal.
pub const KUBE_BASTION_HOST: HeaderName = HeaderName::from_static("kube-bastion-host");
