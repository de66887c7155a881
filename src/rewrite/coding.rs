//! Content codings (RFC 9110 section 8.4.1) of rewritten pages. Each step of a decoder is bounded
//! in input and output, so that it costs the same whatever a page decodes to.

use std::io;

use bytes::{Buf, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Memory of a decoder in bytes: zlib-rs allocates 46 KiB for state and window.
const DECODER_BYTES: usize = 48 * 1024;

/// Memory of an encoder in bytes: zlib-rs allocates 371 KiB at the fastest level.
const ENCODER_BYTES: usize = 384 * 1024;

/// Maximum memory of a coding, in bytes.
pub const MAX_HELD_BYTES: usize = DECODER_BYTES + ENCODER_BYTES;

/// Maximum input of one step of a decoder, in bytes. Bounding the output does not bound the input:
/// an empty deflate block is 5 bytes, and the comment in a gzip header may have any length.
pub const MAX_INPUT_BYTES_PER_STEP: usize = 4 * 1024;

/// Base-2 logarithm of the deflate window size. This is the largest, which every decoder supports
/// (RFC 1951 section 2).
const WINDOW_BITS: u8 = 15;

/// Capacity that the encoder reserves in the output at a time, in bytes.
const ENCODED_CHUNK_BYTES: usize = 8 * 1024;

/// Content coding that can be decoded and encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    /// zlib according to RFC 9110 section 8.4.1.2, but some servers send a raw deflate stream. The
    /// first two bytes distinguish them.
    Deflate,
}

impl Coding {
    /// Parses a `Content-Encoding`. Returns `None` for an unsupported coding, or several.
    pub fn parse(text: &str) -> Option<Self> {
        match &*text.trim().to_ascii_lowercase() {
            "" | "identity" => Some(Self::Identity),
            // RFC 9110 section 8.4.1.3: `x-gzip` is equivalent to `gzip`.
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    /// Memory of decoder and encoder, in bytes.
    pub fn held_bytes(self) -> usize {
        match self {
            Self::Identity => 0,
            Self::Gzip | Self::Deflate => MAX_HELD_BYTES,
        }
    }
}

/// Decoder of a content coding.
pub struct Decoder {
    state: State,
    /// First bytes of a stream or of a member, at most two, until they are decoded.
    lead: Vec<u8>,
}

enum State {
    Identity,
    /// The first two bytes, which select the format, are incomplete.
    Detecting(Coding),
    /// Labeled gzip and not gzip: the stream passes unmodified.
    Passthrough,
    Inflating(Format, Box<Decompress>),
    /// A member of a gzip stream ended; another may follow (RFC 1952 section 2.2).
    BetweenMembers,
    /// The stream ended. Bytes after it are padding.
    Ended(Format),
}

/// Detected format of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Identity,
    Gzip,
    Zlib,
    Raw,
}

/// Result of one step of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Consumed input or wrote output; the value is the length of the output.
    Some(usize),
    /// A stream, or a member of a gzip stream, begins.
    Member,
    /// More input is needed.
    Starved,
}

impl Decoder {
    pub fn new(coding: Coding) -> Self {
        let state = match coding {
            Coding::Identity => State::Identity,
            Coding::Gzip | Coding::Deflate => State::Detecting(coding),
        };
        Self {
            state,
            lead: Vec::new(),
        }
    }

    /// Decodes from the front of `bytes` to the front of `out`, which must not be empty. The caller
    /// repeats it until [`Decoded::Starved`], because output may be left without further input.
    ///
    /// # Errors
    /// Returns an error if the input is invalid in the coding.
    pub fn decode(&mut self, bytes: &mut Bytes, out: &mut [u8]) -> io::Result<Decoded> {
        match &mut self.state {
            State::Detecting(_) | State::BetweenMembers => return Ok(self.start(bytes)),
            State::Inflating(format, inflate) => {
                // The bytes that selected the format are part of the stream.
                let input = if self.lead.is_empty() {
                    &bytes[..]
                } else {
                    &self.lead[..]
                };
                let input = &input[..input.len().min(MAX_INPUT_BYTES_PER_STEP)];
                // `decompress` returns no lengths, only totals.
                let (total_in, total_out) = (inflate.total_in(), inflate.total_out());
                let status = inflate.decompress(input, out, FlushDecompress::None)?;
                let read = to_index(inflate.total_in() - total_in);
                let written = to_index(inflate.total_out() - total_out);
                if self.lead.is_empty() {
                    bytes.advance(read);
                } else {
                    self.lead.drain(..read);
                }
                match status {
                    Status::StreamEnd if *format == Format::Gzip => {
                        // The checksum was correct: zlib verifies it before it reports the end.
                        self.state = State::BetweenMembers;
                    }
                    Status::StreamEnd => self.state = State::Ended(*format),
                    // Only without progress: a part of the trailer is consumed without output.
                    Status::Ok | Status::BufError if read == 0 && written == 0 => {
                        return Ok(Decoded::Starved);
                    }
                    Status::Ok | Status::BufError => {}
                }
                return Ok(Decoded::Some(written));
            }
            State::Ended(_) => {
                self.lead.clear();
                // Padding is discarded, not left, because pending input counts as memory of the
                // page.
                bytes.clear();
                return Ok(Decoded::Starved);
            }
            State::Identity | State::Passthrough => {}
        }
        Ok(self.copy(bytes, out))
    }

    /// Copies input to output unmodified.
    fn copy(&mut self, bytes: &mut Bytes, out: &mut [u8]) -> Decoded {
        // Bounded by `out`, so that a step has the same size in every coding.
        let lead = self.lead.len().min(out.len());
        out[..lead].copy_from_slice(&self.lead[..lead]);
        self.lead.drain(..lead);
        let copied = bytes.len().min(out.len() - lead);
        bytes.copy_to_slice(&mut out[lead..lead + copied]);
        if lead + copied == 0 {
            Decoded::Starved
        } else {
            Decoded::Some(lead + copied)
        }
    }

    /// Collects the first two bytes of a stream, or of a member, and selects its format.
    fn start(&mut self, bytes: &mut Bytes) -> Decoded {
        let missing = (2 - self.lead.len()).min(bytes.len());
        self.lead.extend_from_slice(&bytes.split_to(missing));
        // At the end of the input, `finish` rejects a single byte, except behind a gzip member.
        let [one, two] = self.lead[..] else {
            return Decoded::Starved;
        };
        // RFC 1952 section 2.3.1.
        let is_gzip = (one, two) == (0x1f, 0x8b);
        // RFC 1950 section 2.2: method 8, and a checksum over both bytes.
        // A raw stream does not look like this: its first block would be a stored one (RFC 1951
        // section 3.2.4) with a padding bit set, which encoders leave zero.
        let is_zlib = one & 0xf == 8 && (u16::from(one) << 8 | u16::from(two)).is_multiple_of(31);
        let inflating = |format, inflate| State::Inflating(format, Box::new(inflate));
        self.state = match self.state {
            State::Detecting(Coding::Gzip) | State::BetweenMembers if is_gzip => {
                inflating(Format::Gzip, Decompress::new_gzip(WINDOW_BITS))
            }
            State::Detecting(Coding::Gzip) => State::Passthrough,
            State::Detecting(_) if is_zlib => inflating(Format::Zlib, Decompress::new(true)),
            State::Detecting(_) => inflating(Format::Raw, Decompress::new(false)),
            // Not a further member: some servers pad gzip streams with zeros.
            _ => State::Ended(self.format()),
        };
        Decoded::Member
    }

    /// Detected format; identity until it is detected.
    fn format(&self) -> Format {
        match self.state {
            State::Identity | State::Detecting(_) | State::Passthrough => Format::Identity,
            State::BetweenMembers => Format::Gzip,
            State::Inflating(format, _) | State::Ended(format) => format,
        }
    }

    /// Returns true once any byte of the stream has arrived.
    pub fn has_begun(&self) -> bool {
        !matches!(self.state, State::Detecting(_)) || !self.lead.is_empty()
    }

    /// Returns true if decoding leaves the bytes unmodified.
    pub fn is_identity(&self) -> bool {
        matches!(self.state, State::Identity | State::Passthrough)
    }

    /// Returns true if the stream is labeled gzip and is not gzip, so that it must not be
    /// rewritten.
    pub fn is_passthrough(&self) -> bool {
        matches!(self.state, State::Passthrough)
    }

    /// Checks that the stream is complete. Call it when the decoder is starved and the input ended.
    ///
    /// # Errors
    /// Returns an error if the stream is truncated.
    pub fn finish(&self) -> io::Result<()> {
        // A gzip stream may end after any member, and a page may be empty.
        match self.state {
            // The end of the stream is missing, and its checksum if the format has one.
            State::Inflating(..) => Err(io::ErrorKind::UnexpectedEof.into()),
            State::Detecting(_) if !self.lead.is_empty() => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            _ => Ok(()),
        }
    }
}

/// Encoder of a content coding.
pub struct Encoder {
    /// `None` for identity.
    deflate: Option<Box<Compress>>,
    /// The encoder may hold back output of bytes that it consumed.
    unflushed: bool,
}

impl Encoder {
    /// Returns an encoder for the format that `decoder` detected.
    pub fn like(decoder: &Decoder) -> Self {
        // Pages are compressed for each request, so speed is more important than size.
        let level = Compression::fast();
        let deflate = match decoder.format() {
            Format::Identity => None,
            Format::Gzip => Some(Compress::new_gzip(level, WINDOW_BITS)),
            Format::Zlib => Some(Compress::new(level, true)),
            Format::Raw => Some(Compress::new(level, false)),
        };
        Self {
            deflate: deflate.map(Box::new),
            unflushed: false,
        }
    }

    /// Returns true if encoding leaves the bytes unmodified.
    pub fn is_identity(&self) -> bool {
        self.deflate.is_none()
    }

    /// Encodes `bytes` and appends to `out`. The encoder may hold back output until
    /// [`Self::flush`].
    ///
    /// # Errors
    /// Not expected: a vector accepts all output.
    pub fn encode(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.unflushed = true;
        self.deflate(bytes, FlushCompress::None, out)
    }

    /// Appends the output that the encoder holds back.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        // A sync flush adds an empty stored block, about five bytes, so it needs new input.
        if !std::mem::take(&mut self.unflushed) {
            return Ok(());
        }
        self.deflate(&[], FlushCompress::Sync, out)
    }

    /// Appends the end of the stream.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn finish(mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.deflate(&[], FlushCompress::Finish, out)
    }

    fn deflate(
        &mut self,
        mut bytes: &[u8],
        flush: FlushCompress,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let Some(deflate) = &mut self.deflate else {
            out.extend_from_slice(bytes);
            return Ok(());
        };
        loop {
            // `compress_vec` writes to spare capacity and does not grow the vector.
            out.reserve(ENCODED_CHUNK_BYTES);
            let read = deflate.total_in();
            let status = deflate
                .compress_vec(bytes, out, flush)
                .map_err(io::Error::other)?;
            bytes = &bytes[to_index(deflate.total_in() - read)..];
            // Unused capacity means that the encoder has no more output.
            if status == Status::StreamEnd || bytes.is_empty() && out.len() < out.capacity() {
                return Ok(());
            }
        }
    }
}

/// Converts the length of a part of a slice to an index.
fn to_index(length: u64) -> usize {
    usize::try_from(length).expect("a part of a slice has a length that fits usize")
}

#[cfg(test)]
mod tests;
