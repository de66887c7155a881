//! Frames of SPDY/3.1, as far as Kubernetes uses them for port-forward.
//!
//! Flow control is left out as in the implementation of Kubernetes: windows are neither announced
//! nor respected, and `SETTINGS` and `WINDOW_UPDATE` are skipped. Backpressure is that of the
//! connection, for all of its streams together.

mod decode;
mod encode;
mod headers;

pub use decode::{Decoder, Frame};
pub use encode::Encoder;
pub use headers::Headers;

const VERSION: u16 = 3;
/// Bit of the first word that is set for control frames.
const CONTROL: u32 = 1 << 31;
/// Largest stream id.
pub const MAX_STREAM_ID: u32 = CONTROL - 1;
/// Length in bytes of the head of a frame.
const FRAME_HEAD: usize = 8;
/// Flag of the last frame that a side sends on a stream.
const FLAG_FIN: u8 = 0x01;
/// Maximum length in bytes of a frame with a header block.
const MAX_HEADER_FRAME: usize = 16 * 1024;
/// Maximum length in bytes of the payload of a frame that this side sends.
pub const MAX_DATA: usize = 16 * 1024;

/// Type of a control frame.
mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
}

/// Reason of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetStatus(pub u32);

impl ResetStatus {
    pub const REFUSED_STREAM: Self = Self(3);
    pub const CANCEL: Self = Self(5);
}

/// Violation of the framing. The connection cannot be used any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpdyError {
    #[error("the SPDY frame has version {version} instead of 3")]
    UnsupportedVersion { version: u16 },
    #[error("the SPDY frame of type {kind} has an invalid length, {length}")]
    InvalidLength { kind: u16, length: usize },
    #[error("the SPDY frame of type {kind} belongs to no stream")]
    NoStream { kind: u16 },
    #[error("the headers of the SPDY stream cannot be decompressed, or are too long")]
    InvalidHeaders,
}
