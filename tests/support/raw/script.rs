//! Scripts of backends: steps, written in YAML.

use std::io::Write;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use serde::Deserialize;

/// Steps, in order. The body of the request is read first, unless a step reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub steps: Vec<Step>,
}

/// A step. A page consists of the lines of a head, an empty line and a body. `Content-Length: auto`
/// is replaced by the length of the body.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Reads the rest of the request.
    Body,
    Page(String),
    /// Sends the page with its body compressed with gzip.
    Gzip(String),
    /// Sends the page with its body as a raw deflate stream.
    RawDeflate(String),
    /// Sends the page with its body in zlib format, as RFC 9110 defines `deflate`.
    ZlibDeflate(String),
    /// Sends the page with each character as one byte: `\xe9` is the byte E9.
    Bytes(String),
    /// Sends as `gzip`, followed by zero bytes.
    PaddedGzip(String),
    /// Sends as `zlib-deflate`, followed by a line feed.
    PaddedDeflate(String),
    /// Accepts a WebSocket (RFC 6455 section 4.2.2).
    WebSocket,
    /// Sends the page with its body decoded from base64.
    Base64(String),
    /// Sends the page with a write for each byte of its body.
    Drip(String),
    /// Sends bytes unmodified.
    Send(String),
    /// Sends a chunk of a chunked body.
    Chunk(String),
    /// Sends a number of bytes of body.
    Fill(usize),
    /// Resets the stream of an HTTP/2 request with `HTTP_1_1_REQUIRED`. No effect on HTTP/1.1.
    RequireHttp1,
    /// Sends trailers of an HTTP/2 response.
    Trailers(String),
    /// Waits until the client has received a text.
    ClientHas(String),
    /// Records whether the client receives a text within [`super::IMMEDIATE`], and continues.
    Glance(String),
    /// As `glance`, with a tenth of the time.
    Blink(String),
    /// Reads the tunnel until it has received a text.
    Read(String),
    ReadToEnd,
    /// Echoes the tunnel until its end.
    Echo,
    /// Waits until the other side closes the connection.
    Hold,
    /// Closes the sending side and continues.
    HalfClose,
    Close,
}

impl Default for Script {
    fn default() -> Self {
        let page = "HTTP/1.1 200 OK\nContent-Type: text/plain\nContent-Length: auto\n\nok";
        Self {
            steps: vec![Step::Page(page.into())],
        }
    }
}

impl Script {
    pub(super) fn reads_body_first(&self) -> bool {
        !self.steps.contains(&Step::Body)
    }
}

impl<'de> Deserialize<'de> for Script {
    /// A page alone, or a list of steps.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Page(String),
            Steps(Vec<Step>),
        }
        Ok(Self {
            steps: match Written::deserialize(deserializer)? {
                Written::Page(page) => vec![Step::Page(page)],
                Written::Steps(steps) => steps,
            },
        })
    }
}

impl Step {
    /// Returns the bytes to send, one entry per write.
    pub(super) fn pieces(&self) -> Result<Vec<Vec<u8>>> {
        let encoded = |text: &str,
                       encode: &dyn Fn(&str) -> Result<Vec<u8>>|
         -> Result<Vec<Vec<u8>>> { Ok(vec![page(text, encode)?.concat()]) };
        match self {
            Self::Page(text) => encoded(text, &plain),
            Self::Gzip(text) => encoded(text, &|body| {
                finish(GzEncoder::new(Vec::new(), Compression::default()), body)
            }),
            Self::RawDeflate(text) => encoded(text, &|body| {
                finish(
                    DeflateEncoder::new(Vec::new(), Compression::default()),
                    body,
                )
            }),
            Self::ZlibDeflate(text) => encoded(text, &|body| {
                finish(ZlibEncoder::new(Vec::new(), Compression::default()), body)
            }),
            Self::PaddedGzip(text) => encoded(text, &|body| {
                let packed = finish(GzEncoder::new(Vec::new(), Compression::default()), body)?;
                Ok([packed, vec![0; 64]].concat())
            }),
            Self::PaddedDeflate(text) => encoded(text, &|body| {
                let packed = finish(ZlibEncoder::new(Vec::new(), Compression::default()), body)?;
                Ok([packed, b"\n".to_vec()].concat())
            }),
            Self::Base64(text) => encoded(text, &|body| Ok(STANDARD.decode(body.trim())?)),
            Self::Bytes(text) => Ok(vec![latin1(&page(text, &plain)?)]),
            Self::Drip(text) => {
                let [head, body] = page(text, &plain)?;
                Ok(std::iter::once(head)
                    .chain(body.into_iter().map(|byte| vec![byte]))
                    .collect())
            }
            Self::Send(text) => Ok(vec![text.clone().into_bytes()]),
            Self::Chunk(text) => Ok(vec![format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()]),
            Self::Fill(count) => Ok(vec![
                b"0123456789abcdef"
                    .iter()
                    .copied()
                    .cycle()
                    .take(*count)
                    .collect(),
            ]),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns true if only the end of the connection delimits the body: a final response without a
    /// length.
    pub(super) fn must_close(&self) -> bool {
        let (Self::Page(text)
        | Self::Bytes(text)
        | Self::Gzip(text)
        | Self::Drip(text)
        | Self::Base64(text)) = self
        else {
            return false;
        };
        let head = text
            .split("\n\n")
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let has_end = head.contains("\ncontent-length:") || head.contains("\ntransfer-encoding:");
        let bodyless = head
            .split(' ')
            .nth(1)
            .is_some_and(|code| code.starts_with('1') || code == "204" || code == "304");
        !has_end && !bodyless
    }
}

/// Returns the head with CRLF line ends, and the encoded body.
pub fn page(text: &str, encode: &dyn Fn(&str) -> Result<Vec<u8>>) -> Result<[Vec<u8>; 2]> {
    let (head, body) = text
        .split_once("\n\n")
        .unwrap_or((text.trim_end_matches('\n'), ""));
    let body = encode(body)?;
    let head = head.replace(
        "Content-Length: auto",
        &format!("Content-Length: {}", body.len()),
    );
    Ok([
        format!("{}\r\n\r\n", head.replace('\n', "\r\n")).into_bytes(),
        body,
    ])
}

fn latin1(page: &[Vec<u8>; 2]) -> Vec<u8> {
    String::from_utf8_lossy(&page.concat())
        .chars()
        .map(|char| u8::try_from(char).unwrap_or(b'?'))
        .collect()
}

#[expect(clippy::unnecessary_wraps, reason = "one of several encodings")]
fn plain(body: &str) -> Result<Vec<u8>> {
    Ok(body.as_bytes().to_vec())
}

/// Compresses a body.
fn finish<E: Write + Finish>(mut encoder: E, body: &str) -> Result<Vec<u8>> {
    encoder.write_all(body.as_bytes())?;
    encoder.end().context("compressing in memory")
}

trait Finish {
    fn end(self) -> std::io::Result<Vec<u8>>;
}

impl Finish for GzEncoder<Vec<u8>> {
    fn end(self) -> std::io::Result<Vec<u8>> {
        self.finish()
    }
}

impl Finish for DeflateEncoder<Vec<u8>> {
    fn end(self) -> std::io::Result<Vec<u8>> {
        self.finish()
    }
}

impl Finish for ZlibEncoder<Vec<u8>> {
    fn end(self) -> std::io::Result<Vec<u8>> {
        self.finish()
    }
}
