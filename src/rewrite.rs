//! The way back: what an answer says of where things are is made true for the client (CONFORMANCE
//! C74, C76 to C82).

mod budget;
mod coding;
mod html;
mod link;

use std::borrow::Cow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body, Frame};
use lol_html::AsciiCompatibleEncoding;
use percent_encoding::{AsciiSet, percent_encode};

use budget::Bound;
pub use budget::{Budget, Share};
use coding::{Coding, Decoded, Decoder, Encoder};
use html::{BLOCK_BYTES, Html};
pub use link::{InvalidUrl, LinkRewriter};

/// Nothing of ASCII is escaped.
const BEYOND_ASCII: &AsciiSet = &AsciiSet::EMPTY;

/// Work of one slice, in units of some nanoseconds: about two milliseconds on any page, so that no
/// page holds its worker, which has others to serve, for longer than five.
pub const MAX_WORK_PER_SLICE: usize = 128 * 1024;

/// Work of a byte that is decoded, of a byte in front of the decoder (a block of deflate that
/// decodes to nothing costs some 100 ns a byte), of a member of a gzip stream, whose decoder is
/// allocated anew, of an element, of a byte of output, and of one that is encoded.
const WORK_PER_BYTE: usize = 1;
const WORK_PER_ENCODED_BYTE: usize = 8;
const WORK_PER_MEMBER: usize = 1024;
const WORK_PER_ELEMENT: usize = 64;
const WORK_PER_OUTPUT_BYTE: usize = 1;
const WORK_PER_DEFLATED_BYTE: usize = 2;

/// Output that is encoded in one step.
const MAX_ENCODED_BYTES_PER_STEP: usize = 16 * 1024;

/// Makes `Location` lead through the bastion.
///
/// # Errors
/// [`InvalidUrl`] where it is no URL: nobody can tell where it leads.
pub fn rewrite_location(
    headers: &mut HeaderMap,
    links: impl FnOnce() -> LinkRewriter,
) -> Result<(), InvalidUrl> {
    let Some(location) = headers.get(header::LOCATION) else {
        return Ok(());
    };
    // Bytes beyond ASCII, text or not, are escaped as they are.
    let text: Cow<'_, str> = percent_encode(location.as_bytes(), BEYOND_ASCII).into();
    if let Some(rewritten) = links().rewrite(&text)? {
        let value = HeaderValue::try_from(rewritten).map_err(|_| InvalidUrl(text.into_owned()))?;
        headers.insert(header::LOCATION, value);
    }
    Ok(())
}

/// How to read a page.
#[derive(Clone, Copy, Debug)]
pub struct PageFormat {
    coding: Coding,
    encoding: AsciiCompatibleEncoding,
}

impl PageFormat {
    /// How to read the answer's page, where it is one whose links are to be rewritten: `text/html`
    /// to the letter, whole, in a coding and an encoding that are understood, and no redirect.
    pub fn detect<B>(method: &Method, response: &Response<B>) -> Option<Self> {
        let (headers, code) = (response.headers(), response.status());
        let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let (media_type, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        if media_type.trim() != "text/html" || headers.contains_key(header::LOCATION) {
            return None;
        }
        let bodiless = *method == Method::HEAD
            || matches!(
                code,
                StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED
            );
        if bodiless {
            return None;
        }
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = match (codings.next(), codings.next()) {
            (None, _) => Coding::Identity,
            (Some(one), None) => Coding::parse(one.to_str().ok()?)?,
            (Some(_), Some(_)) => return None,
        };
        let charset = parameters
            .split(';')
            .filter_map(|parameter| parameter.split_once('='))
            .find_map(|(name, value)| {
                name.trim()
                    .eq_ignore_ascii_case("charset")
                    .then(|| value.trim().trim_matches(['"', '\'']))
            });
        Some(Self {
            coding,
            encoding: html::encoding(charset)?,
        })
    }

    /// Memory that rewriting the page holds from its start.
    pub fn held_bytes(&self) -> usize {
        html::PARSER_BYTES + BLOCK_BYTES + self.coding.held_bytes()
    }
}

/// Whether a request may be answered by a page for a browser: then only codings that can be taken
/// off are asked for.
pub fn narrow_accept_encoding(method: &Method, headers: &mut HeaderMap) {
    let asks_for_page = *method == Method::GET
        && headers
            .get_all(header::ACCEPT)
            .iter()
            .any(|accept| accept.to_str().is_ok_and(|a| a.contains("text/html")));
    if !asks_for_page || !headers.contains_key(header::ACCEPT_ENCODING) {
        return;
    }
    let asked: Vec<_> = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let known: Vec<_> = asked
        .iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|entry| {
            let coding = entry.split(';').next().unwrap_or_default().trim();
            ["gzip", "x-gzip", "deflate", "identity"]
                .iter()
                .any(|known| known.eq_ignore_ascii_case(coding))
        })
        .collect();
    let narrowed = if known.is_empty() {
        "identity".to_owned()
    } else {
        known.join(", ")
    };
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::try_from(narrowed).expect("parts of header values"),
    );
}

/// Room for output that is kept from block to block.
const MAX_KEPT_ROOM_BYTES: usize = 4 * BLOCK_BYTES;

/// Turns a page's bytes into those with its links rewritten, in slices of work.
#[expect(
    missing_debug_implementations,
    reason = "codecs and rewriters have none"
)]
pub struct Rewriter {
    coding: Coding,
    decoder: Decoder,
    encoder: Option<Encoder>,
    html: Html,
    /// A block of the page, on its way from the decoder to the parser.
    block: Box<[u8; BLOCK_BYTES]>,
    /// The first bytes of the page, until they tell whether it is UTF-16.
    start: Option<Vec<u8>>,
    /// A byte order mark said UTF-16: the page passes as it is.
    foreign: bool,
    /// Rewritten bytes that are not encoded yet, from `staged_from` on.
    staged: Vec<u8>,
    staged_from: usize,
    phase: Phase,
    /// The last slice left nothing to do.
    idle: bool,
    work: usize,
}

/// The progress of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// More bytes may come.
    Open,
    /// All bytes are in.
    Ending,
    /// All bytes are rewritten.
    Rewritten,
    /// All bytes are out.
    Done,
}

/// A page that is not in the coding that its head claims.
#[derive(Debug, thiserror::Error)]
#[error("the page cannot be decompressed: {0}")]
pub struct BadPage(#[from] std::io::Error);

impl Rewriter {
    /// The most memory that a page holds between two slices. Output is in vectors, which may have
    /// twice the room.
    pub const MAX_HELD_BYTES: usize = html::MAX_HELD_BYTES
        + 2 * html::MAX_OUTPUT_BYTES_PER_BLOCK
        + BLOCK_BYTES
        + 2 * MAX_KEPT_ROOM_BYTES
        + coding::MAX_HELD_BYTES;

    /// The most bytes that a slice takes.
    pub const MAX_INPUT_BYTES_PER_SLICE: usize = MAX_WORK_PER_SLICE / WORK_PER_BYTE + BLOCK_BYTES;

    /// The most bytes that a slice gives. A block more than the work allows, and what the coding
    /// adds.
    pub const MAX_OUTPUT_BYTES_PER_SLICE: usize =
        2 * (MAX_WORK_PER_SLICE / WORK_PER_OUTPUT_BYTE + html::MAX_OUTPUT_BYTES_PER_BLOCK);

    pub fn new(reading: PageFormat, links: LinkRewriter) -> Self {
        Self {
            coding: reading.coding,
            decoder: Decoder::new(reading.coding),
            encoder: None,
            html: Html::new(links, reading.encoding),
            block: Box::new([0; BLOCK_BYTES]),
            start: Some(Vec::new()),
            foreign: false,
            staged: Vec::new(),
            staged_from: 0,
            phase: Phase::Open,
            idle: true,
            work: 0,
        }
    }

    /// Does a slice of work, on the front of `bytes`, which are the next of the page. Gives what is
    /// ready.
    ///
    /// # Errors
    /// [`BadPage`] where the bytes are none of the page's coding, or its end is missing.
    pub fn take(&mut self, bytes: &mut Bytes) -> Result<Vec<u8>, BadPage> {
        let mut out = Vec::new();
        let mut work = 0;
        self.idle = false;
        while work < MAX_WORK_PER_SLICE {
            let done = if self.staged_from < self.staged.len() {
                self.encode(&mut out)?
            } else if self.phase == Phase::Rewritten {
                self.end(&mut out)?
            } else {
                self.advance(bytes)?
            };
            let Some(done) = done else {
                // Nothing is left to do, so what the encoder holds back must not wait for more.
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

    /// Tells that no more bytes follow.
    pub fn finish(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Ending;
        }
    }

    /// Whether [`Self::take`] has something to do without further bytes.
    pub fn has_work(&self) -> bool {
        match self.phase {
            Phase::Open => !self.idle,
            Phase::Ending | Phase::Rewritten => true,
            Phase::Done => false,
        }
    }

    /// Whether all of the page is out.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Work that was done so far, in units of some nanoseconds.
    pub fn work(&self) -> usize {
        self.work
    }

    /// Lets the rest of the page pass unmodified.
    pub fn pass(&mut self, bound: Bound) {
        self.html.pass(bound);
        self.staged.append(&mut self.html.take_output());
    }

    /// The bound because of which the rest of the page passes unmodified.
    pub fn bound(&self) -> Option<Bound> {
        self.html.bound()
    }

    /// Memory that is held until the next slice, at least.
    pub fn held_bytes(&self) -> usize {
        BLOCK_BYTES + self.coding.held_bytes() + self.staged.capacity() + self.html.held_bytes()
    }

    /// Decodes and rewrites at most a block. Gives the work that it took; none where it needs more
    /// bytes.
    fn advance(&mut self, bytes: &mut Bytes) -> Result<Option<usize>, BadPage> {
        if self.phase == Phase::Done {
            return Ok(None);
        }
        let room = self.html.room() - self.start.as_ref().map_or(0, Vec::len);
        let before = bytes.len();
        let decoded = self.decoder.decode(bytes, &mut self.block[..room])?;
        let read = before - bytes.len();
        match decoded {
            Decoded::Some(length) => {
                let encoded = if self.decoder.is_identity() {
                    0
                } else {
                    read * WORK_PER_ENCODED_BYTE
                };
                Ok(Some(
                    encoded + length * WORK_PER_BYTE + self.rewrite(length),
                ))
            }
            Decoded::Member => Ok(Some(WORK_PER_MEMBER)),
            Decoded::Starved if self.phase == Phase::Open => Ok(None),
            Decoded::Starved => {
                self.decoder.finish()?;
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

    /// Rewrites the first `length` bytes of the block.
    fn rewrite(&mut self, length: usize) -> usize {
        let page = &self.block[..length];
        let start = self.start.take().map(|mut start| {
            start.extend_from_slice(page);
            start
        });
        let page = start.as_deref().unwrap_or(page);
        if start.is_some() {
            let is_utf_16 = matches!(page, [0xfe, 0xff, ..] | [0xff, 0xfe, ..]);
            if self.decoder.is_foreign() || is_utf_16 {
                self.foreign = true;
                self.html.finish();
            } else if matches!(page, [] | [0xfe | 0xff]) {
                self.start = start;
                return 0;
            }
        }
        if self.foreign {
            self.staged.extend_from_slice(page);
            return 0;
        }
        let elements = self.html.elements();
        self.html.write(page);
        self.html.swap_output(&mut self.staged);
        (self.html.elements() - elements) * WORK_PER_ELEMENT
    }

    /// Encodes a piece of what is staged.
    fn encode(&mut self, out: &mut Vec<u8>) -> Result<Option<usize>, BadPage> {
        // Made with the first byte: a response without one stays so, where an encoder would give it
        // a frame.
        let encoder = self
            .encoder
            .get_or_insert_with(|| Encoder::like(&self.decoder));
        let staged = &self.staged[self.staged_from..];
        let piece = &staged[..staged.len().min(MAX_ENCODED_BYTES_PER_STEP)];
        encoder.encode(piece, out)?;
        let deflated = if encoder.is_identity() {
            0
        } else {
            WORK_PER_DEFLATED_BYTE
        };
        let work = piece.len() * (WORK_PER_OUTPUT_BYTE + deflated);
        self.staged_from += piece.len();
        if self.staged_from == self.staged.len() {
            self.staged.clear();
            // What a long tag or many links once needed is not kept.
            self.staged.shrink_to(MAX_KEPT_ROOM_BYTES);
            self.staged_from = 0;
        }
        Ok(Some(work))
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<Option<usize>, BadPage> {
        if self.encoder.is_none() && self.decoder.has_begun() {
            // An empty page is not an empty stream.
            self.encoder = Some(Encoder::like(&self.decoder));
        }
        if let Some(encoder) = self.encoder.take() {
            encoder.finish(out)?;
        }
        self.phase = Phase::Done;
        Ok(Some(WORK_PER_BYTE))
    }
}

/// A page on its way to the client.
#[expect(missing_debug_implementations, reason = "as Rewriter")]
pub struct RewrittenBody<B> {
    incoming: B,
    rewriter: Rewriter,
    share: Share,
    /// What came and was not looked at yet.
    pending: Bytes,
    /// The memory of `pending`, which stays until the last byte of it is worked on.
    pending_bytes: usize,
    /// The rewriter's work when this turn of the worker began.
    turn: usize,
    passed: bool,
    trailers: Option<HeaderMap>,
}

/// Why a page broke off.
#[derive(Debug, thiserror::Error)]
pub enum PageError<E> {
    #[error(transparent)]
    Incoming(E),
    #[error(transparent)]
    Page(#[from] BadPage),
}

impl<B> RewrittenBody<B> {
    /// `share` is what the process's budget gave for [`PageFormat::held_bytes`].
    pub fn new(incoming: B, reading: PageFormat, links: LinkRewriter, share: Share) -> Self {
        let rewriter = Rewriter::new(reading, links);
        Self {
            incoming,
            rewriter,
            share,
            pending: Bytes::new(),
            pending_bytes: 0,
            turn: 0,
            passed: false,
            trailers: None,
        }
    }

    fn take(&mut self) -> Result<Vec<u8>, BadPage> {
        let out = self.rewriter.take(&mut self.pending)?;
        if self.pending.is_empty() {
            self.pending = Bytes::new();
            self.pending_bytes = 0;
        }
        if !self
            .share
            .resize(self.rewriter.held_bytes() + self.pending_bytes)
        {
            self.rewriter.pass(Bound::Memory);
            // The coding and what is pending are needed to the end.
            self.share
                .force(self.rewriter.held_bytes() + self.pending_bytes);
        }
        if let Some(bound) = self.rewriter.bound().filter(|_| !self.passed) {
            self.passed = true;
            self.share.count_passed(bound);
        }
        Ok(out)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for RewrittenBody<B> {
    type Data = Bytes;
    type Error = PageError<B::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            // hyper polls on after a frame, so a turn has as much work as one slice, however many
            // polls it has.
            if this.rewriter.work() - this.turn >= MAX_WORK_PER_SLICE {
                this.turn = this.rewriter.work();
                // Woken after the worker has looked at its sockets: a task that wakes itself keeps
                // the queue of the runtime full, and a full queue is left for the sockets only
                // every 61 tasks.
                let _ = pin!(tokio::task::yield_now()).poll(context);
                return Poll::Pending;
            }
            if this.pending.has_remaining() || this.rewriter.has_work() {
                let out = this.take()?;
                if out.is_empty() {
                    continue;
                }
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
            if this.rewriter.is_done() {
                return Poll::Ready(
                    this.trailers
                        .take()
                        .map(|trailers| Ok(Frame::trailers(trailers))),
                );
            }
            let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(context) else {
                this.turn = this.rewriter.work();
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.pending_bytes = data.len();
                        this.pending = data;
                    }
                    Err(frame) => this.trailers = frame.into_trailers().ok(),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(PageError::Incoming(error)))),
                None => this.rewriter.finish(),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rewriter.is_done() && self.trailers.is_none()
    }
}

#[cfg(test)]
mod tests;
