//! Capsules (RFC 9297) with the datagrams of a UDP tunnel (RFC 9298 section 5).

use bytes::{Buf, Bytes, BytesMut};

/// Maximum length in bytes of the payload of a datagram in a capsule (RFC 9298 section 5).
pub const MAX_PAYLOAD: usize = 65_527;
/// Maximum length in bytes of what precedes the payload: type, length and context, of 8 bytes each.
pub const MAX_HEAD: usize = 24;

/// Capsule type of datagrams.
const DATAGRAM: u64 = 0;
/// Context of the payload of UDP packets.
const UDP_PAYLOAD: u64 = 0;
/// Maximum value of a variable-length integer (RFC 9000 section 16).
const MAX_INTEGER: u64 = (1 << 62) - 1;

/// Violation of the protocol, after which the stream must be aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapsuleError {
    #[error("the payload of a datagram has {0} bytes, more than {MAX_PAYLOAD}")]
    TooLong(u64),
    #[error("a DATAGRAM capsule of {0} bytes ends within its context ID")]
    NoContext(u64),
    #[error("the stream ended within a capsule")]
    Truncated,
}

/// Decoder of the capsules on a stream. Unknown capsules, and datagrams of unknown contexts, are
/// skipped as their bytes arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Number of bytes of a capsule that are still to be skipped.
    skip: u64,
    /// Length of a payload whose head has been removed from the input.
    payload: Option<usize>,
}

impl Decoder {
    /// Removes the next datagram from `input` and returns its payload, which may be empty. `None`
    /// if more bytes are needed; then at most [`MAX_HEAD`] + [`MAX_PAYLOAD`] bytes remain.
    ///
    /// # Errors
    /// [`CapsuleError`] if the stream must be aborted.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, CapsuleError> {
        loop {
            if self.skip > 0 {
                let skipped =
                    usize::try_from(self.skip).map_or(input.len(), |it| it.min(input.len()));
                input.advance(skipped);
                self.skip -= skipped as u64;
                if self.skip > 0 {
                    return Ok(None);
                }
            }
            if let Some(length) = self.payload {
                if input.len() < length {
                    return Ok(None);
                }
                self.payload = None;
                return Ok(Some(input.split_to(length).freeze()));
            }
            if !self.decode_head(input)? {
                return Ok(None);
            }
        }
    }

    /// Removes the head of a capsule. Returns false if it is incomplete.
    fn decode_head(&mut self, input: &mut BytesMut) -> Result<bool, CapsuleError> {
        let bytes = &input[..];
        let Some((kind, rest)) = split_integer(bytes) else {
            return Ok(false);
        };
        let Some((length, rest)) = split_integer(rest) else {
            return Ok(false);
        };
        if kind != DATAGRAM {
            let head = bytes.len() - rest.len();
            input.advance(head);
            self.skip = length;
            return Ok(true);
        }
        // The first byte of the context has its length.
        let Some(first) = rest.first() else {
            return if length == 0 {
                Err(CapsuleError::NoContext(length))
            } else {
                Ok(false)
            };
        };
        if integer_length(*first) as u64 > length {
            return Err(CapsuleError::NoContext(length));
        }
        let Some((context, payload)) = split_integer(rest) else {
            return Ok(false);
        };
        let remaining = length - (rest.len() - payload.len()) as u64;
        let head = bytes.len() - payload.len();
        if context == UDP_PAYLOAD {
            let fits = usize::try_from(remaining).ok();
            let fits = fits.filter(|length| *length <= MAX_PAYLOAD);
            self.payload = Some(fits.ok_or(CapsuleError::TooLong(remaining))?);
        } else {
            self.skip = remaining;
        }
        input.advance(head);
        Ok(true)
    }

    /// Checks that a stream may end with `input` as its last bytes.
    ///
    /// # Errors
    /// [`CapsuleError::Truncated`] within a capsule.
    pub fn finish(&self, input: &[u8]) -> Result<(), CapsuleError> {
        if self.skip > 0 || self.payload.is_some() || !input.is_empty() {
            return Err(CapsuleError::Truncated);
        }
        Ok(())
    }
}

/// Appends a capsule with a datagram of at most [`MAX_PAYLOAD`] bytes.
pub fn encode_datagram(payload: &[u8], output: &mut Vec<u8>) {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    encode_integer(DATAGRAM, output);
    // The context takes one byte.
    encode_integer(payload.len() as u64 + 1, output);
    encode_integer(UDP_PAYLOAD, output);
    output.extend_from_slice(payload);
}

/// Appends a variable-length integer (RFC 9000 section 16) in its shortest form.
fn encode_integer(value: u64, output: &mut Vec<u8>) {
    debug_assert!(value <= MAX_INTEGER);
    let bytes = value.to_be_bytes();
    let (length, prefix) = match value {
        0..=0x3f => (1, 0x00),
        0x40..=0x3fff => (2, 0x40),
        0x4000..=0x3fff_ffff => (4, 0x80),
        _ => (8, 0xc0),
    };
    let start = output.len();
    output.extend_from_slice(&bytes[8 - length..]);
    output[start] |= prefix;
}

/// Returns the length in bytes of the integer that begins with this byte.
fn integer_length(first: u8) -> usize {
    1 << (first >> 6)
}

/// Splits a variable-length integer off. Any length is valid for a value. `None` if it is
/// incomplete.
fn split_integer(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = integer_length(*bytes.first()?);
    let (integer, rest) = bytes.split_at_checked(length)?;
    let value = integer
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    // Without the two bits of the length.
    Some((value & (u64::MAX >> (66 - 8 * length)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes bytes that arrive in pieces of `size` bytes.
    fn decode(bytes: &[u8], size: usize) -> (Vec<Bytes>, Result<(), CapsuleError>) {
        let (mut decoder, mut input, mut datagrams) =
            (Decoder::default(), BytesMut::new(), Vec::new());
        for piece in bytes.chunks(size) {
            input.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut input) {
                    Ok(Some(datagram)) => datagrams.push(datagram),
                    Ok(None) => break,
                    Err(error) => return (datagrams, Err(error)),
                }
            }
            assert!(input.len() <= MAX_HEAD + MAX_PAYLOAD, "{}", input.len());
        }
        let finished = decoder.finish(&input);
        (datagrams, finished)
    }

    #[test]
    fn decodes_integers_of_rfc_9000() {
        // The examples of RFC 9000 appendix A.1.
        let cases: [(&[u8], u64); 5] = [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in cases {
            assert_eq!(split_integer(bytes), Some((value, &[][..])));
            assert_eq!(split_integer(&bytes[..bytes.len() - 1]), None);
        }
        for value in [
            0,
            63,
            64,
            16_383,
            16_384,
            (1 << 30) - 1,
            1 << 30,
            MAX_INTEGER,
        ] {
            let mut bytes = Vec::new();
            encode_integer(value, &mut bytes);
            assert_eq!(split_integer(&bytes), Some((value, &[][..])));
        }
    }

    #[test]
    fn decodes_what_it_encodes_in_any_pieces() {
        let longest = vec![1; MAX_PAYLOAD];
        let payloads = [&b""[..], b"x", &[7; 62], &[8; 63], &[9; 1200], &longest];
        let mut stream = Vec::new();
        for payload in payloads {
            encode_datagram(payload, &mut stream);
        }
        for size in [1, 2, 3, 1000, stream.len()] {
            let (datagrams, finished) = decode(&stream, size);
            assert_eq!(datagrams, payloads, "pieces of {size}");
            assert_eq!(finished, Ok(()));
        }
    }

    #[test]
    fn skips_unknown_capsules_and_contexts() {
        let mut stream = Vec::new();
        // Capsule type 0x1234 of 100,000 bytes, a datagram of context 2, and one of a context that
        // is longer than a payload may be.
        stream.extend([0x52, 0x34, 0x80, 0x01, 0x86, 0xa0]);
        stream.extend(vec![0; 100_000]);
        stream.extend([0, 3, 2, b'a', b'b']);
        stream.extend([0, 0x80, 0x01, 0x00, 0x00, 5]);
        stream.extend(vec![0; 0xffff]);
        // A capsule without a value.
        stream.extend([0x17, 0]);
        encode_datagram(b"kept", &mut stream);
        for size in [1, 7, 4096, stream.len()] {
            let decoded = decode(&stream, size);
            assert_eq!(
                decoded,
                (vec![Bytes::from("kept")], Ok(())),
                "pieces of {size}"
            );
        }
    }

    #[test]
    fn rejects_malformed_datagrams_and_truncated_streams() {
        for (bytes, error) in [
            (&[0, 0][..], CapsuleError::NoContext(0)),
            // A context of two bytes in a capsule of one.
            (&[0, 1, 0x40, 0], CapsuleError::NoContext(1)),
            // A payload of 65,528 bytes, none of which has arrived.
            (&[0, 0x80, 0, 0xff, 0xf9, 0], CapsuleError::TooLong(65_528)),
            (&[0], CapsuleError::Truncated),
            (&[0, 5, 0, b'x'], CapsuleError::Truncated),
            (&[0x17, 5, 0, b'x'], CapsuleError::Truncated),
        ] {
            let decoded = decode(bytes, 1);
            assert_eq!(decoded, (Vec::new(), Err(error)), "{bytes:?}");
        }
    }
}
