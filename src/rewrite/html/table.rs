//! Attributes that hold URLs (C77, C78): those of the HTML standard, obsolete ones included, and of
//! the other languages that its pages embed.
//!
//! Not among them are identifiers, which nothing follows (`itemid`, `itemtype`), and attributes
//! whose values are documents, styles or scripts (`srcdoc`, `style`).

use super::super::budget::PageLimit;
use super::super::link::LinkRewriter;
use super::attributes::{rewrite_list, rewrite_refresh, rewrite_source_set, rewrite_url};

/// Content of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Url,
    /// URLs, separated by spaces.
    List,
    /// Image candidates, `url descriptor, url descriptor`.
    SourceSet,
    /// `5; url=/x`, if the element has `http-equiv=refresh`.
    Refresh,
}

use Content::{List, Refresh, SourceSet, Url};

/// Attributes of HTML elements, sorted by element.
pub const HTML: &[(&str, &[(&str, Content)])] = &[
    ("a", &[("href", Url), ("ping", List), ("urn", Url)]),
    ("applet", &[("codebase", Url)]),
    ("area", &[("href", Url), ("ping", List)]),
    ("audio", &[("src", Url)]),
    ("base", &[("href", Url)]),
    ("bgsound", &[("src", Url)]),
    ("blockquote", &[("cite", Url)]),
    ("body", &[("background", Url)]),
    ("button", &[("formaction", Url)]),
    ("command", &[("icon", Url)]),
    ("del", &[("cite", Url)]),
    ("embed", &[("src", Url)]),
    ("form", &[("action", Url)]),
    ("frame", &[("longdesc", Url), ("src", Url)]),
    ("head", &[("profile", Url)]),
    ("html", &[("manifest", Url)]),
    ("iframe", &[("longdesc", Url), ("src", Url)]),
    ("image", IMAGE),
    ("img", IMAGE),
    (
        "input",
        &[("formaction", Url), ("src", Url), ("usemap", Url)],
    ),
    ("ins", &[("cite", Url)]),
    ("isindex", &[("action", Url)]),
    (
        "link",
        &[("href", Url), ("imagesrcset", SourceSet), ("urn", Url)],
    ),
    ("menuitem", &[("icon", Url)]),
    ("meta", &[("content", Refresh)]),
    (
        "object",
        &[
            ("archive", List),
            ("classid", Url),
            ("codebase", Url),
            ("data", Url),
            ("usemap", Url),
        ],
    ),
    ("portal", &[("src", Url)]),
    ("q", &[("cite", Url)]),
    ("script", &[("src", Url)]),
    ("source", &[("src", Url), ("srcset", SourceSet)]),
    ("table", BACKGROUND),
    ("tbody", BACKGROUND),
    ("td", BACKGROUND),
    ("tfoot", BACKGROUND),
    ("th", BACKGROUND),
    ("thead", BACKGROUND),
    ("tr", BACKGROUND),
    ("track", &[("src", Url)]),
    ("video", &[("poster", Url), ("src", Url)]),
];

/// Attributes of `img`, and of `image`, which browsers take for it outside of SVG.
const IMAGE: &[(&str, Content)] = &[
    ("dynsrc", Url),
    ("longdesc", Url),
    ("lowsrc", Url),
    ("src", Url),
    ("srcset", SourceSet),
    ("usemap", Url),
];

const BACKGROUND: &[(&str, Content)] = &[("background", Url)];

/// Attributes of all elements of SVG and `MathML`.
pub const FOREIGN: &[(&str, Content)] = &[("href", Url), ("xlink:href", Url)];

const SVG_NAMESPACE: &str = "http://www.w3.org/2000/svg";
const MATHML_NAMESPACE: &str = "http://www.w3.org/1998/Math/MathML";

/// Returns the attributes of an element that hold URLs. Those of HTML count in every namespace,
/// because the parser and browsers may disagree on it.
pub fn attributes_of(
    element: &str,
    namespace: &str,
) -> impl Iterator<Item = &'static (&'static str, Content)> {
    let found = HTML.binary_search_by_key(&element, |(name, _)| name);
    let of_html = found.map_or(&[][..], |found| HTML[found].1);
    let is_foreign = namespace == SVG_NAMESPACE || namespace == MATHML_NAMESPACE;
    let foreign = if is_foreign { FOREIGN } else { &[] };
    let is_new = move |(name, _): &&(&str, Content)| of_html.iter().all(|(known, _)| known != name);
    of_html.iter().chain(foreign.iter().filter(is_new))
}

impl Content {
    /// Rewrites a value whose character references are decoded. Returns `None` if no URL changes.
    ///
    /// # Errors
    /// [`PageLimit::Candidates`] if a list is too long.
    pub fn rewrite(self, links: &LinkRewriter, value: &str) -> Result<Option<String>, PageLimit> {
        match self {
            Self::Url => Ok(rewrite_url(links, value)),
            Self::List => rewrite_list(links, value),
            Self::SourceSet => rewrite_source_set(links, value),
            Self::Refresh => Ok(rewrite_refresh(links, value)),
        }
    }
}
