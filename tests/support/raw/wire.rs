//! HTTP/1.1 as bytes: heads and bodies without validation.

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::STEP_TIMEOUT;

/// Header field as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub value: String,
}

impl Field {
    /// Returns the bytes as text, with bytes that are not UTF-8 as `\xNN`.
    pub fn escaped(bytes: &[u8]) -> String {
        bytes.utf8_chunks().fold(String::new(), |mut text, chunk| {
            text.push_str(chunk.valid());
            chunk
                .invalid()
                .iter()
                .for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
            text
        })
    }

    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Parses the lines of a head after the first. Bytes that are not UTF-8 are escaped.
    pub fn parse(lines: &[u8]) -> Vec<Self> {
        let lines = lines
            .split(|byte| *byte == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let text = Self::escaped(line);
                let (name, value) = text.split_once(':').unwrap_or((&text, ""));
                Self {
                    name: name.to_owned(),
                    value: value.trim().to_owned(),
                }
            })
            .collect()
    }
}

/// First line of a message and its header fields, in order.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub line: String,
    pub fields: Vec<Field>,
}

impl Head {
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(bytes.len());
        let line = &bytes[..end];
        let line = Field::escaped(line.strip_suffix(b"\r").unwrap_or(line));
        Self {
            line,
            fields: Field::parse(bytes.get(end + 1..).unwrap_or_default()),
        }
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|field| field.is(name))
            .map(|field| &*field.value)
    }

    pub fn is_chunked(&self) -> bool {
        self.value("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    pub fn content_length(&self) -> Option<usize> {
        self.value("content-length")
            .and_then(|value| value.parse().ok())
    }
}

/// One side of a connection. Reads within a message have a timeout.
#[derive(Debug)]
pub struct Wire<S> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Reads the next head. Returns `None` if the other side has closed.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
    pub async fn head(&mut self) -> Result<Option<Head>> {
        loop {
            if let Some(end) = position(&self.buffer, b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Ok(Some(Head::parse(&head)));
            }
            // No timeout: idle connections may wait.
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads the body of a request, passes its parts to `got` and returns its trailers.
    ///
    /// # Errors
    /// Returns an error if it is truncated or malformed.
    pub async fn body(&mut self, head: &Head, mut got: impl FnMut(&[u8])) -> Result<Vec<Field>> {
        if !head.is_chunked() {
            let mut missing = head.content_length().unwrap_or(0);
            while missing > 0 {
                let mut bytes = self.some().await?.context("the body ended early")?;
                let rest = bytes.split_off(bytes.len().min(missing));
                self.buffer = rest;
                missing -= bytes.len();
                got(&bytes);
            }
            return Ok(Vec::new());
        }
        loop {
            let size = self.line().await?;
            let size =
                usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
            if size == 0 {
                break;
            }
            while self.buffer.len() < size + 2 {
                self.more().await?;
            }
            got(&self.buffer[..size]);
            ensure!(
                &self.buffer[size..size + 2] == b"\r\n",
                "a chunk does not end with CRLF"
            );
            self.buffer.drain(..size + 2);
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(trailers);
            }
            trailers.extend(Field::parse(line.as_bytes()));
        }
    }

    /// Reads the next bytes. Returns `None` if the other side has closed.
    ///
    /// # Errors
    /// Returns an error if the connection fails, or after [`STEP_TIMEOUT`].
    pub async fn some(&mut self) -> Result<Option<Vec<u8>>> {
        if self.buffer.is_empty() {
            let read =
                tokio::time::timeout(STEP_TIMEOUT, self.stream.read_buf(&mut self.buffer)).await;
            if read.context("timed out waiting for bytes")?? == 0 {
                return Ok(None);
            }
        }
        Ok(Some(std::mem::take(&mut self.buffer)))
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = position(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(Field::escaped(&line[..end]));
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<()> {
        let read = tokio::time::timeout(STEP_TIMEOUT, self.stream.read_buf(&mut self.buffer)).await;
        if read.context("timed out waiting for bytes")?? == 0 {
            bail!("the body ended early");
        }
        Ok(())
    }
}

pub fn position(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}
