//! Rewriting of one page in slices of bounded work: decode, rewrite, encode.

use bytes::Bytes;

use super::budget::PageLimit;
use super::coding::{self, Coding, Decoded, Decoder, Encoder};
use super::html::{self, BLOCK_BYTES, Html};
use super::{LinkRewriter, PageFormat};

/// Maximum work of one slice, in units of at most about 15 ns: two milliseconds on any page. The
/// last step of a slice may exceed it. The worker serves other requests between two slices.
pub const MAX_WORK_PER_SLICE: usize = 128 * 1024;

/// Work per decoded byte.
const WORK_PER_BYTE: usize = 1;

/// Work per byte of a compressed page. Deflate blocks that decode to nothing cost about 100 ns per
/// byte, and would be free if only decoded bytes counted.
const WORK_PER_ENCODED_BYTE: usize = 8;

/// Work per member of a gzip stream, which needs a new decoder.
const WORK_PER_MEMBER: usize = 1024;

/// Work per element.
pub(super) const WORK_PER_ELEMENT: usize = 64;

/// Work per byte of output.
const WORK_PER_OUTPUT_BYTE: usize = 1;

/// Additional work per byte of output that is compressed.
const WORK_PER_DEFLATED_BYTE: usize = 2;

/// Maximum output that is encoded in one step, in bytes.
const MAX_ENCODED_BYTES_PER_STEP: usize = 16 * 1024;

/// Maximum capacity of the output buffer that is kept from block to block, in bytes.
const MAX_KEPT_ROOM_BYTES: usize = 4 * BLOCK_BYTES;

/// Rewriter of one page: decodes it, rewrites its links and encodes it again, in slices of work.
#[expect(
    missing_debug_implementations,
    reason = "codecs and rewriters have none"
)]
pub struct Rewriter {
    coding: Coding,
    decoder: Decoder,
    encoder: Option<Encoder>,
    html: Html,
    /// Decoded block of the page, input of the parser.
    block: Box<[u8; BLOCK_BYTES]>,
    /// First bytes of the page, until it is known whether they are a byte order mark.
    start: Option<Vec<u8>>,
    /// The page is UTF-16, or not in the coding of its headers: it passes unmodified.
    passthrough: bool,
    /// Rewritten bytes, of which those from `staged_from` on are not encoded yet.
    staged: Vec<u8>,
    staged_from: usize,
    phase: Phase,
    /// The last slice did all work that the input allowed.
    idle: bool,
    work: usize,
}

/// Progress of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// More input may follow.
    Open,
    /// The input is complete.
    Ending,
    /// The input is rewritten.
    Rewritten,
    /// The output is complete.
    Done,
}

/// A page that is not valid in the content coding of its headers.
#[derive(Debug, thiserror::Error)]
#[error("the page cannot be decompressed: {0}")]
pub struct BadPage(#[from] std::io::Error);

impl Rewriter {
    /// Maximum memory that a page holds between two slices, in bytes. Output is held in vectors,
    /// whose capacity may be twice their length.
    pub const MAX_HELD_BYTES: usize = html::MAX_HELD_BYTES
        + 2 * html::MAX_OUTPUT_BYTES_PER_BLOCK
        + BLOCK_BYTES
        + 2 * MAX_KEPT_ROOM_BYTES
        + coding::MAX_HELD_BYTES;

    /// Maximum input of one slice, in bytes.
    pub const MAX_INPUT_BYTES_PER_SLICE: usize = MAX_WORK_PER_SLICE / WORK_PER_BYTE + BLOCK_BYTES;

    /// Maximum output of one slice, in bytes: one block more than the work allows, and the overhead
    /// of the coding.
    pub const MAX_OUTPUT_BYTES_PER_SLICE: usize =
        2 * (MAX_WORK_PER_SLICE / WORK_PER_OUTPUT_BYTE + html::MAX_OUTPUT_BYTES_PER_BLOCK);

    pub fn new(format: PageFormat, links: LinkRewriter) -> Self {
        Self {
            coding: format.coding,
            decoder: Decoder::new(format.coding),
            encoder: None,
            html: Html::new(links),
            block: Box::new([0; BLOCK_BYTES]),
            start: Some(Vec::new()),
            passthrough: false,
            staged: Vec::new(),
            staged_from: 0,
            phase: Phase::Open,
            idle: true,
            work: 0,
        }
    }

    /// Does one slice of work: consumes input from the front of `bytes` and returns output.
    ///
    /// # Errors
    /// [`BadPage`] if the input is invalid in the page's coding, or truncated.
    pub fn take(&mut self, bytes: &mut Bytes) -> Result<Vec<u8>, BadPage> {
        let mut out = Vec::new();
        let mut work = 0;
        self.idle = false;
        while work < MAX_WORK_PER_SLICE {
            // Output before input, so that at most one block is held between the two.
            let done = if self.staged_from < self.staged.len() {
                self.encode(&mut out)?
            } else if self.phase == Phase::Rewritten {
                self.end(&mut out)?
            } else {
                self.advance(bytes)?
            };
            let Some(done) = done else {
                // The endpoint may send nothing more for a long time: flush the encoder, so that a
                // streamed page stays streamed.
                if let Some(encoder) = &mut self.encoder {
                    encoder.flush(&mut out)?;
                }
                self.idle = true;
                break;
            };
            work += done;
        }
        self.work += work;
        Ok(out)
    }

    /// Marks the input as complete.
    pub fn finish(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Ending;
        }
    }

    /// Returns true if [`Self::take`] has work to do without further input.
    pub fn has_work(&self) -> bool {
        match self.phase {
            Phase::Open => !self.idle,
            Phase::Ending | Phase::Rewritten => true,
            Phase::Done => false,
        }
    }

    /// Returns true if the output is complete.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Work done so far, in the units of [`MAX_WORK_PER_SLICE`].
    pub fn work(&self) -> usize {
        self.work
    }

    /// Stops rewriting because of `bound`; the rest of the page passes unmodified.
    pub fn pass(&mut self, bound: PageLimit) {
        self.html.pass(bound);
        self.staged.append(&mut self.html.take_output());
    }

    /// Bound at which rewriting stopped, if any.
    pub fn bound(&self) -> Option<PageLimit> {
        self.html.bound()
    }

    /// Upper bound of the memory held until the next slice, in bytes.
    pub fn held_bytes(&self) -> usize {
        BLOCK_BYTES + self.coding.held_bytes() + self.staged.capacity() + self.html.held_bytes()
    }

    /// Decodes and rewrites at most one block. Returns the work done, or `None` if it needs more
    /// input.
    fn advance(&mut self, bytes: &mut Bytes) -> Result<Option<usize>, BadPage> {
        if self.phase == Phase::Done {
            return Ok(None);
        }
        // Blocks are aligned to the page (see `BLOCK_BYTES`), so the bytes that wait for the byte
        // order mark belong to the first one.
        let room = self.html.room() - self.start.as_ref().map_or(0, Vec::len);
        let before = bytes.len();
        let decoded = self.decoder.decode(bytes, &mut self.block[..room])?;
        let consumed = before - bytes.len();
        match decoded {
            Decoded::Some(length) => {
                let encoded = if self.decoder.is_identity() {
                    0
                } else {
                    consumed * WORK_PER_ENCODED_BYTE
                };
                Ok(Some(
                    encoded + length * WORK_PER_BYTE + self.rewrite(length),
                ))
            }
            Decoded::Member => Ok(Some(WORK_PER_MEMBER)),
            Decoded::Starved if self.phase == Phase::Open => Ok(None),
            Decoded::Starved => {
                self.decoder.finish()?;
                // A page of one byte, which could have begun a byte order mark.
                if let Some(start) = self.start.take() {
                    self.html.write(&start);
                }
                self.html.finish();
                self.html.swap_output(&mut self.staged);
                self.phase = Phase::Rewritten;
                Ok(Some(WORK_PER_BYTE))
            }
        }
    }

    /// Rewrites the first `length` bytes of the block. Returns the work of its elements.
    fn rewrite(&mut self, length: usize) -> usize {
        let page = &self.block[..length];
        let start = self.start.take().map(|mut start| {
            start.extend_from_slice(page);
            start
        });
        let page = start.as_deref().unwrap_or(page);
        if start.is_some() {
            let is_utf_16 = matches!(page, [0xfe, 0xff, ..] | [0xff, 0xfe, ..]);
            // A byte order mark overrides the charset of the headers (WHATWG Encoding section 6),
            // and the parser finds no tags in UTF-16.
            if self.decoder.is_passthrough() || is_utf_16 {
                self.passthrough = true;
                self.html.finish();
            } else if matches!(page, [] | [0xfe | 0xff]) {
                self.start = start;
                return 0;
            }
        }
        if self.passthrough {
            self.staged.extend_from_slice(page);
            return 0;
        }
        let elements = self.html.elements();
        self.html.write(page);
        self.html.swap_output(&mut self.staged);
        (self.html.elements() - elements) * WORK_PER_ELEMENT
    }

    /// Encodes some of the staged output. Returns the work done.
    fn encode(&mut self, out: &mut Vec<u8>) -> Result<Option<usize>, BadPage> {
        // Created with the first byte: the end of a gzip stream is 20 bytes even without content,
        // and an empty response must stay empty.
        let encoder = self
            .encoder
            .get_or_insert_with(|| Encoder::like(&self.decoder));
        let staged = &self.staged[self.staged_from..];
        let chunk = &staged[..staged.len().min(MAX_ENCODED_BYTES_PER_STEP)];
        encoder.encode(chunk, out)?;
        let deflated = if encoder.is_identity() {
            0
        } else {
            WORK_PER_DEFLATED_BYTE
        };
        let work = chunk.len() * (WORK_PER_OUTPUT_BYTE + deflated);
        self.staged_from += chunk.len();
        if self.staged_from == self.staged.len() {
            self.staged.clear();
            // Release what a long tag or many links needed.
            self.staged.shrink_to(MAX_KEPT_ROOM_BYTES);
            self.staged_from = 0;
        }
        Ok(Some(work))
    }

    /// Ends the encoded stream.
    fn end(&mut self, out: &mut Vec<u8>) -> Result<Option<usize>, BadPage> {
        if self.encoder.is_none() && self.decoder.has_begun() {
            // A compressed empty page is a stream, too.
            self.encoder = Some(Encoder::like(&self.decoder));
        }
        if let Some(encoder) = self.encoder.take() {
            encoder.finish(out)?;
        }
        self.phase = Phase::Done;
        Ok(Some(WORK_PER_BYTE))
    }
}
