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
    Gzip(MultiGzDecoder<Vec<u8>>),
    /// The first bytes of a deflate stream are not in yet.
    Unsure(Vec<u8>),
    Zlib(ZlibDecoder<Vec<u8>>),
    Raw(DeflateDecoder<Vec<u8>>),
}

impl Decoder {
    pub fn new(coding: Coding) -> Self {
        match coding {
            Coding::Identity => Self::Identity,
            Coding::Gzip => Self::Gzip(MultiGzDecoder::new(Vec::new())),
            Coding::Deflate => Self::Unsure(Vec::new()),
        }
    }

    /// Appends what `bytes` decode to.
    ///
    /// # Errors
    /// Where they are none of the coding.
    pub fn decode(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Identity => out.extend_from_slice(bytes),
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
            Self::Unsure(first) => {
                first.extend_from_slice(bytes);
                if let [cmf, flags, ..] = first[..] {
                    let first = std::mem::take(first);
                    // RFC 1950 section 2.2: method 8, and a check sum over both bytes.
                    let zlib = cmf & 0xf == 8 && (u16::from(cmf) << 8 | u16::from(flags)) % 31 == 0;
                    *self = if zlib {
                        Self::Zlib(ZlibDecoder::new(Vec::new()))
                    } else {
                        Self::Raw(DeflateDecoder::new(Vec::new()))
                    };
                    return self.decode(&first, out);
                }
            }
        }
        Ok(())
    }

    /// Appends what is left.
    ///
    /// # Errors
    /// Where the stream is cut.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Identity => {}
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
            Self::Unsure(first) if first.is_empty() => {}
            Self::Unsure(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
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
            Decoder::Identity => Self::Identity,
            Decoder::Gzip(_) => Self::Gzip(GzEncoder::new(Vec::new(), Compression::fast())),
            Decoder::Unsure(_) | Decoder::Zlib(_) => Self::Zlib(ZlibEncoder::new(Vec::new(), Compression::fast())),
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
