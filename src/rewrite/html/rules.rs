//! Rewriting of the links of one element.

use std::rc::Rc;

use lol_html::HandlerResult;
use lol_html::html_content::{Element, EndTag};

use super::super::budget::PageLimit;
use super::super::link::LinkRewriter;
use super::bounds::{MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, MAX_NAME_BYTES, MAX_TAG_BYTES};
use super::elements::Elements;
use super::references::Decoded;
use super::table::{Content, attributes_of};

/// Lower-case names of the elements that change the namespace, or may do so within SVG and
/// `MathML`, sorted. The parser keeps each on a stack.
pub const NAMESPACED: [&str; 11] = [
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

/// Handler of the elements of a page: rewrites their links and bounds them.
pub struct Rules {
    pub links: LinkRewriter,
    pub elements: Rc<Elements>,
}

impl Rules {
    /// Rewrites the links of one element.
    ///
    /// # Errors
    /// A [`PageLimit`] that the element exceeds.
    pub fn apply(&self, element: &mut Element<'_, '_>) -> HandlerResult {
        let name = element.tag_name();
        self.check_bounds(&name, element)?;
        for (attribute, content) in attributes_of(&name, element.namespace_uri()) {
            if *content != Content::Refresh || is_refresh(element) {
                self.rewrite(element, attribute, *content)?;
            }
        }
        Ok(())
    }

    /// Counts the element and checks it against the bounds.
    fn check_bounds(&self, name: &str, element: &mut Element<'_, '_>) -> HandlerResult {
        let at = element.source_location().bytes();
        if name.len() > MAX_NAME_BYTES {
            return Err(PageLimit::Name.into());
        }
        if at.len() > MAX_TAG_BYTES {
            return Err(PageLimit::Tag.into());
        }
        // Listing the attributes allocates. An attribute is two bytes or more, so short tags need
        // no check.
        if at.len() > 2 * MAX_ATTRIBUTES && element.attributes().len() > MAX_ATTRIBUTES {
            return Err(PageLimit::Attributes.into());
        }
        self.elements.see(name, element.can_have_content());
        self.elements.allow_growth(at.start);
        match NAMESPACED.binary_search(&name) {
            Ok(found) => self.enter_namespace(NAMESPACED[found], element),
            Err(_) => Ok(()),
        }
    }

    /// Counts an element on the parser's stack of namespaces, which has no limit. The parser pops
    /// it at its end tag. It may pop further ones there, so the count is an upper bound.
    fn enter_namespace(&self, name: &'static str, element: &mut Element<'_, '_>) -> HandlerResult {
        let depth = self.elements.enter_namespace()?;
        if !element.can_have_content() {
            return Ok(());
        }
        let elements = Rc::clone(&self.elements);
        let leave: EndTagHandler = Box::new(move |end| {
            // The handler of an element without an end tag runs at the end tag of its parent.
            if end.name() == name {
                elements.leave_namespace(depth);
            }
            Ok(())
        });
        element.on_end_tag(leave)
    }

    /// Rewrites the URLs of an attribute, if the element has it. Of attributes with the same name,
    /// browsers use the first one, and so does the parser.
    fn rewrite(
        &self,
        element: &mut Element<'_, '_>,
        attribute: &str,
        content: Content,
    ) -> HandlerResult {
        let Some(raw) = element.get_attribute(attribute) else {
            return Ok(());
        };
        if raw.len() > MAX_ATTRIBUTE_BYTES {
            // Inline images are ordinary, and there is nothing to rewrite.
            return if is_inline(content, &raw) {
                Ok(())
            } else {
                Err(PageLimit::Attribute.into())
            };
        }
        // `http&#58;//` is a link, too: browsers decode references before they parse the URL.
        let decoded = Decoded::new(&raw);
        if let Some(rewritten) = content.rewrite(&self.links, &decoded.text)? {
            let value = decoded.encode(&rewritten);
            self.elements.grow(value.len().saturating_sub(raw.len()))?;
            element.set_attribute(attribute, &value)?;
        }
        Ok(())
    }
}

type EndTagHandler = Box<dyn FnOnce(&mut EndTag<'_>) -> HandlerResult>;

/// Returns true for `<meta http-equiv=refresh>`.
fn is_refresh(element: &Element<'_, '_>) -> bool {
    element
        .get_attribute("http-equiv")
        .is_some_and(|pragma| Decoded::new(&pragma).text.eq_ignore_ascii_case("refresh"))
}

/// Returns true if the value is a `data:` URL. A list may hold links after one.
fn is_inline(content: Content, raw: &str) -> bool {
    let scheme = raw.trim_ascii_start().as_bytes().get(..5);
    content == Content::Url && scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:"))
}
