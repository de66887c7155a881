//! Frames of WebSocket connections (RFC 6455 section 5), without I/O.

use bytes::BufMut;

/// Maximum length in bytes of the payload of a control frame (RFC 6455 section 5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;
/// Maximum length in bytes of a frame head: two bytes, a length of eight and a mask.
pub const MAX_FRAME_HEAD: usize = 14;
/// Status of a connection that has fulfilled its purpose (RFC 6455 section 7.4.1).
pub const NORMAL_CLOSURE: u16 = 1000;
/// Status of an endpoint that goes away.
pub const GOING_AWAY: u16 = 1001;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// Lengths that announce a length of two or eight bytes.
const LENGTH_OF_TWO: u8 = 126;
const LENGTH_OF_EIGHT: u8 = 127;

/// Type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn parse(bits: u8) -> Result<Self, FrameError> {
        Ok(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            opcode => return Err(FrameError::ReservedOpcode { opcode }),
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    /// Returns true for frames that may come between the fragments of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Bytes before the payload of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Last frame of its message.
    pub fin: bool,
    pub opcode: Opcode,
    /// Mask of the payload, which clients must send and servers must not.
    pub mask: Option<[u8; 4]>,
    /// Length of the payload in bytes.
    pub length: u64,
}

impl FrameHead {
    /// Parses the head at the start of `bytes`. Returns it with its length, or `None` if it is not
    /// complete.
    ///
    /// # Errors
    /// [`FrameError`] if the head is not valid without an extension.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        if first & RESERVED != 0 {
            return Err(FrameError::ReservedBits);
        }
        let opcode = Opcode::parse(first & 0x0F)?;
        let fin = first & FIN != 0;
        let short = second & !MASKED;
        if opcode.is_control() && (!fin || usize::from(short) > MAX_CONTROL_PAYLOAD) {
            return Err(FrameError::InvalidControl { opcode });
        }
        let (length, rest) = match short {
            LENGTH_OF_TWO => match rest.split_first_chunk() {
                Some((length, rest)) => (u16::from_be_bytes(*length).into(), rest),
                None => return Ok(None),
            },
            LENGTH_OF_EIGHT => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            length => (length.into(), rest),
        };
        let minimum = match short {
            LENGTH_OF_TWO => u64::from(LENGTH_OF_TWO),
            LENGTH_OF_EIGHT => 1 << 16,
            _ => 0,
        };
        // The most significant bit must be 0, and the shortest form must be used.
        if length < minimum || length >> 63 != 0 {
            return Err(FrameError::InvalidLength { length });
        }
        let (mask, rest) = if second & MASKED == 0 {
            (None, rest)
        } else {
            match rest.split_first_chunk() {
                Some((mask, rest)) => (Some(*mask), rest),
                None => return Ok(None),
            }
        };
        let head = Self {
            fin,
            opcode,
            mask,
            length,
        };
        Ok(Some((head, bytes.len() - rest.len())))
    }

    /// Appends the head to `output`. The payload follows, masked with the head's mask.
    pub fn encode(&self, output: &mut impl BufMut) {
        let masked = if self.mask.is_some() { MASKED } else { 0 };
        output.put_u8(self.opcode.bits() | if self.fin { FIN } else { 0 });
        match (u8::try_from(self.length), u16::try_from(self.length)) {
            (Ok(length @ ..LENGTH_OF_TWO), _) => output.put_u8(masked | length),
            (_, Ok(length)) => {
                output.put_u8(masked | LENGTH_OF_TWO);
                output.put_u16(length);
            }
            _ => {
                output.put_u8(masked | LENGTH_OF_EIGHT);
                output.put_u64(self.length);
            }
        }
        if let Some(mask) = self.mask {
            output.put_slice(&mask);
        }
    }
}

/// Masks a payload, or removes its mask.
pub fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Violation of the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the WebSocket frame uses an extension that was not negotiated")]
    ReservedBits,
    #[error("the WebSocket frame has the reserved opcode {opcode}")]
    ReservedOpcode { opcode: u8 },
    #[error("the {opcode:?} frame of the WebSocket is fragmented or longer than 125 bytes")]
    InvalidControl { opcode: Opcode },
    #[error("the WebSocket frame has an invalid length, {length}")]
    InvalidLength { length: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_encodes() {
        for opcode in [Opcode::Text, Opcode::Binary, Opcode::Continuation] {
            for fin in [true, false] {
                for mask in [None, Some([1, 2, 3, 4])] {
                    for length in [0, 1, 125, 126, 65535, 65536, u64::MAX >> 1] {
                        let head = FrameHead {
                            fin,
                            opcode,
                            mask,
                            length,
                        };
                        let mut bytes = Vec::new();
                        head.encode(&mut bytes);
                        assert!(bytes.len() <= MAX_FRAME_HEAD);
                        for end in 0..bytes.len() {
                            assert_eq!(FrameHead::parse(&bytes[..end]), Ok(None), "{head:?}");
                        }
                        let end = bytes.len();
                        bytes.extend(b"payload");
                        assert_eq!(FrameHead::parse(&bytes), Ok(Some((head, end))));
                    }
                }
            }
        }
    }

    #[test]
    fn encodes_the_examples_of_the_rfc() {
        // RFC 6455 section 5.7.
        let head = |mask, length| FrameHead {
            fin: true,
            opcode: Opcode::Text,
            mask,
            length,
        };
        let mut hello = Vec::new();
        head(None, 5).encode(&mut hello);
        assert_eq!(hello, [0x81, 0x05]);
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut masked = Vec::new();
        head(Some(mask), 5).encode(&mut masked);
        assert_eq!(masked, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d]);
        let mut payload = *b"Hello";
        apply_mask(&mut payload, mask);
        assert_eq!(payload, [0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }

    #[test]
    fn rejects_invalid_heads() {
        let opcode = Opcode::Ping;
        for (bytes, error) in [
            (&[0xC2, 0x00][..], FrameError::ReservedBits),
            (&[0x83, 0x00], FrameError::ReservedOpcode { opcode: 3 }),
            (&[0x8B, 0x00], FrameError::ReservedOpcode { opcode: 11 }),
            (&[0x09, 0x00], FrameError::InvalidControl { opcode }),
            (&[0x89, 0x7E], FrameError::InvalidControl { opcode }),
            (
                &[0x82, 0x7E, 0, 125],
                FrameError::InvalidLength { length: 125 },
            ),
            (
                &[0x82, 0x7F, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF],
                FrameError::InvalidLength { length: 65535 },
            ),
            (
                &[0x82, 0x7F, 0x80, 0, 0, 0, 0, 0, 0, 0],
                FrameError::InvalidLength { length: 1 << 63 },
            ),
        ] {
            assert_eq!(FrameHead::parse(bytes), Err(error), "{bytes:?}");
        }
    }
}
