//! Rewriting of the links of one element.

use std::rc::Rc;

use lol_html::HandlerResult;
use lol_html::html_content::{Element, EndTag};

use super::super::budget::PageLimit;
use super::super::link::LinkRewriter;
use super::attributes::{rewrite_refresh, rewrite_source_set};
use super::bounds::{MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, MAX_NAME_BYTES, MAX_TAG_BYTES};
use super::elements::Elements;

/// Elements and their attributes that hold a link (C77), sorted by element.
pub const LINKS: &[(&str, &[&str])] = &[
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

/// Elements and their attributes that hold a list of image candidates (C78), which kube-apiserver
/// does not rewrite.
const SOURCE_SETS: &[(&str, &str)] = &[
    ("img", "srcset"),
    ("source", "srcset"),
    ("link", "imagesrcset"),
];

/// Attributes of SVG elements that hold a link (C78), which kube-apiserver does not rewrite.
const SVG_LINKS: [&str; 2] = ["href", "xlink:href"];
const SVG: &str = "http://www.w3.org/2000/svg";

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
                .is_some_and(|pragma| pragma.eq_ignore_ascii_case("refresh"))
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

    fn rewrite_link(&self, element: &mut Element<'_, '_>, attribute: &str) -> HandlerResult {
        self.rewrite(element, attribute, |value| {
            Ok(self.links.rewrite(value.trim_ascii()).ok().flatten())
        })
    }

    /// Sets the attribute to the result of `rewrite`, if any. `rewrite` gets the value with its
    /// character references decoded.
    fn rewrite(
        &self,
        element: &mut Element<'_, '_>,
        attribute: &str,
        rewrite: impl Fn(&str) -> Result<Option<String>, PageLimit>,
    ) -> HandlerResult {
        let Some(raw) = element.get_attribute(attribute) else {
            return Ok(());
        };
        if raw.len() > MAX_ATTRIBUTE_BYTES {
            // Inline images are ordinary, and there is nothing to rewrite.
            return if is_inline(attribute, &raw) {
                Ok(())
            } else {
                Err(PageLimit::Attribute.into())
            };
        }
        // `http&#58;//` is a link, too: browsers decode references before they parse the URL.
        if let Some(rewritten) = rewrite(&html_escape::decode_html_entities(&raw))? {
            let value = html_escape::encode_double_quoted_attribute(&rewritten);
            self.elements.grow(value.len().saturating_sub(raw.len()))?;
            element.set_attribute(attribute, &value)?;
        }
        Ok(())
    }
}

type EndTagHandler = Box<dyn FnOnce(&mut EndTag<'_>) -> HandlerResult>;

/// Returns true if the value is a `data:` URL. A list of candidates may hold links after one.
fn is_inline(attribute: &str, raw: &str) -> bool {
    let is_list = SOURCE_SETS.iter().any(|(_, list)| *list == attribute);
    let scheme = raw.trim_ascii_start().as_bytes().get(..5);
    !is_list && scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:"))
}
