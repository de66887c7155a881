//! WebSocket server of the demo's endpoints (RFC 6455). It sends a tick each second and echoes
//! text. Messages are JSON with the name of the endpoint.

use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::server::switched_off;
use crate::drain::Drain;
use crate::forward::websocket_accept;

/// Maximum length of a message in bytes. Longer ones end the connection.
const MAX_MESSAGE_BYTES: u16 = 4096;
const TICK: Duration = Duration::from_secs(1);

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
/// Last frame of a message, with an opcode.
const FIN: u8 = 0x80;
/// Status 1001: the endpoint goes away (RFC 6455 section 7.4.1).
const GOING_AWAY: [u8; 2] = 1001_u16.to_be_bytes();

/// Responds to the handshake of a WebSocket and serves it. The connection breaks when the endpoint
/// is switched off, and is closed when the demo ends.
pub(super) fn open(
    endpoint: &'static str,
    mut on: watch::Receiver<bool>,
    drain: Drain,
    mut request: Request,
) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned() else {
        return (StatusCode::BAD_REQUEST, "this path is a WebSocket\n").into_response();
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        tokio::select! {
            // A broken connection needs no handling: the page connects again.
            _ = converse(endpoint, TokioIo::new(stream), drain) => {}
            () = switched_off(&mut on) => {}
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(websocket_accept(&key)) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// Frame of a client, unmasked.
#[derive(Debug, PartialEq)]
struct Frame {
    opcode: u8,
    payload: Vec<u8>,
}

async fn converse(
    endpoint: &str,
    stream: impl AsyncRead + AsyncWrite,
    drain: Drain,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    // A stream keeps a frame that was read in part while ticks are sent.
    let frames = futures::stream::unfold(reader, async |mut reader| {
        Some((read_frame(&mut reader).await.ok()?, reader))
    });
    let mut frames = pin!(frames);
    let mut ticks = tokio::time::interval(TICK);
    let mut number = 0_u64;
    loop {
        let frame = tokio::select! {
            frame = frames.next() => match frame {
                Some(Frame { opcode: TEXT, payload }) => {
                    let text = String::from_utf8_lossy(&payload);
                    message(&json!({"endpoint": endpoint, "echo": text}))
                }
                Some(Frame { opcode: PING, payload }) => encode(PONG, &payload),
                Some(Frame { opcode: PONG, .. }) => continue,
                Some(Frame { opcode: CLOSE, payload }) => {
                    return writer.write_all(&encode(CLOSE, &payload)).await;
                }
                // Binary and fragmented messages are not used.
                Some(_) | None => return Ok(()),
            },
            _ = ticks.tick() => {
                number += 1;
                message(&json!({"endpoint": endpoint, "tick": number}))
            }
            () = drain.begun() => {
                return writer.write_all(&encode(CLOSE, &GOING_AWAY)).await;
            }
        };
        writer.write_all(&frame).await?;
    }
}

fn message(value: &serde_json::Value) -> Vec<u8> {
    encode(TEXT, value.to_string().as_bytes())
}

/// Encodes an unmasked frame of a server. The payloads of this module are shorter than 64 KiB.
fn encode(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![FIN | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..126), _) => frame.push(length),
        (_, length) => {
            frame.push(126);
            frame.extend(length.unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    frame.extend(&payload[..payload.len().min(u16::MAX.into())]);
    frame
}

/// Reads a frame of a client.
///
/// # Errors
/// The connection has ended, or the frame is fragmented, unmasked or too long.
async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut head = [0; 2];
    reader.read_exact(&mut head).await?;
    let [first, second] = head;
    let length = match second & 0x7F {
        126 => reader.read_u16().await?,
        127 => u16::MAX,
        length => length.into(),
    };
    if first & 0xF0 != FIN || second & 0x80 == 0 || length > MAX_MESSAGE_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut mask = [0; 4];
    reader.read_exact(&mut mask).await?;
    let mut payload = vec![0; length.into()];
    reader.read_exact(&mut payload).await?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    let opcode = first & 0x0F;
    Ok(Frame { opcode, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes a masked frame of a client.
    fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = encode(opcode, payload);
        frame[1] |= 0x80;
        let body = frame.len() - payload.len();
        let mask = [1, 2, 3, 4];
        for (byte, mask) in frame[body..].iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        frame.splice(body..body, mask);
        frame
    }

    #[tokio::test]
    async fn reads_masked_frames_and_rejects_others() {
        for payload in [&b""[..], b"hello", &[7; 125], &[7; 126], &[7; 4096]] {
            let frame = read_frame(&mut &masked(TEXT, payload)[..]).await.unwrap();
            let opcode = TEXT;
            let payload = payload.to_vec();
            assert_eq!(frame, Frame { opcode, payload });
        }
        let mut fragment = masked(TEXT, b"x");
        fragment[0] &= !FIN;
        for rejected in [
            encode(TEXT, b"not masked"),
            masked(TEXT, &[7; 4097]),
            vec![FIN | TEXT, 0xFF],
            masked(TEXT, b"cut short")[..9].to_vec(),
            fragment,
        ] {
            assert!(
                read_frame(&mut &rejected[..]).await.is_err(),
                "{rejected:?}"
            );
        }
    }

    /// Reads a text frame of the server, which is shorter than 126 bytes.
    async fn read_text(client: &mut (impl AsyncRead + Unpin)) -> String {
        let mut head = [0; 2];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(head[0], FIN | TEXT);
        let mut payload = vec![0; head[1].into()];
        client.read_exact(&mut payload).await.unwrap();
        String::from_utf8(payload).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn sends_ticks_echoes_text_and_answers_pings_and_close() {
        let (mut client, server) = tokio::io::duplex(1024);
        let task = tokio::spawn(converse("web-1", server, Drain::default()));
        assert_eq!(
            read_text(&mut client).await,
            r#"{"endpoint":"web-1","tick":1}"#
        );
        assert_eq!(
            read_text(&mut client).await,
            r#"{"endpoint":"web-1","tick":2}"#
        );
        client.write_all(&masked(TEXT, b"hello")).await.unwrap();
        assert_eq!(
            read_text(&mut client).await,
            r#"{"echo":"hello","endpoint":"web-1"}"#
        );
        client.write_all(&masked(PING, b"p")).await.unwrap();
        client.write_all(&masked(CLOSE, &[3, 232])).await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(
            rest,
            [encode(PONG, b"p"), encode(CLOSE, &[3, 232])].concat()
        );
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn closes_when_the_demo_ends() {
        let (mut client, server) = tokio::io::duplex(1024);
        let drain = Drain::default();
        let task = tokio::spawn(converse("web-1", server, drain.clone()));
        read_text(&mut client).await;
        drain.begin();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, encode(CLOSE, &GOING_AWAY));
        task.await.unwrap().unwrap();
    }
}
