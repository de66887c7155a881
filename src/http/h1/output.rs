//! Bytes on their way to a stream: heads and chunk lines in a buffer, and one part of a body.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use tokio::io::AsyncWrite;

use super::encode::{write_chunk_size, write_last_chunk};
use crate::http::Stream;

/// Maximum length in bytes of a part of a body that is copied behind its head, so that both leave in
/// one piece. Writing two slices costs more than copying this much.
const MAX_COPIED: usize = 4 * 1024;
/// Number and maximum capacity of the buffers that a worker keeps for reuse.
const MAX_SPARE: usize = 16;
const MAX_SPARE_CAPACITY: usize = 32 * 1024;

thread_local! {
    /// A connection has a buffer only while bytes wait in it.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Queue of bytes for one stream.
#[derive(Debug, Default)]
pub(super) struct Output {
    buffer: Vec<u8>,
    written: usize,
    /// Part of a body behind the buffer, and the line break that ends its chunk.
    data: Bytes,
    chunk_end: &'static [u8],
    /// Bytes were written to the stream since it was flushed.
    unflushed: bool,
    /// Any byte was written since [`Self::begin`].
    pub began: bool,
}

impl Output {
    /// Begins a message: resets [`Self::began`].
    pub fn begin(&mut self) {
        self.began = false;
    }

    /// Returns true if another part of a body can be pushed.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.chunk_end.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.has_room()
    }

    /// Returns true if the stream has sent everything.
    pub fn is_flushed(&self) -> bool {
        self.is_empty() && !self.unflushed
    }

    /// Returns true if another part of a body can be pushed and leave with the bytes before it in
    /// one write.
    pub fn takes_more(&self) -> bool {
        self.has_room() && self.buffered() < MAX_COPIED
    }

    /// Number of bytes that wait in the buffer.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// Returns the buffer, to append to it. [`Self::has_room`] must be true.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.has_room());
        if self.buffer.capacity() == 0 {
            self.buffer = SPARE
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| Vec::with_capacity(MAX_COPIED));
        }
        &mut self.buffer
    }

    /// Appends a part of a body. [`Self::has_room`] must be true.
    pub fn push(&mut self, data: Bytes, chunked: bool) {
        if data.is_empty() {
            // An empty chunk would end the body.
            return;
        }
        let copied = data.len() <= MAX_COPIED;
        if chunked {
            write_chunk_size(self.buffer(), data.len());
        }
        if copied {
            let buffer = self.buffer();
            buffer.extend_from_slice(&data);
            if chunked {
                buffer.extend_from_slice(b"\r\n");
            }
        } else {
            self.data = data;
            if chunked {
                self.chunk_end = b"\r\n";
            }
        }
    }

    /// Appends the end of a chunked body. Trailers require [`Self::has_room`].
    pub fn push_last_chunk(&mut self, trailers: Option<&HeaderMap>) {
        if self.has_room() {
            write_last_chunk(self.buffer(), trailers);
        } else {
            debug_assert!(trailers.is_none());
            self.chunk_end = b"\r\n0\r\n\r\n";
        }
    }

    /// Writes everything and flushes the stream. `progress` is set if bytes were written.
    pub fn poll_flush(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut Stream,
        progress: &mut bool,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let pending = &self.buffer[self.written..];
            let count = if self.has_room() {
                ready!(Pin::new(&mut *stream).poll_write(context, pending))?
            } else {
                let slices = [
                    IoSlice::new(pending),
                    IoSlice::new(&self.data),
                    IoSlice::new(self.chunk_end),
                ];
                ready!(Pin::new(&mut *stream).poll_write_vectored(context, &slices))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *progress = true;
            self.began = true;
            self.unflushed = true;
            self.advance(count);
        }
        if self.unflushed {
            // TLS may hold records that the socket did not take.
            ready!(Pin::new(stream).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, count: usize) {
        let of_buffer = count.min(self.buffered());
        self.written += of_buffer;
        if self.written == self.buffer.len() {
            self.release();
        }
        let of_data = (count - of_buffer).min(self.data.len());
        self.data.advance(of_data);
        if self.data.is_empty() {
            // Releases the memory of the part, not only its content.
            self.data = Bytes::new();
        }
        self.chunk_end = &self.chunk_end[count - of_buffer - of_data..];
    }

    /// Gives an empty buffer to the next message of any connection.
    fn release(&mut self) {
        self.written = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if buffer.capacity() <= MAX_SPARE_CAPACITY {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MAX_SPARE {
                    spare.push(buffer);
                }
            });
        }
    }
}
