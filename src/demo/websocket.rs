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
use crate::http::websocket::{FrameHead, GOING_AWAY, Opcode, apply_mask};

/// Maximum length of a message in bytes. Longer ones end the connection.
const MAX_MESSAGE_BYTES: u64 = 4096;
const TICK: Duration = Duration::from_secs(1);

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
    opcode: Opcode,
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
                Some(Frame { opcode: Opcode::Text, payload }) => {
                    let text = String::from_utf8_lossy(&payload);
                    message(&json!({"endpoint": endpoint, "echo": text}))
                }
                Some(Frame { opcode: Opcode::Ping, payload }) => encode(Opcode::Pong, &payload),
                Some(Frame { opcode: Opcode::Pong, .. }) => continue,
                Some(Frame { opcode: Opcode::Close, payload }) => {
                    return writer.write_all(&encode(Opcode::Close, &payload)).await;
                }
                // Binary and fragmented messages are not used.
                Some(_) | None => return Ok(()),
            },
            _ = ticks.tick() => {
                number += 1;
                message(&json!({"endpoint": endpoint, "tick": number}))
            }
            () = drain.begun() => {
                return writer.write_all(&encode(Opcode::Close, &GOING_AWAY.to_be_bytes())).await;
            }
        };
        writer.write_all(&frame).await?;
    }
}

fn message(value: &serde_json::Value) -> Vec<u8> {
    encode(Opcode::Text, value.to_string().as_bytes())
}

/// Encodes an unmasked frame of a server.
fn encode(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    FrameHead {
        fin: true,
        opcode,
        mask: None,
        length: payload.len() as u64,
    }
    .encode(&mut frame);
    frame.extend(payload);
    frame
}

/// Reads a frame of a client.
///
/// # Errors
/// The connection has ended, or the frame is fragmented, unmasked or too long.
async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut bytes = Vec::new();
    let head = loop {
        bytes.push(reader.read_u8().await?);
        if let Some((head, _)) = FrameHead::parse(&bytes).map_err(io::Error::other)? {
            break head;
        }
    };
    let mask = head.mask.ok_or_else(invalid)?;
    if !head.fin || head.length > MAX_MESSAGE_BYTES {
        return Err(invalid());
    }
    let mut payload = Vec::new();
    let read = reader.take(head.length).read_to_end(&mut payload).await?;
    if read as u64 != head.length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    apply_mask(&mut payload, mask);
    let opcode = head.opcode;
    Ok(Frame { opcode, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Opcode = Opcode::Text;
    const PING: Opcode = Opcode::Ping;
    const CLOSE: Opcode = Opcode::Close;

    /// Encodes a masked frame of a client.
    fn masked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = Vec::new();
        FrameHead {
            fin: true,
            opcode,
            mask: Some(mask),
            length: payload.len() as u64,
        }
        .encode(&mut frame);
        let body = frame.len();
        frame.extend(payload);
        apply_mask(&mut frame[body..], mask);
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
        fragment[0] &= 0x7F;
        for rejected in [
            encode(TEXT, b"not masked"),
            masked(TEXT, &[7; 4097]),
            vec![0x81, 0xFF],
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
        assert_eq!(head[0], 0x81);
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
            [encode(Opcode::Pong, b"p"), encode(CLOSE, &[3, 232])].concat()
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
        assert_eq!(rest, encode(CLOSE, &GOING_AWAY.to_be_bytes()));
        task.await.unwrap().unwrap();
    }
}
