//! The links of an HTML page, as it streams by (CONFORMANCE C76 to C81).

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use encoding_rs::Encoding;
use lol_html::errors::RewritingError;
use lol_html::html_content::{Element, EndTag};
use lol_html::{
    AsciiCompatibleEncoding, HandlerResult, HtmlRewriter, MemorySettings, OutputSink, Settings,
    element,
};

use super::budget::Bound;
use super::link::LinkRewriter;

/// Bytes that the parser gets at a time. Blocks are aligned to the page, not to the pieces that it
/// comes in, so that the bounds below stop a page at the same byte wherever it is cut.
pub const BLOCK_BYTES: usize = 4 * 1024;

/// The longest tag. The parser holds a tag until its end, and a page may stall there. Ordinary
/// pages have long tags for inline images (`data:`), of which few are larger than 192 KiB before
/// base64.
const MAX_TAG_BYTES: usize = 256 * 1024;

/// The longest attribute whose links are rewritten; rewriting holds some copies of it for a moment.
/// Browsers and servers take no longer URL, and a `srcset` has less than a hundred.
const MAX_ATTRIBUTE_BYTES: usize = 64 * 1024;

/// Attributes of one tag. The parser holds 56 bytes for each, of which two may be in the page.
const MAX_ATTRIBUTES: usize = 1024;

/// The longest name of an element. The parser holds a copy for each open element; custom elements
/// rarely have names of more than 40 bytes.
const MAX_NAME_BYTES: usize = 128;

/// Elements that are open at a time, and contexts of SVG and `MathML`. Browsers nest no deeper than
/// 512, but close many elements that the parser keeps open to the end tag of their parent: a table
/// that leaves out `</td>` has all of its cells.
const MAX_DEPTH: usize = 4096;

/// Image candidates of one `srcset`. Pages have one for each width of an image: some ten.
const MAX_CANDIDATES: usize = 256;

/// Bytes that rewriting may add for each byte of the page, lately: a page of nothing but links (`<a
/// href="/x">x</a>`, 18 bytes) grows by the prefix of the target, some 70 bytes, for each.
const MAX_GROWTH_FACTOR: usize = 8;

/// Bytes that rewriting may add ahead of [`MAX_GROWTH_FACTOR`]. It bounds what a block makes of
/// output.
const MAX_GROWTH_BYTES: usize = 256 * 1024;

/// Memory of the parser without what the page makes it hold.
pub const PARSER_BYTES: usize = 12 * 1024;

/// Memory that the parser holds for one open element, of which it has room for a power of two: 104
/// bytes.
const ELEMENT_BYTES: usize = 112;

/// Memory that the parser holds for one distinct name of the open elements: an entry of a hash
/// table, 33 bytes, that is at least 7/16 full, and the name.
const DISTINCT_NAME_BYTES: usize = 80;

/// Names up to this length are held as a number (by letters and digits from 1 to 6).
const MAX_SHORT_NAME_BYTES: usize = 12;

/// Memory for one open element of SVG or `MathML` whose end is awaited.
const NAMESPACE_BYTES: usize = 128;

/// Memory that the parser holds for one attribute of the open tag, of which it has room for a power
/// of two.
const ATTRIBUTE_BYTES: usize = 56;

/// The parser's own limit. It must not be reached before the bounds above, because what counts
/// towards it depends on how the page is cut; it ends a tag of far too many attributes early, and
/// it must not have room for twice as many elements as are allowed.
const MAX_PARSER_BYTES: usize =
    MAX_DEPTH * ELEMENT_BYTES + MAX_ATTRIBUTES * ATTRIBUTE_BYTES + MAX_TAG_BYTES + 2 * BLOCK_BYTES;

/// Distinct names that are told apart. Each further one counts as distinct at every occurrence.
const MAX_TRACKED_NAMES: usize = 128;

/// Memory of one of them beside the name: an entry of a hash table, at least 7/16 full.
const TRACKED_NAME_BYTES: usize = 48;

/// The most that [`Html::held_bytes`] can be.
pub const MAX_HELD_BYTES: usize = PARSER_BYTES
    + 2 * MAX_PARSER_BYTES
    + MAX_DEPTH * (DISTINCT_NAME_BYTES + 2 * (MAX_NAME_BYTES + 16) + NAMESPACE_BYTES)
    + MAX_TRACKED_NAMES * (TRACKED_NAME_BYTES + MAX_NAME_BYTES + 16);

/// The most that one block can make of output: itself, what rewriting adds, and a tag that was
/// held.
pub const MAX_OUTPUT_BYTES_PER_BLOCK: usize = MAX_TAG_BYTES
    + 2 * BLOCK_BYTES
    + MAX_GROWTH_BYTES
    + MAX_GROWTH_FACTOR * BLOCK_BYTES
    + MAX_ATTRIBUTES * 4;

/// Elements with the attributes of theirs that hold a link (C77).
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["formaction", "src", "usemap"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// The same with lists of image candidates (C78, ours).
const SOURCE_SETS: &[(&str, &str)] = &[
    ("img", "srcset"),
    ("source", "srcset"),
    ("link", "imagesrcset"),
];

/// The attributes of SVG elements that hold a link (C78, ours).
const SVG_LINKS: [&str; 2] = ["href", "xlink:href"];
const SVG: &str = "http://www.w3.org/2000/svg";

/// Elements that change the namespace, or may do so inside SVG and `MathML`, without their case.
/// The parser remembers each until its end.
const NAMESPACED: [&str; 11] = [
    "annotation-xml",
    "desc",
    "foreignobject",
    "math",
    "mi",
    "mn",
    "mo",
    "ms",
    "mtext",
    "svg",
    "title",
];

/// Rewrites one page. What goes in comes out as soon as no tag is open, byte for byte but for the
/// tags whose links change.
pub struct Html {
    /// None once a bound was reached: what follows passes as it is.
    rewriter: Option<HtmlRewriter<'static, Out>>,
    out: Out,
    elements: Rc<Elements>,
    bound: Option<Bound>,
    /// Bytes of the current block that are in.
    filled: usize,
    /// Whether the current block had any output yet.
    showed: bool,
    /// Whole blocks in a row without output: all of them are in one tag.
    silent_blocks: usize,
    /// At least the bytes of the tag that is open.
    open_bytes: usize,
    /// At least the attributes of the tag that is open.
    open_attributes: usize,
    /// The parser's buffer, which does not shrink.
    buffer_bytes: usize,
}

#[derive(Clone, Default)]
struct Out(Rc<RefCell<Vec<u8>>>);

impl OutputSink for Out {
    fn handle_chunk(&mut self, chunk: &[u8]) {
        self.0.borrow_mut().extend_from_slice(chunk);
    }
}

impl Html {
    /// `encoding` is that of the page until it says otherwise in a `<meta charset>`.
    pub fn new(links: LinkRewriter, encoding: AsciiCompatibleEncoding) -> Self {
        let out = Out::default();
        let elements = Rc::<Elements>::default();
        let rules = Rules {
            links,
            elements: Rc::clone(&elements),
        };
        let settings = Settings::new()
            .append_element_content_handler(element!("*", move |element| rules.apply(element)))
            .with_encoding(encoding)
            .with_adjust_charset_on_meta_tag(true)
            // A page that browsers argue about is still a page.
            .with_strict(false)
            // Past a bound the tag that reached it passes as it is, and all that follows.
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
            showed: false,
            silent_blocks: 0,
            open_bytes: 0,
            open_attributes: 0,
            buffer_bytes: 0,
        }
    }

    /// The number of bytes that [`Self::write`] may be given.
    pub fn room(&self) -> usize {
        BLOCK_BYTES - self.filled
    }

    /// Takes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        self.filled = (self.filled + bytes.len()) % BLOCK_BYTES;
        let Some(rewriter) = &mut self.rewriter else {
            self.out.0.borrow_mut().extend_from_slice(bytes);
            return;
        };
        let attributes = bytes.iter().filter(|byte| ends_attribute(**byte)).count();
        let before = self.out.0.borrow().len();
        if let Err(error) = rewriter.write(bytes) {
            // It has let all that it held pass.
            self.rewriter = None;
            self.stop(bound(&error, self.open_attributes + attributes));
            return;
        }
        let shows = self.out.0.borrow().len() > before;
        self.measure(bytes.len(), attributes, shows);
    }

    /// Bounds the tag that is open, as well as it can be told from outside of the parser: it shows
    /// everything but an open tag at the end of each write.
    fn measure(&mut self, bytes: usize, attributes: usize, shows: bool) {
        if shows {
            (self.open_bytes, self.open_attributes) = (0, 0);
        }
        self.open_bytes += bytes;
        self.open_attributes += attributes;
        self.buffer_bytes = self.buffer_bytes.max(self.open_bytes);
        self.showed |= shows;
        if self.filled == 0 {
            self.silent_blocks = if std::mem::take(&mut self.showed) {
                0
            } else {
                self.silent_blocks + 1
            };
            if self.silent_blocks * BLOCK_BYTES >= MAX_TAG_BYTES {
                self.pass(Bound::Tag);
            }
        }
    }

    /// Lets all that is held and all that follows pass as it is.
    pub fn pass(&mut self, bound: Bound) {
        if self.rewriter.is_some() {
            self.end();
            self.stop(bound);
        }
    }

    /// Shows what was held back.
    pub fn finish(&mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(Err(error)) = self.rewriter.take().map(HtmlRewriter::end) {
            tracing::debug!(%error, "the end of a page passes as it is");
        }
    }

    fn stop(&mut self, bound: Bound) {
        tracing::debug!(reason = %bound, "the rest of a page passes unmodified");
        self.bound = Some(bound);
    }

    /// The bound that stopped the rewriting.
    pub fn bound(&self) -> Option<Bound> {
        self.bound
    }

    /// Takes what is ready.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.out.0.take()
    }

    /// Puts what is ready in `out`, which is empty and whose room is used for what comes.
    pub fn swap_output(&mut self, out: &mut Vec<u8>) {
        std::mem::swap(&mut *self.out.0.borrow_mut(), out);
    }

    /// Elements that were seen.
    pub fn elements(&self) -> usize {
        self.elements.seen.get()
    }

    /// Memory that is held, at least. What an element makes the parser hold counts until the end of
    /// the page, because the parser does not tell when an element ends.
    pub fn held_bytes(&self) -> usize {
        let out = self.out.0.borrow().capacity();
        if self.rewriter.is_none() {
            return out;
        }
        let capacity = |count: usize| count.max(8).next_power_of_two();
        let open_attributes =
            (capacity(self.open_attributes) * ATTRIBUTE_BYTES).min(MAX_PARSER_BYTES);
        out + PARSER_BYTES + self.buffer_bytes + open_attributes + self.elements.held_bytes()
    }
}

/// Whether the byte may stand between two attributes of a tag.
fn ends_attribute(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | b'/' | b'"' | b'\'')
}

/// The bound that an error of the parser tells of.
fn bound(error: &RewritingError, attributes: usize) -> Bound {
    match error {
        // The rules fail for bounds alone: the names of attributes that they set are good.
        RewritingError::ContentHandlerError(error) => {
            error.downcast_ref().copied().unwrap_or(Bound::Tag)
        }
        // Attributes or open elements are too many for the parser's own limit.
        _ if attributes > MAX_ATTRIBUTES => Bound::Attributes,
        _ => Bound::Depth,
    }
}

/// The encoding that a charset names, UTF-8 where none is named. None for one that is no superset
/// of ASCII (UTF-16), in which nothing can be found, and for an unknown one.
pub fn encoding(charset: Option<&str>) -> Option<AsciiCompatibleEncoding> {
    match charset {
        None => Some(AsciiCompatibleEncoding::utf_8()),
        Some(label) => AsciiCompatibleEncoding::new(Encoding::for_label(label.as_bytes())?),
    }
}

/// Counts of what a page has made the parser hold, and may still add.
struct Elements {
    seen: Cell<usize>,
    /// Elements whose end is awaited.
    opened: Cell<usize>,
    /// Those of a name that the parser copies, and the longest of these names.
    long_names: Cell<usize>,
    longest_name: Cell<usize>,
    /// Names that were seen, as many as are told apart.
    names: RefCell<HashSet<Box<str>>>,
    distinct_names: Cell<usize>,
    /// At least the namespaces that the parser remembers.
    namespaces: Cell<usize>,
    most_namespaces: Cell<usize>,
    /// Bytes that rewriting may add here, and where that was reckoned.
    growth: Cell<usize>,
    position: Cell<usize>,
}

impl Default for Elements {
    fn default() -> Self {
        Self {
            seen: Cell::default(),
            opened: Cell::default(),
            long_names: Cell::default(),
            longest_name: Cell::default(),
            names: RefCell::default(),
            distinct_names: Cell::default(),
            namespaces: Cell::default(),
            most_namespaces: Cell::default(),
            growth: Cell::new(MAX_GROWTH_BYTES),
            position: Cell::default(),
        }
    }
}

impl Elements {
    fn see(&self, name: &str, has_content: bool) {
        add(&self.seen, 1);
        if !has_content {
            return;
        }
        add(&self.opened, 1);
        if name.len() > MAX_SHORT_NAME_BYTES
            || !name
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'1'..=b'6'))
        {
            add(&self.long_names, 1);
            self.longest_name
                .set(self.longest_name.get().max(name.len()));
        }
        let mut names = self.names.borrow_mut();
        if !names.contains(name) {
            add(&self.distinct_names, 1);
            if names.len() < MAX_TRACKED_NAMES {
                names.insert(name.into());
            }
        }
    }

    /// Reckons what rewriting may add at `position` of the page.
    fn allow_growth(&self, position: usize) {
        let passed = position.saturating_sub(self.position.replace(position));
        let growth = self
            .growth
            .get()
            .saturating_add(passed.saturating_mul(MAX_GROWTH_FACTOR));
        self.growth.set(growth.min(MAX_GROWTH_BYTES));
    }

    fn grow(&self, bytes: usize) -> Result<(), Bound> {
        self.growth
            .set(self.growth.get().checked_sub(bytes).ok_or(Bound::Growth)?);
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        let open = |count: &Cell<usize>| count.get().min(MAX_DEPTH);
        // A copy for each element, and one for its distinct name; both with the allocator's
        // rounding.
        let name_bytes = 2 * (self.longest_name.get().max(MAX_SHORT_NAME_BYTES) + 16);
        open(&self.opened).max(8).next_power_of_two() * ELEMENT_BYTES
            + open(&self.long_names) * name_bytes
            + open(&self.distinct_names) * DISTINCT_NAME_BYTES
            + self.distinct_names.get().min(MAX_TRACKED_NAMES)
                * (TRACKED_NAME_BYTES + name_bytes / 2)
            + self.most_namespaces.get() * NAMESPACE_BYTES
    }
}

fn add(count: &Cell<usize>, more: usize) {
    count.set(count.get() + more);
}

/// Rewrites the links of elements, and bounds the elements.
struct Rules {
    links: LinkRewriter,
    elements: Rc<Elements>,
}

impl Rules {
    fn apply(&self, element: &mut Element<'_, '_>) -> HandlerResult {
        let name = element.tag_name();
        self.bound(&name, element)?;
        if let Ok(found) = LINKS.binary_search_by_key(&&*name, |(element, _)| element) {
            for attribute in LINKS[found].1 {
                self.rewrite_link(element, attribute)?;
            }
        }
        for (_, attribute) in SOURCE_SETS.iter().filter(|(element, _)| *element == name) {
            self.rewrite(element, attribute, |value| {
                rewrite_source_set(&self.links, value)
            })?;
        }
        if name == "meta"
            && element
                .get_attribute("http-equiv")
                .is_some_and(|what| what.eq_ignore_ascii_case("refresh"))
        {
            self.rewrite(element, "content", |value| {
                Ok(rewrite_refresh(&self.links, value))
            })?;
        }
        if element.namespace_uri() == SVG {
            for attribute in SVG_LINKS {
                self.rewrite_link(element, attribute)?;
            }
        }
        Ok(())
    }

    fn bound(&self, name: &str, element: &mut Element<'_, '_>) -> HandlerResult {
        let at = element.source_location().bytes();
        if name.len() > MAX_NAME_BYTES {
            return Err(Bound::Name.into());
        }
        if at.len() > MAX_TAG_BYTES {
            return Err(Bound::Tag.into());
        }
        // An attribute takes two bytes at least, so the list of them is made for the longest tags
        // only.
        if at.len() > 2 * MAX_ATTRIBUTES && element.attributes().len() > MAX_ATTRIBUTES {
            return Err(Bound::Attributes.into());
        }
        self.elements.see(name, element.can_have_content());
        self.elements.allow_growth(at.start);
        match NAMESPACED.binary_search(&name) {
            Ok(found) => self.enter_namespace(NAMESPACED[found], element),
            Err(_) => Ok(()),
        }
    }

    /// The parser keeps a namespace for each of these elements (a byte each, without a limit of its
    /// own) and drops it at the end tag, unless further ones opened in between. Others it drops
    /// too, so the count here is never too low.
    fn enter_namespace(&self, name: &'static str, element: &mut Element<'_, '_>) -> HandlerResult {
        let Elements {
            namespaces,
            most_namespaces,
            ..
        } = &*self.elements;
        let depth = namespaces.get() + 1;
        if depth > MAX_DEPTH {
            return Err(Bound::Depth.into());
        }
        namespaces.set(depth);
        most_namespaces.set(most_namespaces.get().max(depth));
        if !element.can_have_content() {
            return Ok(());
        }
        let elements = Rc::clone(&self.elements);
        let leave: EndTagHandler = Box::new(move |end| {
            if elements.namespaces.get() == depth && end.name() == name {
                elements.namespaces.set(depth - 1);
            }
            Ok(())
        });
        element.on_end_tag(leave)
    }

    fn rewrite_link(&self, element: &mut Element<'_, '_>, attribute: &str) -> HandlerResult {
        self.rewrite(element, attribute, |value| {
            Ok(self.links.rewrite(value.trim_ascii()).ok().flatten())
        })
    }

    /// Sets the attribute to what `rewrite` makes of its value, its character references resolved.
    fn rewrite(
        &self,
        element: &mut Element<'_, '_>,
        attribute: &str,
        rewrite: impl Fn(&str) -> Result<Option<String>, Bound>,
    ) -> HandlerResult {
        let Some(raw) = element.get_attribute(attribute) else {
            return Ok(());
        };
        if raw.len() > MAX_ATTRIBUTE_BYTES {
            // An inline image is no link.
            return if is_inline(attribute, &raw) {
                Ok(())
            } else {
                Err(Bound::Attribute.into())
            };
        }
        if let Some(rewritten) = rewrite(&html_escape::decode_html_entities(&raw))? {
            let value = html_escape::encode_double_quoted_attribute(&rewritten);
            self.elements.grow(value.len().saturating_sub(raw.len()))?;
            element.set_attribute(attribute, &value)?;
        }
        Ok(())
    }
}

type EndTagHandler = Box<dyn FnOnce(&mut EndTag<'_>) -> HandlerResult>;

/// Whether the attribute holds its content itself. A list of images may hold links behind it.
fn is_inline(attribute: &str, raw: &str) -> bool {
    let is_list = SOURCE_SETS.iter().any(|(_, list)| *list == attribute);
    let scheme = raw.trim_ascii_start().as_bytes().get(..5);
    !is_list && scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:"))
}

/// Image candidates: `url descriptor, url descriptor` (WHATWG HTML section 4.8.4.2.1). A URL may
/// hold commas, but not at its end.
fn rewrite_source_set(links: &LinkRewriter, value: &str) -> Result<Option<String>, Bound> {
    let mut out = String::new();
    let mut candidates = 0;
    let mut changed = false;
    let mut rest = value;
    loop {
        let start = rest
            .find(|c: char| !(c.is_ascii_whitespace() || c == ','))
            .unwrap_or(rest.len());
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        if rest.is_empty() {
            return Ok(changed.then_some(out));
        }
        candidates += 1;
        if candidates > MAX_CANDIDATES {
            return Err(Bound::Candidates);
        }
        let end = rest
            .find(|c: char| c.is_ascii_whitespace())
            .unwrap_or(rest.len());
        let url = rest[..end].trim_end_matches(',');
        match links.rewrite(url).ok().flatten() {
            Some(rewritten) => {
                changed = true;
                out.push_str(&rewritten);
            }
            None => out.push_str(url),
        }
        // Commas right behind a URL end its candidate; else a descriptor goes on to the next comma
        // outside parentheses.
        let mut candidate = end;
        if url.len() == end {
            let mut depth = 0_u32;
            let comma = rest[end..].find(|c: char| {
                match c {
                    '(' => depth += 1,
                    ')' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                c == ',' && depth == 0
            });
            candidate = comma.map_or(rest.len(), |comma| end + comma);
        }
        out.push_str(&rest[url.len()..candidate]);
        rest = &rest[candidate..];
    }
}

/// `<meta http-equiv=refresh content="5; url=/x">` (WHATWG HTML section 4.2.5.3).
fn rewrite_refresh(links: &LinkRewriter, value: &str) -> Option<String> {
    let after_time = value.find([';', ','])? + 1;
    let rest = &value[after_time..];
    let skipped = rest.len() - rest.trim_ascii_start().len();
    let mut start = after_time + skipped;
    if value
        .get(start..start + 3)
        .is_some_and(|word| word.eq_ignore_ascii_case("url"))
    {
        let after = value[start + 3..].trim_ascii_start();
        if let Some(after) = after.strip_prefix('=') {
            start = value.len() - after.trim_ascii_start().len();
        }
    }
    let quote = value[start..]
        .chars()
        .next()
        .filter(|c| matches!(c, '"' | '\''));
    let start = start + quote.map_or(0, char::len_utf8);
    let end = quote
        .and_then(|quote| value[start..].find(quote))
        .map_or(value.len(), |end| start + end);
    let url = value[start..end].trim_ascii_end();
    let rewritten = links.rewrite(url).ok().flatten()?;
    Some([&value[..start], &rewritten, &value[start + url.len()..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Scheme;

    fn links() -> LinkRewriter {
        LinkRewriter {
            prefix: "/p".into(),
            client_host: Some("bastion.example".into()),
            endpoint: "10.0.0.1:80".parse().unwrap(),
            scheme: Scheme::Http,
            service: None,
            cluster_domain: "cluster.local".into(),
        }
    }

    fn rewritten(page: &str, chunk: usize) -> String {
        let mut html = Html::new(links(), AsciiCompatibleEncoding::utf_8());
        for mut piece in page.as_bytes().chunks(chunk) {
            while !piece.is_empty() {
                let (block, rest) = piece.split_at(piece.len().min(html.room()));
                html.write(block);
                piece = rest;
            }
        }
        html.finish();
        String::from_utf8(html.take_output()).unwrap()
    }

    #[test]
    fn the_table_is_sorted_for_its_search() {
        assert!(LINKS.is_sorted_by_key(|(element, _)| element));
    }

    #[test]
    fn every_attribute_that_holds_a_link_is_rewritten() {
        for (element, attributes) in LINKS {
            for attribute in *attributes {
                // Frames of a frameset stand outside a body; all the others may stand anywhere for
                // a tokenizer.
                let page = format!("<{element} {attribute}='/x'>");
                let expected = format!("<{element} {attribute}=\"/p/x\">");
                assert_eq!(rewritten(&page, page.len()), expected);
            }
        }
    }

    #[test]
    fn pages_are_rewritten_wherever_they_are_cut() {
        for (page, expected) in [
            (r#"<a href="/x">/x</a>"#, r#"<a href="/p/x">/x</a>"#),
            (
                "<A HREF=http://10.0.0.1/x?a=1&amp;b=2>",
                r#"<A HREF="/p/x?a=1&amp;b=2">"#,
            ),
            (r#"<a href="&#x2F;x&#47;y">"#, r#"<a href="/p/x/y">"#),
            (r#"<a href=" /x ">"#, r#"<a href="/p/x">"#),
            (
                r#"<img srcset="/a 1x,/b,c.png 2x, /d,e 3x">"#,
                r#"<img srcset="/p/a 1x,/p/b,c.png 2x, /p/d,e 3x">"#,
            ),
            (
                r#"<img srcset="/a, /b 2x">"#,
                r#"<img srcset="/p/a, /p/b 2x">"#,
            ),
            (
                r#"<meta http-equiv=Refresh content="5; URL='/x'">"#,
                r#"<meta http-equiv=Refresh content="5; URL='/p/x'">"#,
            ),
            (
                r#"<meta http-equiv=refresh content="0;/x">"#,
                r#"<meta http-equiv=refresh content="0;/p/x">"#,
            ),
            (
                r#"<svg><use xlink:href="/s.svg#i"/><image href="/i"/></svg><use href="/x">"#,
                r#"<svg><use xlink:href="/p/s.svg#i" /><image href="/p/i" /></svg><use href="/x">"#,
            ),
            (r#"<a href="/ü?q=é">é</a>"#, r#"<a href="/p/ü?q=é">é</a>"#),
        ] {
            for chunk in 1..=page.len() {
                assert_eq!(rewritten(page, chunk), expected, "in chunks of {chunk}");
            }
        }
    }

    #[test]
    fn what_need_not_change_stays_to_the_byte() {
        for page in [
            "<A  Href = 'x' ><!-- <a href=/x> --><script>'<a href=/x>'</script><p title=\"/x\">&amp;<br/></P>",
            "<a href=\"http://[bad\"><a href=mailto:x><a href='//other/x'><a href>",
            "<style>a{background:url(/x)}</style><iframe srcdoc='<a href=/x>'></iframe><meta content='0;url=/x'>",
            "no html at all < > & \u{0} \r\n",
            "<textarea><a href=/x></textarea><title><a href=/x></title><a",
        ] {
            assert_eq!(rewritten(page, 3), page);
        }
    }

    #[test]
    fn the_table_of_namespaces_is_sorted_for_its_search() {
        assert!(NAMESPACED.is_sorted());
    }

    #[test]
    fn pages_at_the_bounds_are_rewritten() {
        let cells = "<td>".repeat(MAX_DEPTH - 8);
        let attributes = "a ".repeat(MAX_ATTRIBUTES - 3);
        let image = "x".repeat(MAX_TAG_BYTES - 16 * 1024);
        let candidates = "b 1x,".repeat(MAX_CANDIDATES - 1);
        let name = "x".repeat(MAX_NAME_BYTES);
        let page = |link: &str| {
            format!(
                "{cells}<img {attributes} alt=\"{image}\" src={link}><img srcset={link} ><{name}><img src=' data:{image}'>\
                 <img srcset=\"{link} 1x,{candidates}\"><a href={link}>"
            )
        };
        // A tag that changes is written anew, with one space between attributes and quotes around
        // the value.
        let expected = page("\"/p/x\"")
            .replace("srcset=\"/p/x\" >", "srcset=\"/p/x\">")
            .replace("\"\"", "\"");
        for chunk in [usize::MAX, 10_000, 777] {
            let rewritten = rewritten(&page("/x"), chunk);
            assert!(
                rewritten.ends_with("<a href=\"/p/x\">"),
                "in chunks of {chunk}: the end is not rewritten"
            );
            assert_eq!(rewritten.matches("/p/x").count(), 4, "in chunks of {chunk}");
            assert_eq!(rewritten.len(), expected.len() - 2, "in chunks of {chunk}");
        }
    }

    #[test]
    fn svg_elements_that_end_do_not_count() {
        let page =
            "<svg><title>x</title><use href=/a></use></svg>".repeat(MAX_DEPTH) + "<a href=/x>";
        assert!(rewritten(&page, 50_000).ends_with("<a href=\"/p/x\">"));
    }

    #[test]
    fn encodings_without_ascii_are_left_alone() {
        for (charset, known) in [
            (None, true),
            (Some("utf-8"), true),
            (Some("windows-1252"), true),
            (Some("UTF-16LE"), false),
            (Some("x"), false),
        ] {
            assert_eq!(encoding(charset).is_some(), known, "{charset:?}");
        }
    }
}
