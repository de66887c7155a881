//! The links of an HTML page, as it streams by (CONFORMANCE C76 to C81).

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;

use encoding_rs::Encoding;
use lol_html::html_content::Element;
use lol_html::{AsciiCompatibleEncoding, HtmlRewriter, MemorySettings, OutputSink, Settings, element};

use super::link::Links;

/// What a page may take: a tag that is not at its end, and the elements that are open. A page with a longer tag, or with
/// some hundred thousand elements that nobody closes, passes as it is from there on.
const MEMORY: usize = 16 * 1024 * 1024;

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
const SOURCE_SETS: &[(&str, &str)] = &[("img", "srcset"), ("source", "srcset"), ("link", "imagesrcset")];

/// The attributes of SVG elements that hold a link (C78, ours).
const SVG_LINKS: [&str; 2] = ["href", "xlink:href"];
const SVG: &str = "http://www.w3.org/2000/svg";

/// Rewrites one page. What goes in comes out as soon as no tag is open, byte for byte but for the tags whose links
/// change.
pub struct Html {
    /// None once a tag was too long: what follows passes as it is.
    rewriter: Option<HtmlRewriter<'static, Out>>,
    out: Out,
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
    pub fn new(links: Links, encoding: AsciiCompatibleEncoding) -> Self {
        let out = Out::default();
        let settings = Settings::new()
            .append_element_content_handler(element!("*", move |element| rewrite_element(&links, element)))
            .with_encoding(encoding)
            .with_adjust_charset_on_meta_tag(true)
            // A page that browsers argue about is still a page.
            .with_strict(false)
            .with_memory_settings(
                MemorySettings::new()
                    .with_max_allowed_memory_usage(MEMORY)
                    .with_graceful_bail_out_on_memory_limit_exceeded(true),
            );
        Self { rewriter: Some(HtmlRewriter::new(settings, out.clone())), out }
    }

    /// Takes the next bytes; gives those that are ready.
    pub fn write(&mut self, bytes: &[u8]) -> Vec<u8> {
        match &mut self.rewriter {
            // When it gives up it has let all that it held pass.
            Some(rewriter) => {
                if let Err(error) = rewriter.write(bytes) {
                    tracing::debug!(%error, "the rest of a page passes as it is");
                    self.rewriter = None;
                }
                self.out.0.take()
            }
            None => bytes.to_vec(),
        }
    }

    /// Gives what was held back.
    pub fn finish(&mut self) -> Vec<u8> {
        if let Some(Err(error)) = self.rewriter.take().map(HtmlRewriter::end) {
            tracing::debug!(%error, "the end of a page passes as it is");
        }
        self.out.0.take()
    }
}

/// The encoding that a charset names, UTF-8 where none is named. None for one that is no superset of ASCII (UTF-16), in
/// which nothing can be found, and for an unknown one.
pub fn encoding(charset: Option<&str>) -> Option<AsciiCompatibleEncoding> {
    match charset {
        None => Some(AsciiCompatibleEncoding::utf_8()),
        Some(label) => AsciiCompatibleEncoding::new(Encoding::for_label(label.as_bytes())?),
    }
}

fn rewrite_element(links: &Links, element: &mut Element<'_, '_>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let name = element.tag_name();
    if let Ok(found) = LINKS.binary_search_by_key(&&*name, |(element, _)| element) {
        for attribute in LINKS[found].1 {
            rewrite_attribute(element, attribute, |value| links.rewrite(value.trim_ascii()).ok().flatten())?;
        }
    }
    for (_, attribute) in SOURCE_SETS.iter().filter(|(element, _)| *element == name) {
        rewrite_attribute(element, attribute, |value| rewrite_source_set(links, value))?;
    }
    if name == "meta" && element.get_attribute("http-equiv").is_some_and(|what| what.eq_ignore_ascii_case("refresh")) {
        rewrite_attribute(element, "content", |value| rewrite_refresh(links, value))?;
    }
    if element.namespace_uri() == SVG {
        for attribute in SVG_LINKS {
            rewrite_attribute(element, attribute, |value| links.rewrite(value.trim_ascii()).ok().flatten())?;
        }
    }
    Ok(())
}

/// Sets the attribute to what `rewrite` makes of its value, its character references resolved.
fn rewrite_attribute(
    element: &mut Element<'_, '_>,
    attribute: &str,
    rewrite: impl Fn(&str) -> Option<String>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Some(raw) = element.get_attribute(attribute) else { return Ok(()) };
    if let Some(rewritten) = rewrite(&html_escape::decode_html_entities(&raw)) {
        element.set_attribute(attribute, &html_escape::encode_double_quoted_attribute(&rewritten))?;
    }
    Ok(())
}

/// Image candidates: `url descriptor, url descriptor` (WHATWG HTML section 4.8.4.2.1). A URL may hold commas, but not at
/// its end.
fn rewrite_source_set(links: &Links, value: &str) -> Option<String> {
    let mut out = String::new();
    let mut changed = false;
    let mut rest = value;
    loop {
        let start = rest.find(|c: char| !(c.is_ascii_whitespace() || c == ',')).unwrap_or(rest.len());
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        if rest.is_empty() {
            return changed.then_some(out);
        }
        let end = rest.find(|c: char| c.is_ascii_whitespace()).unwrap_or(rest.len());
        let url = rest[..end].trim_end_matches(',');
        match links.rewrite(url).ok().flatten() {
            Some(rewritten) => {
                changed = true;
                out.push_str(&rewritten);
            }
            None => out.push_str(url),
        }
        // Commas right behind a URL end its candidate; else a descriptor goes on to the next comma outside parentheses.
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
fn rewrite_refresh(links: &Links, value: &str) -> Option<String> {
    let after_time = value.find([';', ','])? + 1;
    let rest = &value[after_time..];
    let skipped = rest.len() - rest.trim_ascii_start().len();
    let mut start = after_time + skipped;
    if value.get(start..start + 3).is_some_and(|word| word.eq_ignore_ascii_case("url")) {
        let after = value[start + 3..].trim_ascii_start();
        if let Some(after) = after.strip_prefix('=') {
            start = value.len() - after.trim_ascii_start().len();
        }
    }
    let quote = value[start..].chars().next().filter(|c| matches!(c, '"' | '\''));
    let start = start + quote.map_or(0, char::len_utf8);
    let end = quote.and_then(|quote| value[start..].find(quote)).map_or(value.len(), |end| start + end);
    let url = value[start..end].trim_ascii_end();
    let rewritten = links.rewrite(url).ok().flatten()?;
    Some([&value[..start], &rewritten, &value[start + url.len()..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Scheme;

    fn links() -> Links {
        Links {
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
        let mut out: Vec<u8> = page.as_bytes().chunks(chunk).flat_map(|chunk| html.write(chunk)).collect();
        out.extend(html.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_is_sorted_for_its_search() {
        assert!(LINKS.is_sorted_by_key(|(element, _)| element));
    }

    #[test]
    fn every_attribute_that_holds_a_link_is_rewritten() {
        for (element, attributes) in LINKS {
            for attribute in *attributes {
                // Frames of a frameset stand outside a body; all the others may stand anywhere for a tokenizer.
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
            ("<A HREF=http://10.0.0.1/x?a=1&amp;b=2>", r#"<A HREF="/p/x?a=1&amp;b=2">"#),
            (r#"<a href="&#x2F;x&#47;y">"#, r#"<a href="/p/x/y">"#),
            (r#"<a href=" /x ">"#, r#"<a href="/p/x">"#),
            (r#"<img srcset="/a 1x,/b,c.png 2x, /d,e 3x">"#, r#"<img srcset="/p/a 1x,/p/b,c.png 2x, /p/d,e 3x">"#),
            (r#"<img srcset="/a, /b 2x">"#, r#"<img srcset="/p/a, /p/b 2x">"#),
            (
                r#"<meta http-equiv=Refresh content="5; URL='/x'">"#,
                r#"<meta http-equiv=Refresh content="5; URL='/p/x'">"#,
            ),
            (r#"<meta http-equiv=refresh content="0;/x">"#, r#"<meta http-equiv=refresh content="0;/p/x">"#),
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
    fn a_tag_that_is_too_long_lets_the_page_pass() {
        let long = "x".repeat(MEMORY + 1);
        let page = format!("<a href=/a><img src='data:{long}'><a href=/b>");
        assert_eq!(rewritten(&page, 64 * 1024), page.replace("<a href=/a>", "<a href=\"/p/a\">"));
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
