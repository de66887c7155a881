//! Tables of malformed, ambiguous and unusual HTTP messages (RFC 9112, 9110, 9113, 3986), sent
//! through the bastion as bytes. The endpoint parses strictly and records what it receives.
//!
//! Each table collects its failures and prints them as one list. `CODEC_CASE` selects the cases
//! whose name contains its value.

#[path = "codec/case.rs"]
mod case;
#[path = "codec/chunked.rs"]
mod chunked;
#[path = "codec/client.rs"]
mod client;
#[path = "codec/endpoint.rs"]
mod endpoint;
#[path = "codec/exchange.rs"]
mod exchange;
#[path = "codec/expect.rs"]
mod expect;
#[path = "codec/fields.rs"]
mod fields;
#[path = "codec/frames.rs"]
mod frames;
#[path = "codec/framing.rs"]
mod framing;
#[path = "codec/host.rs"]
mod host;
#[path = "codec/http2.rs"]
mod http2;
#[path = "codec/request_line.rs"]
mod request_line;
#[path = "codec/response_framing.rs"]
mod response_framing;
#[path = "codec/response_head.rs"]
mod response_head;
#[path = "codec/runner.rs"]
mod runner;
#[path = "codec/streams.rs"]
mod streams;
#[path = "codec/strict.rs"]
mod strict;
#[path = "support/mod.rs"]
mod support;
#[path = "codec/target.rs"]
mod target;
