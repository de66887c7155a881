//! Client of HTTP/2 that sends any bytes as fields (RFC 9113, RFC 7541).

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::runner::Bed;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Names and values.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Outcome of a stream.
#[derive(Debug)]
pub enum Outcome {
    Response(u16, Vec<u8>),
    /// The stream or the connection ended without a complete response.
    Refused,
}

/// Sends a request on a new connection and reads its response.
pub async fn exchange(
    bed: &Bed,
    fields: &Fields,
    data: Option<&str>,
    trailers: Option<&Fields>,
) -> Result<Outcome> {
    let mut client = bed.connect(&[b"h2"]).await?;
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut sent, SETTINGS, 0, 0, &[]);
    let ends = |last: bool| if last { END_STREAM } else { 0 };
    let last = data.is_none() && trailers.is_none();
    let block = |fields: &Fields| {
        let mut block = Vec::new();
        for (name, value) in fields {
            // A literal field that is not indexed (RFC 7541 section 6.2.2).
            block.push(0);
            string(&mut block, name);
            string(&mut block, &bed.expand(value));
        }
        block
    };
    frame(
        &mut sent,
        HEADERS,
        END_HEADERS | ends(last),
        1,
        &block(fields),
    );
    if let Some(data) = data {
        frame(
            &mut sent,
            DATA,
            ends(trailers.is_none()),
            1,
            data.as_bytes(),
        );
    }
    if let Some(trailers) = trailers {
        frame(
            &mut sent,
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &block(trailers),
        );
    }
    client.write_all(&sent).await?;
    client.flush().await?;
    let (mut status, mut body) = (None, Vec::new());
    loop {
        let mut head = [0; 9];
        if client.read_exact(&mut head).await.is_err() {
            return Ok(Outcome::Refused);
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if client.read_exact(&mut payload).await.is_err() {
            return Ok(Outcome::Refused);
        }
        let (kind, flags) = (head[3], head[4]);
        match kind {
            SETTINGS if flags & ACK == 0 => {
                let mut ack = Vec::new();
                frame(&mut ack, SETTINGS, ACK, 0, &[]);
                client.write_all(&ack).await?;
                client.flush().await?;
            }
            HEADERS if status.is_none() => status = Some(decode_status(&payload)?),
            DATA => body.extend_from_slice(&payload),
            RST_STREAM | GOAWAY => return Ok(Outcome::Refused),
            _ => {}
        }
        if let (DATA | HEADERS, Some(status)) = (kind, status)
            && flags & END_STREAM != 0
        {
            return Ok(Outcome::Response(status, body));
        }
    }
}

fn frame(sent: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    sent.extend_from_slice(&length[1..]);
    sent.extend_from_slice(&[kind, flags]);
    sent.extend_from_slice(&stream.to_be_bytes());
    sent.extend_from_slice(payload);
}

/// Encodes a string without Huffman coding (RFC 7541 section 5.2).
fn string(block: &mut Vec<u8>, text: &[u8]) {
    let length = u8::try_from(text.len()).expect("the tests send short strings");
    if length < 127 {
        block.push(length);
    } else {
        // An integer of two bytes (RFC 7541 section 5.1), whose second byte has seven bits.
        assert!(length < 255, "the tests send short strings");
        block.extend_from_slice(&[127, length - 127]);
    }
    block.extend_from_slice(text);
}

/// Decodes `:status`, the first field of a response.
fn decode_status(block: &[u8]) -> Result<u16> {
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
