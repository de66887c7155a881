//! Frames of a connection, as they pass to h2.
//!
//! h2 limits each header block, but not the memory of all of them: those of unfinished heads, of
//! requests that are not accepted yet, and of trailers that are not read yet.

use std::cell::RefCell;
use std::rc::Rc;

use crate::http::ReadObserver;

/// Number of bytes after which h2 must pause until the connection's task has accounted for the
/// heads in them. Other tasks run meanwhile. A byte can be a field, so they take at most 7 MiB.
const MAX_READ: usize = 64 * 1024;

/// Length of the preface (RFC 9113 section 3.4) and of the head of a frame (section 4.1).
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Header block on the wire (RFC 9113 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub stream: u32,
    /// Number of bytes, before decompression.
    pub length: usize,
    is_trailers: bool,
}

/// State of the frames of a connection.
#[derive(Debug)]
pub(super) struct Meter {
    /// Number of bytes that h2 may read.
    allowance: usize,
    /// h2 had to pause.
    paused: bool,
    /// Bytes have arrived since [`Self::take_received`].
    received: bool,
    /// Number of bytes until the next head of a frame.
    skip: usize,
    head: [u8; FRAME_HEAD],
    head_length: usize,
    last_stream: u32,
    unfinished: Option<Block>,
    trailers: Vec<Block>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            allowance: MAX_READ,
            paused: false,
            received: false,
            skip: PREFACE,
            head: [0; FRAME_HEAD],
            head_length: 0,
            last_stream: 0,
            unfinished: None,
            trailers: Vec::new(),
        }
    }
}

impl Meter {
    /// Lets h2 read further bytes. Returns true if it paused, and must be polled again.
    pub fn resume(&mut self) -> bool {
        self.allowance = MAX_READ;
        std::mem::take(&mut self.paused)
    }

    /// Returns the header block whose end was not received.
    pub fn unfinished(&self) -> Option<Block> {
        self.unfinished
    }

    /// Takes the complete trailer sections since the last call.
    pub fn take_trailers(&mut self) -> Vec<Block> {
        std::mem::take(&mut self.trailers)
    }

    /// Returns true if bytes have arrived since the last call.
    pub fn take_received(&mut self) -> bool {
        std::mem::take(&mut self.received)
    }

    /// Follows bytes that h2 has read.
    pub fn read(&mut self, mut bytes: &[u8]) {
        self.received |= !bytes.is_empty();
        self.allowance = self.allowance.saturating_sub(bytes.len());
        while !bytes.is_empty() {
            if self.skip > 0 {
                let length = self.skip.min(bytes.len());
                self.skip -= length;
                bytes = &bytes[length..];
                continue;
            }
            let length = (FRAME_HEAD - self.head_length).min(bytes.len());
            let (part, rest) = bytes.split_at(length);
            self.head[self.head_length..][..length].copy_from_slice(part);
            self.head_length += length;
            bytes = rest;
            if self.head_length == FRAME_HEAD {
                self.head_length = 0;
                self.begin_frame();
            }
        }
    }

    fn begin_frame(&mut self) {
        let [l0, l1, l2, kind, flags, stream @ ..] = self.head;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        self.skip = length;
        let block = match (kind, self.unfinished) {
            (HEADERS, _) => {
                let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
                // Clients open streams in ascending order (RFC 9113 section 5.1.1).
                let is_trailers = stream <= self.last_stream;
                self.last_stream = self.last_stream.max(stream);
                Block {
                    stream,
                    length,
                    is_trailers,
                }
            }
            (CONTINUATION, Some(block)) => Block {
                length: block.length + length,
                ..block
            },
            // h2 closes the connection if the frame is not allowed here.
            _ => return,
        };
        let ends = flags & END_HEADERS != 0;
        self.unfinished = (!ends).then_some(block);
        if ends && block.is_trailers {
            self.trailers.push(block);
        }
    }
}

impl ReadObserver for Rc<RefCell<Meter>> {
    fn may_read(&mut self) -> bool {
        let mut meter = self.borrow_mut();
        // The connection's task polls h2 again.
        meter.paused |= meter.allowance == 0;
        meter.allowance > 0
    }

    fn observe(&mut self, bytes: &[u8]) {
        self.borrow_mut().read(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0x80, 0, 0, stream];
        frame.extend(std::iter::repeat_n(b'x', length.into()));
        frame
    }

    fn block(stream: u32, length: usize, is_trailers: bool) -> Block {
        Block {
            stream,
            length,
            is_trailers,
        }
    }

    #[test]
    fn finds_unfinished_blocks_and_trailers_in_any_chunks() {
        let connection = [
            vec![0; PREFACE],
            frame(4, 0, 0, 12),
            frame(HEADERS, END_HEADERS, 1, 200),
            frame(0, 0, 1, 100),
            frame(HEADERS, 0, 3, 20),
            frame(CONTINUATION, 0, 3, 0),
            frame(CONTINUATION, END_HEADERS, 3, 5),
            frame(HEADERS, END_HEADERS, 1, 10),
            frame(CONTINUATION, END_HEADERS, 1, 10),
            frame(HEADERS, 0, 3, 1),
            frame(CONTINUATION, END_HEADERS, 3, 2),
            frame(HEADERS, 0, 5, 7),
            frame(CONTINUATION, 0, 5, 8),
        ]
        .concat();
        for size in [1, 2, 9, 10, 31, connection.len()] {
            let mut meter = Meter::default();
            let mut unfinished = Vec::new();
            for part in connection.chunks(size) {
                meter.read(part);
                unfinished.extend(meter.unfinished());
            }
            unfinished.dedup();
            assert_eq!(
                meter.take_trailers(),
                [block(1, 10, true), block(3, 3, true)]
            );
            assert_eq!(meter.take_trailers(), []);
            let expected = [
                block(3, 20, false),
                block(3, 1, true),
                block(5, 7, false),
                block(5, 15, false),
            ];
            if size <= FRAME_HEAD {
                assert_eq!(unfinished, expected);
            }
            assert_eq!(meter.unfinished(), Some(expected[3]));
        }
    }

    #[test]
    fn pauses_after_allowance() {
        let mut meter = Meter::default();
        meter.read(&vec![0; MAX_READ - 1]);
        assert_eq!(meter.allowance, 1);
        meter.read(&[0; 10]);
        assert_eq!(meter.allowance, 0);
        assert!(!meter.resume(), "h2 wanted no more");
        assert_eq!(meter.allowance, MAX_READ);
    }
}
