//! Byte stream in the binary messages of a WebSocket (RFC 6455), as a client.
//!
//! The boundaries of messages have no meaning. The close status 1000 is the end of the stream; any
//! other end is an error, because bytes may be missing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::rand;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::http::websocket::{
    FrameError, FrameHead, MAX_CONTROL_PAYLOAD, NORMAL_CLOSURE, Opcode, apply_mask,
};

/// Number of bytes of one read.
const READ_SIZE: usize = 16 * 1024;
/// Maximum number of bytes in one frame of this side.
const MAX_FRAME: usize = 16 * 1024;
/// Number of bytes waiting for the connection from which on no more are accepted.
const MAX_OUTPUT: usize = 32 * 1024;
/// Maximum number of answers to pings that wait for the connection.
const MAX_PONGS: usize = 16 * 1024;

/// Client of a WebSocket that carries bytes.
#[derive(Debug)]
pub struct WebSocket<T> {
    io: T,
    input: BytesMut,
    /// Bytes of the current data frame that were not read yet.
    payload: u64,
    /// A message has begun and its last frame has not.
    is_fragmented: bool,
    output: BytesMut,
    has_sent_close: bool,
    has_received_close: bool,
}

/// Failure of a WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum WebSocketError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the server sent an unexpected {opcode:?} frame on the WebSocket")]
    UnexpectedFrame { opcode: Opcode },
    #[error("the server masked a frame of the WebSocket")]
    Masked,
    #[error("the server sends pings on the WebSocket and does not read the answers")]
    TooManyPings,
    #[error("the server closed the WebSocket with status {status}{reason}")]
    Closed { status: u16, reason: String },
    #[error("the server closed the connection without closing the WebSocket")]
    Cut,
}

impl From<WebSocketError> for io::Error {
    fn from(error: WebSocketError) -> Self {
        let kind = match error {
            WebSocketError::Cut => io::ErrorKind::UnexpectedEof,
            WebSocketError::Closed { .. } => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> WebSocket<T> {
    /// Wraps a connection after the response to its handshake.
    pub fn new(io: T) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            payload: 0,
            is_fragmented: false,
            output: BytesMut::new(),
            has_sent_close: false,
            has_received_close: false,
        }
    }

    /// Handles frames until one with data begins or the WebSocket ends. Returns false if more bytes
    /// are needed.
    fn next_payload(&mut self) -> Result<bool, WebSocketError> {
        while self.payload == 0 && !self.has_received_close {
            let Some((head, length)) = FrameHead::parse(&self.input)? else {
                return Ok(false);
            };
            if head.mask.is_some() {
                return Err(WebSocketError::Masked);
            }
            if head.opcode.is_control() {
                let payload = usize::try_from(head.length).unwrap_or(MAX_CONTROL_PAYLOAD);
                if self.input.len() < length + payload {
                    return Ok(false);
                }
                self.input.advance(length);
                let payload = self.input.split_to(payload);
                self.control(head.opcode, &payload)?;
                continue;
            }
            let opcode = head.opcode;
            let expected = if self.is_fragmented {
                Opcode::Continuation
            } else {
                Opcode::Binary
            };
            if opcode != expected {
                return Err(WebSocketError::UnexpectedFrame { opcode });
            }
            self.input.advance(length);
            self.is_fragmented = !head.fin;
            self.payload = head.length;
        }
        Ok(true)
    }

    fn control(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), WebSocketError> {
        match opcode {
            Opcode::Ping => {
                if self.output.len() > MAX_OUTPUT + MAX_PONGS {
                    return Err(WebSocketError::TooManyPings);
                }
                if !self.has_sent_close {
                    self.queue(Opcode::Pong, payload);
                }
                Ok(())
            }
            Opcode::Close => {
                self.has_received_close = true;
                if !self.has_sent_close {
                    self.has_sent_close = true;
                    self.queue(Opcode::Close, payload);
                }
                // 1005 stands for a close without a status (RFC 6455 section 7.4.1).
                let (status, reason) = match payload {
                    [a, b, reason @ ..] => (u16::from_be_bytes([*a, *b]), reason),
                    _ => (1005, &[][..]),
                };
                if status == NORMAL_CLOSURE {
                    return Ok(());
                }
                let mut reason = String::from_utf8_lossy(reason).into_owned();
                if !reason.is_empty() {
                    reason.insert_str(0, ": ");
                }
                Err(WebSocketError::Closed { status, reason })
            }
            _ => Ok(()),
        }
    }

    /// Appends a masked frame to the output.
    fn queue(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut mask = [0; 4];
        // A mask must be unpredictable for the sender of the payload (RFC 6455 section 10.3).
        rand::fill(&mut mask).expect("the random number generator of the process works");
        let head = FrameHead {
            fin: true,
            opcode,
            mask: Some(mask),
            length: payload.len() as u64,
        };
        head.encode(&mut self.output);
        let start = self.output.len();
        self.output.extend_from_slice(payload);
        apply_mask(&mut self.output[start..], mask);
    }

    /// Writes the output to the connection.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let has_payload = this.next_payload();
            // Answers to pings and to the end. A failure of the connection is that of the read.
            if this.poll_drain(context).is_ready() {
                let _ = Pin::new(&mut this.io).poll_flush(context);
            }
            let has_payload = has_payload?;
            if this.has_received_close {
                return Poll::Ready(Ok(()));
            }
            if has_payload && !this.input.is_empty() {
                let rest = usize::try_from(this.payload).unwrap_or(usize::MAX);
                let length = rest.min(this.input.len()).min(buffer.remaining());
                buffer.put_slice(&this.input[..length]);
                this.input.advance(length);
                this.payload -= length as u64;
                return Poll::Ready(Ok(()));
            }
            this.input.reserve(READ_SIZE);
            let io = Pin::new(&mut this.io);
            if ready!(poll_read_buf(io, context, &mut this.input))? == 0 {
                return Poll::Ready(Err(WebSocketError::Cut.into()));
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.has_sent_close {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.output.len() >= MAX_OUTPUT {
            ready!(this.poll_drain(context))?;
        }
        let length = bytes.len().min(MAX_FRAME);
        this.queue(Opcode::Binary, &bytes[..length]);
        // Pending output is written by the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_drain(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(context))?;
        Pin::new(&mut this.io).poll_flush(context)
    }

    /// Closes the WebSocket with the status 1000.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.has_sent_close {
            this.has_sent_close = true;
            this.queue(Opcode::Close, &NORMAL_CLOSURE.to_be_bytes());
        }
        ready!(this.poll_drain(context))?;
        Pin::new(&mut this.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// Encodes a frame of the server.
    fn frame(fin: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        FrameHead {
            fin,
            opcode,
            mask: None,
            length: payload.len() as u64,
        }
        .encode(&mut frame);
        frame.extend(payload);
        frame
    }

    /// Reads the client's next frame.
    async fn receive(server: &mut DuplexStream) -> (Opcode, Vec<u8>) {
        let mut bytes = Vec::new();
        loop {
            bytes.push(server.read_u8().await.unwrap());
            if let Some((head, _)) = FrameHead::parse(&bytes).unwrap() {
                let mut payload = vec![0; usize::try_from(head.length).unwrap()];
                server.read_exact(&mut payload).await.unwrap();
                apply_mask(&mut payload, head.mask.unwrap());
                assert!(head.fin);
                return (head.opcode, payload);
            }
        }
    }

    fn open() -> (WebSocket<DuplexStream>, DuplexStream) {
        let (client, server) = duplex(64 * 1024);
        (WebSocket::new(client), server)
    }

    #[tokio::test]
    async fn reads_fragments_between_control_frames_until_normal_closure() {
        let frames = [
            frame(true, Opcode::Binary, b"one"),
            frame(false, Opcode::Binary, b" two"),
            frame(true, Opcode::Ping, b"p"),
            frame(false, Opcode::Continuation, b""),
            frame(true, Opcode::Pong, b""),
            frame(true, Opcode::Continuation, &vec![b'x'; 70_000]),
            frame(true, Opcode::Binary, b""),
            frame(true, Opcode::Close, &NORMAL_CLOSURE.to_be_bytes()),
        ]
        .concat();
        for size in [1, 2, 5, 100_000] {
            let (mut client, mut server) = open();
            let frames = frames.clone();
            let task = tokio::spawn(async move {
                for piece in frames.chunks(size) {
                    server.write_all(piece).await.unwrap();
                    server.flush().await.unwrap();
                }
                assert_eq!(receive(&mut server).await, (Opcode::Pong, b"p".to_vec()));
                let close = NORMAL_CLOSURE.to_be_bytes().to_vec();
                assert_eq!(receive(&mut server).await, (Opcode::Close, close));
            });
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            assert!(received.starts_with(b"one twoxxx"));
            assert_eq!(received.len(), 7 + 70_000);
            task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn writes_masked_frames_and_closes_normally() {
        let (mut client, mut server) = open();
        let sent = vec![7; 40_000];
        let bytes = sent.clone();
        let task = tokio::spawn(async move {
            client.write_all(&bytes).await.unwrap();
            client.shutdown().await.unwrap();
            let error = client.write_all(b"late").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        });
        let mut received = Vec::new();
        while received.len() < sent.len() {
            let (opcode, payload) = receive(&mut server).await;
            assert_eq!(opcode, Opcode::Binary);
            assert!(payload.len() <= MAX_FRAME);
            received.extend(payload);
        }
        assert_eq!(received, sent);
        let close = NORMAL_CLOSURE.to_be_bytes().to_vec();
        assert_eq!(receive(&mut server).await, (Opcode::Close, close));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn reports_other_ends_and_violations() {
        let mut masked = Vec::new();
        FrameHead {
            fin: true,
            opcode: Opcode::Binary,
            mask: Some([1; 4]),
            length: 0,
        }
        .encode(&mut masked);
        for (bytes, message) in [
            (
                frame(true, Opcode::Close, b"\x03\xf3bye"),
                "the server closed the WebSocket with status 1011: bye",
            ),
            (
                frame(true, Opcode::Close, b""),
                "the server closed the WebSocket with status 1005",
            ),
            (
                frame(true, Opcode::Binary, b"cut")[..4].to_vec(),
                "the server closed the connection without closing the WebSocket",
            ),
            (
                frame(true, Opcode::Text, b"text"),
                "the server sent an unexpected Text frame on the WebSocket",
            ),
            (
                frame(true, Opcode::Continuation, b"none"),
                "the server sent an unexpected Continuation frame on the WebSocket",
            ),
            (masked, "the server masked a frame of the WebSocket"),
            (
                vec![0xC2, 0],
                "the WebSocket frame uses an extension that was not negotiated",
            ),
        ] {
            let (mut client, mut server) = open();
            server.write_all(&bytes).await.unwrap();
            server.shutdown().await.unwrap();
            let error = client.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[tokio::test]
    async fn bounds_the_answers_to_pings() {
        let (client, mut server) = duplex(256);
        let mut client = WebSocket::new(client);
        let task = tokio::spawn(async move { client.read_to_end(&mut Vec::new()).await });
        let ping = frame(true, Opcode::Ping, &[0; 125]);
        // The server reads no answer.
        for _ in 0..1000 {
            if server.write_all(&ping).await.is_err() {
                break;
            }
        }
        let error = task.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}
