//! Rewrites the links of an HTML page while it streams (CONFORMANCE C76 to C81), within bounds of
//! memory.
//!
//! The parser, `lol_html`, does not report its memory. It is estimated from the outside: by the
//! elements and tags that it parses, and by the bytes that it holds back.

mod attributes;
mod bounds;
mod elements;
mod references;
mod rules;
mod table;

use std::cell::RefCell;
use std::rc::Rc;

use encoding_rs::{Encoding, WINDOWS_1252};
use lol_html::errors::RewritingError;
use lol_html::{
    AsciiCompatibleEncoding, HtmlRewriter, MemorySettings, OutputSink, Settings, element,
};

use super::budget::PageLimit;
use super::link::LinkRewriter;
pub use attributes::rewrite_refresh;
use bounds::{ATTRIBUTE_BYTES, MAX_ATTRIBUTES, MAX_PARSER_BYTES, MAX_TAG_BYTES};
pub use bounds::{BLOCK_BYTES, MAX_HELD_BYTES, MAX_OUTPUT_BYTES_PER_BLOCK, PARSER_BYTES};
use elements::Elements;
use rules::Rules;

/// Rewriter of the links of one page. Its output lags behind its input by at most the open tag, and
/// is identical to it except for tags whose links change.
pub struct Html {
    /// `None` once a bound was reached: the rest passes unmodified.
    rewriter: Option<HtmlRewriter<'static, Out>>,
    out: Out,
    elements: Rc<Elements>,
    bound: Option<PageLimit>,
    /// Length of the current block so far, in bytes.
    filled: usize,
    /// The current block had output.
    had_output: bool,
    /// Number of consecutive blocks without output, which are all within one tag.
    silent_blocks: usize,
    /// Upper bound of the length of the open tag, in bytes.
    open_bytes: usize,
    /// Upper bound of the number of attributes of the open tag.
    open_attributes: usize,
    /// Size of the parser's buffer in bytes. It never shrinks.
    buffer_bytes: usize,
}

/// Output of the parser, shared with its sink.
#[derive(Clone, Default)]
struct Out(Rc<RefCell<Vec<u8>>>);

impl OutputSink for Out {
    fn handle_chunk(&mut self, chunk: &[u8]) {
        self.0.borrow_mut().extend_from_slice(chunk);
    }
}

impl Html {
    /// Returns a rewriter for a page in an encoding that is [supported](supports).
    pub fn new(links: LinkRewriter) -> Self {
        let out = Out::default();
        let elements = Rc::<Elements>::default();
        let rules = Rules {
            links,
            elements: Rc::clone(&elements),
        };
        let settings = Settings::new()
            .append_element_content_handler(element!("*", move |element| rules.apply(element)))
            // In this encoding, each byte is a character, so that all bytes of changed tags stay,
            // whatever the encoding of the page is, or claims to be. URLs and markup are ASCII.
            .with_encoding(AsciiCompatibleEncoding::new(WINDOWS_1252).expect("a superset of ASCII"))
            // Ambiguous markup, which strict mode rejects, is common.
            .with_strict(false)
            // Past a bound, the tag that reached it and the rest of the page pass unmodified.
            .with_graceful_bail_out_on_content_handler_error(true)
            .with_memory_settings(
                MemorySettings::new()
                    .with_max_allowed_memory_usage(MAX_PARSER_BYTES)
                    .with_graceful_bail_out_on_memory_limit_exceeded(true),
            );
        Self {
            rewriter: Some(HtmlRewriter::new(settings, out.clone())),
            out,
            elements,
            bound: None,
            filled: 0,
            had_output: false,
            silent_blocks: 0,
            open_bytes: 0,
            open_attributes: 0,
            buffer_bytes: 0,
        }
    }

    /// Maximum length of the next [`Self::write`], in bytes.
    pub fn room(&self) -> usize {
        BLOCK_BYTES - self.filled
    }

    /// Rewrites the next bytes, which must not exceed [`Self::room`].
    pub fn write(&mut self, bytes: &[u8]) {
        self.filled = (self.filled + bytes.len()) % BLOCK_BYTES;
        let Some(rewriter) = &mut self.rewriter else {
            self.out.0.borrow_mut().extend_from_slice(bytes);
            return;
        };
        // An upper bound, because the bytes may be text, too.
        let attributes = bytes.iter().filter(|byte| ends_attribute(**byte)).count();
        let before = self.out.0.borrow().len();
        if let Err(error) = rewriter.write(bytes) {
            // The parser has written all bytes that it held back to the output.
            self.rewriter = None;
            self.stop(bound(&error, self.open_attributes + attributes));
            return;
        }
        let has_output = self.out.0.borrow().len() > before;
        self.measure_tag(bytes.len(), attributes, has_output);
    }

    /// Bounds the open tag. After each write, the parser has output all but an open tag: a write
    /// with output ends the previous tag, and writes without output are all within one tag.
    fn measure_tag(&mut self, bytes: usize, attributes: usize, has_output: bool) {
        if has_output {
            (self.open_bytes, self.open_attributes) = (0, 0);
        }
        self.open_bytes += bytes;
        self.open_attributes += attributes;
        self.buffer_bytes = self.buffer_bytes.max(self.open_bytes);
        self.had_output |= has_output;
        if self.filled == 0 {
            self.silent_blocks = if std::mem::take(&mut self.had_output) {
                0
            } else {
                self.silent_blocks + 1
            };
            // Whole blocks rather than `open_bytes`, which depends on how the page is split.
            if self.silent_blocks * BLOCK_BYTES >= MAX_TAG_BYTES {
                self.pass(PageLimit::Tag);
            }
        }
    }

    /// Stops rewriting because of `bound`. Bytes that are held back and the rest pass unmodified.
    pub fn pass(&mut self, bound: PageLimit) {
        if self.rewriter.is_some() {
            self.end();
            self.stop(bound);
        }
    }

    /// Writes the bytes that are held back to the output.
    pub fn finish(&mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(Err(error)) = self.rewriter.take().map(HtmlRewriter::end) {
            tracing::debug!(%error, "passing the end of a page unmodified");
        }
    }

    fn stop(&mut self, bound: PageLimit) {
        tracing::debug!(reason = %bound, "passing the rest of a page unmodified");
        self.bound = Some(bound);
    }

    /// Bound at which rewriting stopped, if any.
    pub fn bound(&self) -> Option<PageLimit> {
        self.bound
    }

    /// Takes the output.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.out.0.take()
    }

    /// Swaps the output with `out`, which must be empty and whose capacity is reused.
    pub fn swap_output(&mut self, out: &mut Vec<u8>) {
        std::mem::swap(&mut *self.out.0.borrow_mut(), out);
    }

    /// Number of elements parsed so far.
    pub fn elements(&self) -> usize {
        self.elements.seen()
    }

    /// Upper bound of the memory held, in bytes. Memory of an element counts until the end of the
    /// page, because the parser does not report the end of implicitly closed elements.
    pub fn held_bytes(&self) -> usize {
        let out = self.out.0.borrow().capacity();
        if self.rewriter.is_none() {
            return out;
        }
        // Vectors of the parser start with 8 entries and double.
        let capacity = |count: usize| count.max(8).next_power_of_two();
        let open_attributes =
            (capacity(self.open_attributes) * ATTRIBUTE_BYTES).min(MAX_PARSER_BYTES);
        out + PARSER_BYTES + self.buffer_bytes + open_attributes + self.elements.held_bytes()
    }
}

/// Returns true if `byte` may separate two attributes of a tag.
fn ends_attribute(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | b'/' | b'"' | b'\'')
}

/// Returns the bound that caused an error of the parser.
fn bound(error: &RewritingError, attributes: usize) -> PageLimit {
    match error {
        // Rules fail only at bounds: the attribute names that they set are valid.
        RewritingError::ContentHandlerError(error) => {
            error.downcast_ref().copied().unwrap_or(PageLimit::Tag)
        }
        // Otherwise the memory limit of the parser, by attributes or by open elements.
        _ if attributes > MAX_ATTRIBUTES => PageLimit::Attributes,
        _ => PageLimit::Depth,
    }
}

/// Returns true for the charset labels of encodings in which markup is ASCII, and for none.
/// Browsers ignore an unknown label. In UTF-16 and ISO-2022-JP, bytes of text may look like markup.
pub fn supports(charset: Option<&[u8]>) -> bool {
    charset
        .and_then(Encoding::for_label)
        .is_none_or(|encoding| AsciiCompatibleEncoding::new(encoding).is_some())
}

#[cfg(test)]
mod tests;
