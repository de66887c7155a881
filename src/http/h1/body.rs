//! Bodies (RFC 9112 sections 6 and 7): the decoder of both sides.

use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use memchr::memchr;

use super::fields::{HeadError, Mode, find_head_end, is_forbidden_trailer, parse_fields};
use super::framing::Framing;

/// Maximum length of the line that begins a chunk, extensions included, in bytes.
const MAX_CHUNK_LINE: usize = 4 * 1024;
/// Maximum length of all chunk extensions of a body in bytes. Nothing uses extensions, and a sender
/// could make the bastion read them without end.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Maximum length of a trailer section in bytes.
const MAX_TRAILERS: usize = 64 * 1024;
/// Maximum number of hexadecimal digits of a chunk size: those of a `u64`.
const MAX_SIZE_DIGITS: usize = 16;

/// Decoder of one body. It consumes input and does no I/O.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    mode: Mode,
    /// Bytes of chunk extensions so far.
    extensions: usize,
    /// Bytes of an incomplete trailer section that are known to contain no end.
    scanned: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    /// The line with the size of a chunk follows.
    ChunkSize,
    ChunkData(u64),
    /// The line break behind the data of a chunk follows.
    ChunkEnd,
    Trailers,
    UntilClose,
    Done,
    /// The input was malformed. What follows cannot be separated into messages.
    Failed,
}

/// Result of one step of a [`Decoder`].
#[derive(Debug)]
pub enum Decoded {
    Data(Bytes),
    /// The fields of the trailer section; the body has ended.
    Trailers(HeaderMap),
    End,
    /// The input is used up and the body has not ended.
    NeedsInput,
}

/// Reason why a body is malformed or incomplete.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("malformed chunk size")]
    ChunkSize,
    #[error("malformed or too long chunk extension")]
    ChunkExtension,
    #[error("the data of a chunk is not followed by a line break")]
    ChunkEnd,
    #[error("the trailer section is longer than {MAX_TRAILERS} bytes")]
    TrailersTooLong,
    #[error("malformed trailer section: {0}")]
    Trailers(#[from] HeadError),
    /// An earlier part was malformed.
    #[error("malformed body")]
    Malformed,
    /// The connection ended before the body.
    #[error("unexpected EOF")]
    Incomplete,
    #[error("no data was received within serving.bodyTimeout")]
    Timeout,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Decoder {
    pub fn new(framing: Framing, mode: Mode) -> Self {
        let state = match framing {
            Framing::Empty => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self {
            state,
            mode,
            extensions: 0,
            scanned: 0,
        }
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Returns true if the input was malformed.
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// Returns the number of bytes that remain, if it is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(remaining) => Some(remaining),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Ends a body that is delimited by the end of the connection.
    ///
    /// # Errors
    /// [`BodyError::Incomplete`] if more must follow.
    pub fn end_of_input(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(BodyError::Incomplete),
        }
    }

    /// Takes the next part of the body from the start of `input`.
    ///
    /// # Errors
    /// [`BodyError`] if the input is malformed, now or before.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, BodyError> {
        let decoded = self.step(input);
        if decoded.is_err() {
            self.state = State::Failed;
        }
        decoded
    }

    /// Takes the next part as a frame. Pending if it needs more input.
    pub fn poll_frame(
        &mut self,
        input: &mut BytesMut,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match self.decode(input) {
            Ok(Decoded::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(Decoded::Trailers(fields)) => Some(Ok(Frame::trailers(fields))),
            Ok(Decoded::End) => None,
            Ok(Decoded::NeedsInput) => return Poll::Pending,
            Err(error) => Some(Err(error)),
        })
    }

    fn step(&mut self, input: &mut BytesMut) -> Result<Decoded, BodyError> {
        loop {
            match self.state {
                State::Done => return Ok(Decoded::End),
                State::Failed => return Err(BodyError::Malformed),
                State::Length(remaining) | State::ChunkData(remaining) => {
                    if input.is_empty() {
                        return Ok(Decoded::NeedsInput);
                    }
                    let available = usize::try_from(remaining).unwrap_or(usize::MAX);
                    let data = input.split_to(available.min(input.len())).freeze();
                    let remaining = remaining - data.len() as u64;
                    self.state = match self.state {
                        State::Length(_) if remaining == 0 => State::Done,
                        State::Length(_) => State::Length(remaining),
                        _ if remaining == 0 => State::ChunkEnd,
                        _ => State::ChunkData(remaining),
                    };
                    return Ok(Decoded::Data(data));
                }
                State::UntilClose => {
                    if input.is_empty() {
                        return Ok(Decoded::NeedsInput);
                    }
                    return Ok(Decoded::Data(input.split().freeze()));
                }
                State::ChunkSize => {
                    let Some(end) = memchr(b'\n', input) else {
                        if input.len() > MAX_CHUNK_LINE {
                            return Err(BodyError::ChunkExtension);
                        }
                        // A sender of anything but digits is rejected before its line ends.
                        Self::chunk_size(input)?;
                        return Ok(Decoded::NeedsInput);
                    };
                    if end > MAX_CHUNK_LINE {
                        return Err(BodyError::ChunkExtension);
                    }
                    let line = match &input[..end] {
                        [line @ .., b'\r'] => line,
                        line if self.mode == Mode::Tolerant => line,
                        _ => return Err(BodyError::ChunkSize),
                    };
                    let (size, digits) = Self::chunk_size(line)?;
                    if digits == 0 {
                        return Err(BodyError::ChunkSize);
                    }
                    self.check_extension(&line[digits..])?;
                    self.extensions += line.len() - digits;
                    if self.extensions > MAX_EXTENSIONS {
                        return Err(BodyError::ChunkExtension);
                    }
                    input.advance(end + 1);
                    self.state = if size == 0 {
                        State::Trailers
                    } else {
                        State::ChunkData(size)
                    };
                }
                State::ChunkEnd => match &input[..] {
                    [] | [b'\r'] => return Ok(Decoded::NeedsInput),
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        self.state = State::ChunkSize;
                    }
                    _ => return Err(BodyError::ChunkEnd),
                },
                State::Trailers => return self.trailers(input),
            }
        }
    }

    /// Parses the digits at the start of a chunk line. Returns the size and the number of digits.
    fn chunk_size(line: &[u8]) -> Result<(u64, usize), BodyError> {
        let digits = line
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        if digits > MAX_SIZE_DIGITS {
            return Err(BodyError::ChunkSize);
        }
        let ends = match line.get(digits) {
            None | Some(b';' | b' ' | b'\t') => true,
            // The line feed has not arrived yet.
            Some(b'\r') => digits + 1 == line.len(),
            Some(_) => false,
        };
        if !ends {
            return Err(BodyError::ChunkSize);
        }
        let size = line[..digits].iter().fold(0_u64, |size, digit| {
            let digit = char::from(*digit).to_digit(16).unwrap_or_default();
            size << 4 | u64::from(digit)
        });
        Ok((size, digits))
    }

    /// Checks what follows the size of a chunk. Extensions are not interpreted.
    fn check_extension(&self, rest: &[u8]) -> Result<(), BodyError> {
        if self.mode == Mode::Tolerant && bare(rest).is_empty() {
            // Some servers pad the size with spaces, and Go trims them.
            return Ok(());
        }
        let mut rest = rest;
        while !rest.is_empty() {
            rest = one_extension(rest).ok_or(BodyError::ChunkExtension)?;
        }
        Ok(())
    }

    fn trailers(&mut self, input: &mut BytesMut) -> Result<Decoded, BodyError> {
        // An empty section is a line break alone. Otherwise it ends like a head.
        let end = match &input[..] {
            [b'\r', b'\n', ..] => Some(2),
            [b'\n', ..] if self.mode == Mode::Tolerant => Some(1),
            [b'\n', ..] | [b'\r', _, ..] => return Err(HeadError::LineEnd.into()),
            bytes => find_head_end(bytes, self.scanned),
        };
        let Some(end) = end else {
            if input.len() > MAX_TRAILERS {
                return Err(BodyError::TrailersTooLong);
            }
            self.scanned = input.len();
            return Ok(Decoded::NeedsInput);
        };
        if end > MAX_TRAILERS {
            return Err(BodyError::TrailersTooLong);
        }
        let section = input.split_to(end).freeze();
        let fields = parse_fields(&section, 0, self.mode, |name, _| {
            !is_forbidden_trailer(name)
        })?;
        self.state = State::Done;
        if fields.headers.is_empty() {
            Ok(Decoded::End)
        } else {
            Ok(Decoded::Trailers(fields.headers))
        }
    }
}

/// Parses one extension (RFC 9112 section 7.1.1): `BWS ";" BWS token [ BWS "=" BWS ( token /
/// quoted-string ) ]`. Returns what follows it, or `None` if it is malformed.
fn one_extension(text: &[u8]) -> Option<&[u8]> {
    let text = bare(text).strip_prefix(b";")?;
    let (name, text) = split_token(bare(text));
    if name.is_empty() {
        return None;
    }
    let Some(value) = bare(text).strip_prefix(b"=") else {
        return Some(text);
    };
    let value = bare(value);
    let Some(quoted) = value.strip_prefix(b"\"") else {
        let (token, text) = split_token(value);
        return (!token.is_empty()).then_some(text);
    };
    let mut bytes = quoted.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        let is_text = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        match byte {
            b'"' => return Some(&quoted[at + 1..]),
            b'\\' => {
                bytes.next().filter(|(_, escaped)| is_text(**escaped))?;
            }
            byte if is_text(*byte) => {}
            _ => return None,
        }
    }
    None
}

/// Returns the text without leading spaces and tabs.
fn bare(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !matches!(byte, b' ' | b'\t'));
    &text[start.unwrap_or(text.len())..]
}

/// Splits a token (RFC 9110 section 5.6.2) from what follows it.
fn split_token(text: &[u8]) -> (&[u8], &[u8]) {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let end = text.iter().position(|byte| !is_token(byte));
    text.split_at(end.unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, trailers, and the input behind the body.
    type Whole = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// Decodes input that arrives in pieces.
    fn decode(framing: Framing, mode: Mode, pieces: &[&[u8]]) -> Result<Whole, BodyError> {
        let (mut decoder, mut input) = (Decoder::new(framing, mode), BytesMut::new());
        let (mut data, mut trailers) = (Vec::new(), None);
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut input)? {
                    Decoded::Data(bytes) => data.extend_from_slice(&bytes),
                    Decoded::Trailers(fields) => trailers = Some(fields),
                    Decoded::End | Decoded::NeedsInput => break,
                }
            }
        }
        if !decoder.is_done() {
            decoder.end_of_input()?;
        }
        Ok((data, trailers, input.to_vec()))
    }

    fn chunked(text: &str) -> Result<Whole, BodyError> {
        decode(Framing::Chunked, Mode::Strict, &[text.as_bytes()])
    }

    #[test]
    fn splits_body_from_the_next_message() {
        let length = decode(Framing::Length(3), Mode::Strict, &[b"ab", b"cGET"]).unwrap();
        assert_eq!((&length.0[..], &length.2[..]), (&b"abc"[..], &b"GET"[..]));
        let (data, trailers, rest) =
            chunked("3;a=\"b c\"\r\nabc\r\n0A \t; x\r\n0123456789\r\n0\r\n\r\nGET").unwrap();
        assert_eq!((&data[..], &rest[..]), (&b"abc0123456789"[..], &b"GET"[..]));
        assert!(trailers.is_none());
    }

    #[test]
    fn any_split_of_the_input_gives_the_same_body() {
        let text = b"3\r\nabc\r\n1;x\r\nd\r\n0\r\nX-A: 1\r\nB: 2\r\n\r\nrest";
        let whole = decode(Framing::Chunked, Mode::Strict, &[text]).unwrap();
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(
            decode(Framing::Chunked, Mode::Strict, &bytes).unwrap(),
            whole
        );
        for at in 0..text.len() {
            let (first, second) = text.split_at(at);
            assert_eq!(
                decode(Framing::Chunked, Mode::Strict, &[first, second]).unwrap(),
                whole
            );
        }
        assert_eq!(whole.0, b"abcd");
    }

    #[test]
    fn rejects_malformed_chunks() {
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\na\r\n",
            "0x1\r\na\r\n",
            "1\na\r\n",
            "1 \r\na\r\n",
            "1 x\r\na\r\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1;\x01\r\na\r\n",
            "1;\r\na\r\n",
            "1;a=\r\na\r\n",
            "1;a=\"b\r\na\r\n",
            "1;a=\"b\"c\r\na\r\n",
            "1;a b\r\na\r\n",
            "0\r\n\r\r\n",
            "1;a\rb\r\na\r\n",
            "00000000000000001\r\na\r\n",
            ";a\r\n",
            "0\r\nA : 1\r\n\r\n",
            "0\r\nA: 1\n\r\n",
            "0\r\n\n",
            "0\r\n A: 1\r\n\r\n",
        ] {
            assert!(chunked(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn tolerant_mode_reads_chunks_as_go_does() {
        let text = b"3 \nabc\r\n0\n\n";
        let (data, ..) = decode(Framing::Chunked, Mode::Tolerant, &[text]).unwrap();
        assert_eq!(data, b"abc");
        assert!(decode(Framing::Chunked, Mode::Tolerant, &[b"1\nab\n0\n\n"]).is_err());
    }

    #[test]
    fn malformed_body_does_not_end() {
        let (mut decoder, mut input) = (
            Decoder::new(Framing::Chunked, Mode::Strict),
            BytesMut::from(&b"0\r\nbad line\r\n\r\n\r\nGET"[..]),
        );
        for _ in 0..2 {
            assert!(decoder.decode(&mut input).is_err());
            assert!(decoder.has_failed() && !decoder.is_done());
        }
    }

    #[test]
    fn bounds_extensions_and_trailers() {
        let extension = "x".repeat(MAX_CHUNK_LINE - 10);
        let chunk = format!("1;{extension}\r\na\r\n");
        assert!(chunked(&(chunk.repeat(4) + "0\r\n\r\n")).is_ok());
        assert!(matches!(
            chunked(&(chunk.repeat(5) + "0\r\n\r\n")),
            Err(BodyError::ChunkExtension)
        ));
        assert!(matches!(
            chunked(&format!("1;{}", "x".repeat(MAX_CHUNK_LINE))),
            Err(BodyError::ChunkExtension)
        ));
        assert!(matches!(
            chunked(&format!("0\r\nA: {}", "x".repeat(MAX_TRAILERS))),
            Err(BodyError::TrailersTooLong)
        ));
    }

    #[test]
    fn drops_trailers_that_frame_route_or_authenticate() {
        let text = "0\r\nContent-Length: 5\r\nHost: a\r\nAuthorization: b\r\nTransfer-Encoding: \
                    chunked\r\nConnection: x\r\nGrpc-Status: 0\r\n\r\n";
        let trailers = chunked(text).unwrap().1.unwrap();
        assert_eq!(
            (trailers.len(), &trailers["grpc-status"]),
            (1, &"0".parse().unwrap())
        );
    }

    #[test]
    fn incomplete_body_is_an_error_unless_the_close_ends_it() {
        for framing in [Framing::Length(3), Framing::Chunked] {
            assert!(matches!(
                decode(framing, Mode::Tolerant, &[b"2"]),
                Err(BodyError::Incomplete)
            ));
        }
        assert_eq!(
            decode(Framing::UntilClose, Mode::Tolerant, &[b"ab"])
                .unwrap()
                .0,
            b"ab"
        );
    }
}
