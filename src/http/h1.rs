//! HTTP/1.1 (RFC 9112), on both sides of the proxy.
//!
//! `fields`, `request`, `response`, `framing`, `body` and `encode` are functions over bytes without
//! I/O. `server` and `client` drive them on the streams of clients and endpoints.
//!
//! The two sides differ in [`Mode`]. A request must match the grammar exactly, because an endpoint
//! that reads a malformed one differently could see another request in it. A response may deviate
//! where Go's client accepts it and the framing stays certain. All that is written matches the
//! grammar exactly, because it is formatted from validated parts and never copied.

mod body;
mod client;
mod encode;
mod fields;
mod framing;
mod output;
mod request;
mod response;
mod server;

pub use body::{BodyError, Decoded, Decoder};
pub use client::{ClientConnection, ExchangeError, Upload};
pub use encode::{BodyLength, RequestEncoder, ResponseEncoder};
pub use fields::{FieldNames, HeadError, Mode, find_head_end, remove_forbidden_trailers};
pub use framing::{Framing, FramingError, has_no_body, length};
pub use request::{ParsedRequest, RejectedLine, RequestError, is_continue, parse_request};
pub use response::{ParsedResponse, ResponseError, parse_response};
pub use server::{Incoming, Interim, ServerConnection, Timeouts};
