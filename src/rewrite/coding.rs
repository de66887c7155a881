//! Content codings (RFC 9110 section 8.4.1) of pages that are rewritten: decoded on the way in,
//! encoded again on the way out. Decoding is bounded by its output, so that a step costs the same
//! whatever a page decodes to.

use std::io;

use bytes::{Buf, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Memory of a decoder: zlib-rs allocates 46 KiB for its state and its window.
const DECODER_BYTES: usize = 48 * 1024;

/// Memory of an encoder: zlib-rs allocates 371 KiB at the fastest level.
const ENCODER_BYTES: usize = 384 * 1024;

/// The most that a coding holds.
pub const MAX_HELD_BYTES: usize = DECODER_BYTES + ENCODER_BYTES;

/// Input that one step of a decoder takes. The output does not bound it: an empty block of deflate
/// is 5 bytes, and a gzip header may have a comment of any length.
pub const MAX_INPUT_BYTES_PER_STEP: usize = 4 * 1024;

/// Base-2 logarithm of the deflate window: the largest, which every decoder must support (RFC 1951
/// section 2).
const WINDOW_BITS: u8 = 15;

/// Room that the encoder gets in the output at a time.
const ENCODED_CHUNK_BYTES: usize = 8 * 1024;

/// A coding that can be taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    /// zlib by RFC 9110, a bare deflate stream by long-standing mistake: which it is, its first
    /// bytes tell.
    Deflate,
}

impl Coding {
    /// The coding of a `Content-Encoding`; none where it is another, or several.
    pub fn parse(text: &str) -> Option<Self> {
        match &*text.trim().to_ascii_lowercase() {
            "" | "identity" => Some(Self::Identity),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    /// Memory that decoding and encoding hold.
    pub fn held_bytes(self) -> usize {
        match self {
            Self::Identity => 0,
            Self::Gzip | Self::Deflate => MAX_HELD_BYTES,
        }
    }
}

/// Takes a coding off.
pub struct Decoder {
    state: State,
    /// The first bytes of a stream or of a member, at most two, until they are decoded.
    lead: Vec<u8>,
}

enum State {
    Identity,
    /// The first two bytes, which tell more, are not in yet.
    Detecting(Coding),
    /// What says it is gzip and is not: it passes as it is.
    Passthrough,
    Inflating(Format, Box<Decompress>),
    /// A member of a gzip stream is through; another may follow (RFC 1952 section 2.2).
    BetweenMembers,
    /// The stream is through. What follows it is padding.
    Ended(Format),
}

/// What a stream turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Identity,
    Gzip,
    Zlib,
    Raw,
}

/// Progress of one step of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Bytes came in or went out; so many are in the output.
    Some(usize),
    /// A member of a gzip stream begins.
    Member,
    /// Nothing is left to decode until more bytes come.
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

    /// Decodes bytes off the front of `bytes` into the front of `out`, which is not empty. Call it
    /// until it is starved: it may have more output without more input.
    ///
    /// # Errors
    /// The bytes are not of the coding.
    pub fn decode(&mut self, bytes: &mut Bytes, out: &mut [u8]) -> io::Result<Decoded> {
        match &mut self.state {
            State::Detecting(_) | State::BetweenMembers => return Ok(self.start(bytes)),
            State::Inflating(format, inflate) => {
                let input = if self.lead.is_empty() {
                    &bytes[..]
                } else {
                    &self.lead[..]
                };
                let input = &input[..input.len().min(MAX_INPUT_BYTES_PER_STEP)];
                let (read, written) = (inflate.total_in(), inflate.total_out());
                let status = inflate.decompress(input, out, FlushDecompress::None)?;
                let (read, written) = (inflate.total_in() - read, inflate.total_out() - written);
                let (read, written) = (index(read), index(written));
                if self.lead.is_empty() {
                    bytes.advance(read);
                } else {
                    self.lead.drain(..read);
                }
                match status {
                    Status::StreamEnd if *format == Format::Gzip => {
                        self.state = State::BetweenMembers;
                    }
                    Status::StreamEnd => self.state = State::Ended(*format),
                    // A last bit of the trailer may be taken without output.
                    Status::Ok | Status::BufError if read == 0 && written == 0 => {
                        return Ok(Decoded::Starved);
                    }
                    Status::Ok | Status::BufError => {}
                }
                return Ok(Decoded::Some(written));
            }
            State::Ended(_) => {
                self.lead.clear();
                bytes.clear();
                return Ok(Decoded::Starved);
            }
            State::Identity | State::Passthrough => {}
        }
        let lead = self.lead.len().min(out.len());
        out[..lead].copy_from_slice(&self.lead[..lead]);
        self.lead.drain(..lead);
        let taken = bytes.len().min(out.len() - lead);
        bytes.copy_to_slice(&mut out[lead..lead + taken]);
        Ok(if lead + taken == 0 {
            Decoded::Starved
        } else {
            Decoded::Some(lead + taken)
        })
    }

    /// Gathers the first two bytes of a stream, or of a member, and begins to decode what they
    /// tell.
    fn start(&mut self, bytes: &mut Bytes) -> Decoded {
        let missing = (2 - self.lead.len()).min(bytes.len());
        self.lead.extend_from_slice(&bytes.split_to(missing));
        let [one, two] = self.lead[..] else {
            return Decoded::Starved;
        };
        // RFC 1952 section 2.3.1.
        let is_gzip = (one, two) == (0x1f, 0x8b);
        // RFC 1950 section 2.2: method 8, and a check sum over both bytes.
        let is_zlib = one & 0xf == 8 && (u16::from(one) << 8 | u16::from(two)).is_multiple_of(31);
        let inflating = |format, inflate| State::Inflating(format, Box::new(inflate));
        self.state = match self.state {
            State::Detecting(Coding::Gzip) | State::BetweenMembers if is_gzip => {
                inflating(Format::Gzip, Decompress::new_gzip(WINDOW_BITS))
            }
            State::Detecting(Coding::Gzip) => State::Passthrough,
            State::Detecting(_) if is_zlib => inflating(Format::Zlib, Decompress::new(true)),
            State::Detecting(_) => inflating(Format::Raw, Decompress::new(false)),
            _ => State::Ended(self.format()),
        };
        Decoded::Member
    }

    /// What the stream is, as far as it is known.
    fn format(&self) -> Format {
        match self.state {
            State::Identity | State::Detecting(_) | State::Passthrough => Format::Identity,
            State::BetweenMembers => Format::Gzip,
            State::Inflating(format, _) | State::Ended(format) => format,
        }
    }

    /// Whether anything of the stream came.
    pub fn has_begun(&self) -> bool {
        !matches!(self.state, State::Detecting(_)) || !self.lead.is_empty()
    }

    /// Whether bytes are decoded to themselves.
    pub fn is_identity(&self) -> bool {
        matches!(self.state, State::Identity | State::Passthrough)
    }

    /// Whether the stream is not in the coding that it says, so that it is to be left alone.
    pub fn is_foreign(&self) -> bool {
        matches!(self.state, State::Passthrough)
    }

    /// Checks, once the decoder is starved and no more bytes follow, that the stream is whole.
    ///
    /// # Errors
    /// Where the stream is cut.
    pub fn finish(&self) -> io::Result<()> {
        match self.state {
            State::Inflating(..) => Err(io::ErrorKind::UnexpectedEof.into()),
            State::Detecting(_) if !self.lead.is_empty() => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            _ => Ok(()),
        }
    }
}

/// Puts a coding on.
pub struct Encoder {
    /// None for identity.
    deflate: Option<Box<Compress>>,
    /// Something was encoded that the output may not show yet.
    unflushed: bool,
}

impl Encoder {
    /// The same coding that `decoder` took off.
    pub fn like(decoder: &Decoder) -> Self {
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

    /// Whether bytes are encoded as themselves.
    pub fn is_identity(&self) -> bool {
        self.deflate.is_none()
    }

    /// Appends what `bytes` encode to. Some of it comes with [`Self::flush`] only.
    ///
    /// # Errors
    /// None in practice: memory takes whatever is written.
    pub fn encode(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.unflushed = true;
        self.deflate(bytes, FlushCompress::None, out)
    }

    /// Appends whatever was encoded and is not in an output yet, so that a page that is streamed
    /// stays so.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if !std::mem::take(&mut self.unflushed) {
            return Ok(());
        }
        self.deflate(&[], FlushCompress::Sync, out)
    }

    /// Appends what ends the stream.
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
            out.reserve(ENCODED_CHUNK_BYTES);
            let read = deflate.total_in();
            let status = deflate
                .compress_vec(bytes, out, flush)
                .map_err(io::Error::other)?;
            bytes = &bytes[index(deflate.total_in() - read)..];
            // Room that is left says that all is out.
            if status == Status::StreamEnd || bytes.is_empty() && out.len() < out.capacity() {
                return Ok(());
            }
        }
    }
}

/// The length of a part of a slice, as an index.
fn index(length: u64) -> usize {
    usize::try_from(length).expect("a part of a slice in memory")
}
