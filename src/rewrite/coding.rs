//! Content codings (RFC 9110 section 8.4.1) of pages that are rewritten: taken off on the way in, put on again on the
//! way out. Each piece that goes in comes out at once, so that a page that is streamed stays so.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzEncoder, MultiGzDecoder, ZlibDecoder, ZlibEncoder};

/// A coding that can be taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    /// zlib by RFC 9110, a bare deflate stream by long-standing mistake: which it is, its first bytes tell.
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
}

/// Takes a coding off.
pub enum Decoder {
    Identity,
    /// The first bytes, which tell more, are not in yet.
    Unsure(Coding, Vec<u8>),
    /// What says it is gzip and is not: it passes as it is.
    Foreign,
    Gzip(MultiGzDecoder<Vec<u8>>),
    Zlib(ZlibDecoder<Vec<u8>>),
    Raw(DeflateDecoder<Vec<u8>>),
}

impl Decoder {
    pub fn new(coding: Coding) -> Self {
        match coding {
            Coding::Identity => Self::Identity,
            Coding::Gzip | Coding::Deflate => Self::Unsure(coding, Vec::new()),
        }
    }

    /// Appends what `bytes` decode to.
    ///
    /// # Errors
    /// Where they are none of the coding.
    pub fn decode(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Identity | Self::Foreign => out.extend_from_slice(bytes),
            Self::Gzip(decoder) => {
                decoder.write_all(bytes)?;
                decoder.flush()?;
                out.append(decoder.get_mut());
            }
            Self::Zlib(decoder) => {
                decoder.write_all(bytes)?;
                decoder.flush()?;
                out.append(decoder.get_mut());
            }
            Self::Raw(decoder) => {
                decoder.write_all(bytes)?;
                decoder.flush()?;
                out.append(decoder.get_mut());
            }
            Self::Unsure(coding, first) => {
                first.extend_from_slice(bytes);
                if let [one, two, ..] = first[..] {
                    let first = std::mem::take(first);
                    *self = Self::told(*coding, one, two);
                    return self.decode(&first, out);
                }
            }
        }
        Ok(())
    }

    /// By the first two bytes of a stream.
    fn told(coding: Coding, one: u8, two: u8) -> Self {
        match coding {
            Coding::Identity => Self::Identity,
            // RFC 1952 section 2.3.1.
            Coding::Gzip if (one, two) == (0x1f, 0x8b) => Self::Gzip(MultiGzDecoder::new(Vec::new())),
            Coding::Gzip => Self::Foreign,
            // RFC 1950 section 2.2: method 8, and a check sum over both bytes.
            Coding::Deflate if one & 0xf == 8 && (u16::from(one) << 8 | u16::from(two)).is_multiple_of(31) => {
                Self::Zlib(ZlibDecoder::new(Vec::new()))
            }
            Coding::Deflate => Self::Raw(DeflateDecoder::new(Vec::new())),
        }
    }

    /// Whether anything of the stream came.
    pub fn has_begun(&self) -> bool {
        !matches!(self, Self::Unsure(_, first) if first.is_empty())
    }

    /// Whether the stream is not in the coding that it says, so that it is to be left alone.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign)
    }

    /// Appends what is left.
    ///
    /// # Errors
    /// Where the stream is cut.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Identity | Self::Foreign => {}
            Self::Gzip(decoder) => {
                decoder.try_finish()?;
                out.append(decoder.get_mut());
            }
            Self::Zlib(decoder) => {
                decoder.try_finish()?;
                out.append(decoder.get_mut());
            }
            Self::Raw(decoder) => {
                decoder.try_finish()?;
                out.append(decoder.get_mut());
            }
            Self::Unsure(_, first) if first.is_empty() => {}
            Self::Unsure(..) => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }
}

/// Puts a coding on.
pub enum Encoder {
    Identity,
    Gzip(GzEncoder<Vec<u8>>),
    Zlib(ZlibEncoder<Vec<u8>>),
    Raw(DeflateEncoder<Vec<u8>>),
}

impl Encoder {
    /// The same coding that `decoder` took off.
    pub fn like(decoder: &Decoder) -> Self {
        match decoder {
            Decoder::Identity | Decoder::Foreign | Decoder::Unsure(..) => Self::Identity,
            Decoder::Gzip(_) => Self::Gzip(GzEncoder::new(Vec::new(), Compression::fast())),
            Decoder::Zlib(_) => Self::Zlib(ZlibEncoder::new(Vec::new(), Compression::fast())),
            Decoder::Raw(_) => Self::Raw(DeflateEncoder::new(Vec::new(), Compression::fast())),
        }
    }

    /// The bytes of `page`, complete as far as they go.
    ///
    /// # Errors
    /// None in practice: memory takes whatever is written.
    pub fn encode(&mut self, page: Vec<u8>) -> io::Result<Vec<u8>> {
        if page.is_empty() {
            return Ok(page);
        }
        Ok(match self {
            Self::Identity => page,
            Self::Gzip(encoder) => {
                encoder.write_all(&page)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Self::Zlib(encoder) => {
                encoder.write_all(&page)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Self::Raw(encoder) => {
                encoder.write_all(&page)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
        })
    }

    /// What ends the stream.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Identity => Ok(Vec::new()),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zlib(encoder) => encoder.finish(),
            Self::Raw(encoder) => encoder.finish(),
        }
    }
}
