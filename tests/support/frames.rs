//! Frames of HTTP/2 as bytes (RFC 9113, RFC 7541), for tests that send what a library does not.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

/// Frame types (RFC 9113 section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Settings (RFC 9113 section 6.5.2).
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Error codes (RFC 9113 section 7).
pub const PROTOCOL_ERROR: u32 = 1;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// Start of every connection of a client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Maximum payload of a frame unless the other side allows more.
pub const MAX_PAYLOAD: usize = 16 * 1024;

/// Maximum time to wait for the bastion to react.
const REACTION_TIMEOUT: Duration = Duration::from_mins(1);
/// Time without progress after which a write waits for the other side to read.
const STALL: Duration = Duration::from_secs(1);
/// Payload of the PING that follows a flood.
const LAST_PING: &[u8] = b"the end.";

/// Received frame.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Reaction to a flood.
#[derive(Debug, PartialEq, Eq)]
pub enum Reaction {
    /// The connection was closed with this error code.
    Closed(u32),
    /// All frames were processed, and the connection is open.
    Absorbed,
}

/// Appends a frame.
pub fn frame(sent: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    sent.extend_from_slice(&length[1..]);
    sent.extend_from_slice(&[kind, flags]);
    sent.extend_from_slice(&stream.to_be_bytes());
    sent.extend_from_slice(payload);
}

/// Appends a header block, in CONTINUATION frames where it exceeds one frame.
pub fn header_block(sent: &mut Vec<u8>, flags: u8, stream: u32, block: &[u8]) {
    let mut kind = HEADERS;
    let mut flags = flags;
    let mut parts = block.chunks(MAX_PAYLOAD).peekable();
    while let Some(part) = parts.next() {
        let end = if parts.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        frame(sent, kind, flags | end, stream, part);
        (kind, flags) = (CONTINUATION, 0);
    }
}

/// Appends a literal field that is not indexed (RFC 7541 section 6.2.2).
pub fn literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    string(block, name);
    string(block, value);
}

/// Encodes a string without Huffman coding (RFC 7541 section 5.2).
fn string(block: &mut Vec<u8>, text: &[u8]) {
    match u8::try_from(text.len()) {
        Ok(length) if length < 127 => block.push(length),
        _ => {
            // An integer of several bytes (RFC 7541 section 5.1).
            block.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                block.push(u8::try_from(rest % 128).expect("seven bits") | 128);
                rest /= 128;
            }
            block.push(u8::try_from(rest).expect("seven bits"));
        }
    }
    block.extend_from_slice(text);
}

/// Reads a frame. `None` at the end of the connection.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        payload,
    })
}

/// Decodes `:status`, the first field of a response.
///
/// # Errors
/// Returns an error if it is not the first one, or refers to an earlier response.
pub fn decode_status(block: &[u8]) -> Result<u16> {
    /// Entries 8 to 14 of the static table (RFC 7541 appendix A).
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block {
        [first @ 0x88..=0x8e, ..] => Ok(STATIC[usize::from(first - 0x88)]),
        // A literal with an indexed name, not Huffman-coded.
        [0x08 | 0x48, 3, digits @ ..] => Ok(str::from_utf8(&digits[..3])?.parse()?),
        [0x08 | 0x48, length @ 0x80..=0xff, rest @ ..] => {
            digits(&rest[..usize::from(length & 0x7f).min(rest.len())])
        }
        _ => bail!("a head that does not begin with :status: {block:02x?}"),
    }
}

/// Decodes three digits in Huffman coding (RFC 7541 appendix B): 0 to 2 have five bits, 3 to 9 six.
fn digits(bytes: &[u8]) -> Result<u16> {
    let bit = |at: usize| {
        bytes
            .get(at / 8)
            .map_or(1, |byte| u16::from(byte >> (7 - at % 8) & 1))
    };
    let bits = |at: usize, count: usize| (at..at + count).fold(0, |code, at| code << 1 | bit(at));
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let mut digit = bits(at, 5);
        at += 5;
        if digit > 2 {
            at += 1;
            let code = bits(at - 6, 6).checked_sub(0x19);
            digit = 3 + code.context("a status that is not a number")?;
        }
        number = number * 10 + digit;
    }
    Ok(number)
}

/// Client that writes any frames.
#[derive(Debug)]
pub struct FrameClient<S> {
    write: WriteHalf<S>,
    pub read: ReadHalf<S>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> FrameClient<S> {
    /// Sends the preface with settings.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
    pub async fn new(stream: S, settings: &[(u16, u32)]) -> Result<Self> {
        let (read, write) = tokio::io::split(stream);
        let mut client = Self { write, read };
        let mut sent = PREFACE.to_vec();
        let mut payload = Vec::new();
        for (setting, value) in settings {
            payload.extend_from_slice(&setting.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        frame(&mut sent, SETTINGS, 0, 0, &payload);
        // The bastion sent its settings before it reads these.
        frame(&mut sent, SETTINGS, ACK, 0, &[]);
        client.send(&sent).await?;
        Ok(client)
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// Returns an error if the connection is closed, or nothing is read of them for a minute.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = async {
            self.write.write_all(bytes).await?;
            self.write.flush().await
        };
        timeout(REACTION_TIMEOUT, sent).await.context("stalled")??;
        Ok(())
    }

    /// Reads frames until one that `is` accepts.
    ///
    /// # Errors
    /// Returns an error if the connection ends first.
    pub async fn until(&mut self, is: impl Fn(&Frame) -> bool) -> Result<Frame> {
        let frame = async {
            loop {
                let frame = read_frame(&mut self.read).await.context("closed")?;
                if is(&frame) {
                    return anyhow::Ok(frame);
                }
            }
        };
        timeout(REACTION_TIMEOUT, frame)
            .await
            .context("no such frame")?
    }

    /// Sends a PING. Its acknowledgement means that the bastion has processed all frames before.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_ping(&mut self) -> Result<()> {
        let mut ping = Vec::new();
        frame(&mut ping, PING, 0, 0, LAST_PING);
        self.send(&ping).await
    }

    /// Sends a PING and waits for its acknowledgement.
    ///
    /// # Errors
    /// Returns an error if the connection ends first.
    pub async fn processed(&mut self) -> Result<()> {
        self.send_ping().await?;
        self.until(|frame| frame.kind == PING && frame.payload == LAST_PING)
            .await?;
        Ok(())
    }

    /// Sends `rounds` parts of a flood while it reads whatever the bastion sends, and returns the
    /// reaction.
    ///
    /// # Errors
    /// Returns an error if the bastion closes the connection without GOAWAY, or leaves it open
    /// after GOAWAY.
    pub async fn flood(
        self,
        rounds: u32,
        mut part: impl FnMut(u32) -> Vec<u8>,
    ) -> Result<Reaction> {
        let Self {
            mut write,
            mut read,
        } = self;
        let reaction = tokio::spawn(async move {
            while let Some(frame) = read_frame(&mut read).await {
                match frame.kind {
                    PING if frame.payload == LAST_PING => return Ok(Reaction::Absorbed),
                    GOAWAY => {
                        let code = frame.payload[4..8].try_into().expect("four bytes");
                        // Until the end of the connection.
                        while read_frame(&mut read).await.is_some() {}
                        return Ok(Reaction::Closed(u32::from_be_bytes(code)));
                    }
                    _ => {}
                }
            }
            bail!("closed without GOAWAY")
        });
        for round in 0..rounds {
            // Fails once the connection is closed, which the other half reports with the reason.
            if write.write_all(&part(round)).await.is_err() {
                break;
            }
        }
        let mut ping = Vec::new();
        frame(&mut ping, PING, 0, 0, LAST_PING);
        let _ = write.write_all(&ping).await;
        let _ = write.flush().await;
        timeout(REACTION_TIMEOUT, reaction)
            .await
            .context("no reaction")??
    }

    /// Sends `rounds` parts of a flood and reads nothing. Ends early when the bastion reads no more
    /// or closes the connection. Returns the number of parts that were sent.
    pub async fn flood_unread(&mut self, rounds: u32, part: &[u8]) -> u32 {
        for round in 0..rounds {
            if !matches!(timeout(STALL, self.write.write_all(part)).await, Ok(Ok(()))) {
                return round;
            }
        }
        rounds
    }
}

/// Checks a reaction.
///
/// # Errors
/// Returns an error if it is another one.
pub fn ensure_closed(what: &str, reaction: &Reaction, code: u32) -> Result<()> {
    println!("{what}: {reaction:?}");
    ensure!(
        *reaction == Reaction::Closed(code),
        "{what}: {reaction:?} instead of GOAWAY with code {code}"
    );
    Ok(())
}
