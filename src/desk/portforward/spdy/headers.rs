//! Header blocks: zlib with the dictionary of SPDY, one stream per direction of a connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;

/// Maximum length in bytes of a header block after decompression.
const MAX_BLOCK: usize = 64 * 1024;
/// Maximum number of headers of a block.
const MAX_HEADERS: usize = 256;
/// Bytes that one step of the compressor can write.
const STEP: usize = 1024;

/// Names and values at the start of the dictionary (SPDY/3 section 2.6.10.1), each with its length.
#[rustfmt::skip]
const DICTIONARY_NAMES: [&str; 65] = [
    "options", "head", "post", "put", "delete", "trace", "accept", "accept-charset",
    "accept-encoding", "accept-language", "accept-ranges", "age", "allow", "authorization",
    "cache-control", "connection", "content-base", "content-encoding", "content-language",
    "content-length", "content-location", "content-md5", "content-range", "content-type", "date",
    "etag", "expect", "expires", "from", "host", "if-match", "if-modified-since", "if-none-match",
    "if-range", "if-unmodified-since", "last-modified", "location", "max-forwards", "pragma",
    "proxy-authenticate", "proxy-authorization", "range", "referer", "retry-after", "server", "te",
    "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "warning",
    "www-authenticate", "method", "get", "status", "200 OK", "version", "HTTP/1.1", "url",
    "public", "set-cookie", "keep-alive", "origin",
];
/// Rest of the dictionary.
const DICTIONARY_TEXT: &str = "1001012012022052063003023033043053063074024054064074084094104114124134144154164175025\
    04505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Requ\
    est401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Impleme\
    nted503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:0\
    0 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/g\
    if,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-\
    age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::new();
    for name in DICTIONARY_NAMES {
        push(&mut dictionary, name.as_bytes());
    }
    dictionary.extend(DICTIONARY_TEXT.as_bytes());
    dictionary
}

/// Headers of a stream. Names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(Vec<u8>, Vec<u8>)>);

impl Headers {
    /// Returns the value of a header.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.0.iter().find(|(other, _)| other == name.as_bytes());
        found.map(|(_, value)| &value[..])
    }
}

/// Compressor of the header blocks that this side sends.
#[derive(Debug)]
pub(super) struct HeaderEncoder(Compress);

impl HeaderEncoder {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        compress
            .set_dictionary(&dictionary())
            .expect("nothing was compressed before");
        Self(compress)
    }

    /// Appends the compressed block of `headers` to `output`.
    pub(super) fn encode(&mut self, headers: &[(&str, &str)], output: &mut Vec<u8>) {
        let mut block = u32::try_from(headers.len())
            .expect("a stream has few headers")
            .to_be_bytes()
            .to_vec();
        for (name, value) in headers {
            push(&mut block, name.to_ascii_lowercase().as_bytes());
            push(&mut block, value.as_bytes());
        }
        let mut rest = &block[..];
        // The flush is complete when a step leaves room in the output.
        loop {
            output.reserve(STEP);
            let before = self.0.total_in();
            self.0
                .compress_vec(rest, output, FlushCompress::Sync)
                .expect("compression into memory does not fail");
            let read = usize::try_from(self.0.total_in() - before).unwrap_or(rest.len());
            rest = &rest[read..];
            if rest.is_empty() && output.len() < output.capacity() {
                return;
            }
        }
    }
}

/// Decompressor of the header blocks that the peer sends.
#[derive(Debug)]
pub(super) struct HeaderDecoder(Decompress);

impl HeaderDecoder {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Decompresses and parses a block.
    ///
    /// # Errors
    /// [`SpdyError::InvalidHeaders`]. The following blocks cannot be decompressed.
    pub(super) fn decode(&mut self, compressed: &[u8]) -> Result<Headers, SpdyError> {
        let block = self.decompress(compressed)?;
        parse(&block).ok_or(SpdyError::InvalidHeaders)
    }

    fn decompress(&mut self, mut compressed: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut block = Vec::new();
        loop {
            block.reserve(STEP);
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let result = self
                .0
                .decompress_vec(compressed, &mut block, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - read).unwrap_or(usize::MAX);
            compressed = compressed.get(read..).ok_or(SpdyError::InvalidHeaders)?;
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| SpdyError::InvalidHeaders)?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(SpdyError::InvalidHeaders),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if block.len() > MAX_BLOCK {
                return Err(SpdyError::InvalidHeaders);
            }
            let stalled = read == 0 && written == self.0.total_out();
            if compressed.is_empty() && (stalled || block.len() < block.capacity()) {
                return Ok(block);
            }
            if stalled {
                return Err(SpdyError::InvalidHeaders);
            }
        }
    }
}

/// Parses a block: a count, then names and values, each with its length.
fn parse(mut block: &[u8]) -> Option<Headers> {
    let count = usize::try_from(take_u32(&mut block)?).ok()?;
    if count > MAX_HEADERS {
        return None;
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = take_string(&mut block)?;
        let value = take_string(&mut block)?;
        let name = name.to_ascii_lowercase();
        headers.0.push((name, value.to_vec()));
    }
    block.is_empty().then_some(headers)
}

fn take_u32(block: &mut &[u8]) -> Option<u32> {
    let (length, rest) = block.split_first_chunk()?;
    *block = rest;
    Some(u32::from_be_bytes(*length))
}

fn take_string<'a>(block: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_u32(block)?).ok()?;
    let (string, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some(string)
}

fn push(block: &mut Vec<u8>, string: &[u8]) {
    let length = u32::try_from(string.len()).expect("a header is short");
    block.extend(length.to_be_bytes());
    block.extend(string);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: [(&str, &str); 3] = [
        ("streamType", "error"),
        ("port", "8080"),
        ("requestID", "0"),
    ];

    #[test]
    fn dictionary_is_that_of_spdy() {
        let mut decompress = Decompress::new(true);
        // CMF, FLG with FDICT, then the Adler-32 checksum of the dictionary.
        let head = [0x78, 0xF9, 0xE3, 0xC6, 0xA7, 0xC2];
        let needed = decompress
            .decompress(&head, &mut [0; 8], FlushDecompress::Sync)
            .unwrap_err();
        assert_eq!(needed.needs_dictionary(), Some(0xE3C6_A7C2));
        assert!(decompress.set_dictionary(&dictionary()).is_ok());
    }

    #[test]
    fn decodes_consecutive_blocks() {
        let (mut encoder, mut decoder) = (HeaderEncoder::new(), HeaderDecoder::new());
        for request in 0..50_u32 {
            let (mut block, request) = (Vec::new(), request.to_string());
            encoder.encode(
                &[("streamType", "data"), ("requestID", &request)],
                &mut block,
            );
            let headers = decoder.decode(&block).unwrap();
            assert_eq!(headers.get("streamtype"), Some(&b"data"[..]));
            assert_eq!(headers.get("requestid"), Some(request.as_bytes()));
            assert_eq!(headers.0.len(), 2);
        }
        let mut empty = Vec::new();
        encoder.encode(&[], &mut empty);
        assert_eq!(decoder.decode(&empty), Ok(Headers::default()));
    }

    #[test]
    fn decodes_blocks_that_fill_whole_steps() {
        let value: String = (0..MAX_BLOCK / 2)
            .map(|n| char::from(b"abcdefghijklmnopqrstuvwxyz"[n % 26]))
            .collect();
        let (mut encoder, mut decoder) = (HeaderEncoder::new(), HeaderDecoder::new());
        for length in [STEP - 13, STEP - 12, STEP, 2 * STEP - 12, value.len()] {
            let mut block = Vec::new();
            encoder.encode(&[("a", &value[..length])], &mut block);
            let headers = decoder.decode(&block).unwrap();
            assert_eq!(headers.get("a").map(<[u8]>::len), Some(length));
        }
    }

    #[test]
    fn rejects_invalid_blocks() {
        let mut block = Vec::new();
        HeaderEncoder::new().encode(&HEADERS, &mut block);
        assert!(HeaderDecoder::new().decode(&block).is_ok());
        for end in 0..block.len() {
            let cut = HeaderDecoder::new().decode(&block[..end]);
            // The last bytes end the block and flush it, and carry no data.
            assert!(cut.is_err() || end + 8 > block.len(), "{end}: {cut:?}");
        }
        let mut trailing = Vec::new();
        let mut encoder = HeaderEncoder::new();
        encoder.encode(&HEADERS, &mut trailing);
        encoder.encode(&HEADERS, &mut trailing);
        let invalid = Err(SpdyError::InvalidHeaders);
        assert_eq!(HeaderDecoder::new().decode(&trailing), invalid);
        assert_eq!(HeaderDecoder::new().decode(b"not zlib"), invalid);
    }

    #[test]
    fn bounds_decompressed_blocks() {
        let bomb = "a".repeat(MAX_BLOCK + 1);
        let mut block = Vec::new();
        HeaderEncoder::new().encode(&[("a", &bomb)], &mut block);
        assert!(block.len() < 1024, "{}", block.len());
        let decoded = HeaderDecoder::new().decode(&block);
        assert_eq!(decoded, Err(SpdyError::InvalidHeaders));
    }
}
