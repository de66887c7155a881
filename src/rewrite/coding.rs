//! Content codings (RFC 9110 section 8.4.1) of pages that are rewritten: taken off on the way in, put on again on the
//! way out. Each piece that goes in comes out at once, so that a page that is streamed stays so.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzDecoder, GzEncoder, ZlibDecoder, ZlibEncoder};

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
    /// The first two bytes, which tell more, are not in yet.
    Unsure(Coding, Vec<u8>),
    /// What says it is gzip and is not: it passes as it is.
    Foreign,
    Gzip(GzDecoder<Vec<u8>>),
    /// A member of a gzip stream is through; another may follow (RFC 1952 section 2.2).
    Between(Vec<u8>),
    Zlib(ZlibDecoder<Vec<u8>>),
    Raw(DeflateDecoder<Vec<u8>>),
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

impl Decoder {
    pub fn new(coding: Coding) -> Self {
        match coding {
            Coding::Identity => Self::Identity,
            Coding::Gzip | Coding::Deflate => Self::Unsure(coding, Vec::new()),
        }
    }

    /// How many bytes may be decoded at once, so that what they decode to stays within some hundred KiB: a byte of deflate
    /// is a thousand at most.
    pub fn step(&self) -> usize {
        match self {
            Self::Identity | Self::Foreign | Self::Ended(_) => 16 * 1024,
            _ => 128,
        }
    }

    /// Appends what `bytes` decode to.
    ///
    /// # Errors
    /// Where they are none of the coding.
    pub fn decode(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() {
            match self {
                Self::Identity | Self::Foreign => {
                    out.extend_from_slice(bytes);
                    return Ok(());
                }
                Self::Ended(_) => return Ok(()),
                Self::Gzip(decoder) => {
                    let taken = pass(decoder, GzDecoder::get_mut, bytes, out)?;
                    bytes = &bytes[taken..];
                    if taken == 0 {
                        decoder.try_finish()?;
                        out.append(decoder.get_mut());
                        *self = Self::Between(Vec::new());
                    }
                }
                Self::Zlib(decoder) => {
                    let taken = pass(decoder, ZlibDecoder::get_mut, bytes, out)?;
                    bytes = &bytes[taken..];
                    if taken == 0 {
                        *self = Self::Ended(Format::Zlib);
                    }
                }
                Self::Raw(decoder) => {
                    let taken = pass(decoder, DeflateDecoder::get_mut, bytes, out)?;
                    bytes = &bytes[taken..];
                    if taken == 0 {
                        *self = Self::Ended(Format::Raw);
                    }
                }
                Self::Unsure(_, first) | Self::Between(first) => {
                    first.extend_from_slice(bytes);
                    let [one, two, ..] = first[..] else { return Ok(()) };
                    let first = std::mem::take(first);
                    *self = self.told(one, two);
                    return self.decode(&first, out);
                }
            }
        }
        Ok(())
    }

    /// By the first two bytes of a stream, or of a member.
    fn told(&self, one: u8, two: u8) -> Self {
        // RFC 1952 section 2.3.1.
        let is_gzip = (one, two) == (0x1f, 0x8b);
        // RFC 1950 section 2.2: method 8, and a check sum over both bytes.
        let is_zlib = one & 0xf == 8 && (u16::from(one) << 8 | u16::from(two)).is_multiple_of(31);
        match self {
            Self::Unsure(Coding::Gzip, _) | Self::Between(_) if is_gzip => Self::Gzip(GzDecoder::new(Vec::new())),
            Self::Unsure(Coding::Gzip, _) => Self::Foreign,
            Self::Unsure(Coding::Deflate, _) if is_zlib => Self::Zlib(ZlibDecoder::new(Vec::new())),
            Self::Unsure(Coding::Deflate, _) => Self::Raw(DeflateDecoder::new(Vec::new())),
            _ => Self::Ended(self.format()),
        }
    }

    /// What the stream is, as far as it is known.
    fn format(&self) -> Format {
        match self {
            Self::Identity | Self::Unsure(..) | Self::Foreign => Format::Identity,
            Self::Gzip(_) | Self::Between(_) => Format::Gzip,
            Self::Zlib(_) => Format::Zlib,
            Self::Raw(_) => Format::Raw,
            Self::Ended(format) => *format,
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
            Self::Identity | Self::Foreign | Self::Between(_) | Self::Ended(_) => {}
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

/// Lets bytes through a decoder. Tells how many it took: none where its stream is at its end.
fn pass<D: Write>(
    decoder: &mut D,
    buffer: fn(&mut D) -> &mut Vec<u8>,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> io::Result<usize> {
    let taken = decoder.write(bytes)?;
    decoder.flush()?;
    out.append(buffer(decoder));
    Ok(taken)
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
        match decoder.format() {
            Format::Identity => Self::Identity,
            Format::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::fast())),
            Format::Zlib => Self::Zlib(ZlibEncoder::new(Vec::new(), Compression::fast())),
            Format::Raw => Self::Raw(DeflateEncoder::new(Vec::new(), Compression::fast())),
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
