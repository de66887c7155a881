//! Unit tests of the HTML rewriter.

use super::bounds::{MAX_CANDIDATES, MAX_DEPTH, MAX_NAME_BYTES};
use super::rules::{LINKS, NAMESPACED};
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
    let encoding = AsciiCompatibleEncoding::utf_8();
    String::from_utf8(rewritten_bytes(page.as_bytes(), chunk, encoding)).unwrap()
}

fn rewritten_bytes(page: &[u8], chunk: usize, encoding: AsciiCompatibleEncoding) -> Vec<u8> {
    let mut html = Html::new(links(), encoding);
    for mut piece in page.chunks(chunk) {
        while !piece.is_empty() {
            let (block, rest) = piece.split_at(piece.len().min(html.room()));
            html.write(block);
            piece = rest;
        }
    }
    html.finish();
    html.take_output()
}

#[test]
fn link_attributes_are_sorted() {
    assert!(LINKS.is_sorted_by_key(|(element, _)| element));
}

#[test]
fn rewrites_every_link_attribute() {
    for (element, attributes) in LINKS {
        for attribute in *attributes {
            // A tokenizer accepts any element anywhere.
            let page = format!("<{element} {attribute}='/x'>");
            let expected = format!("<{element} {attribute}=\"/p/x\">");
            assert_eq!(rewritten(&page, page.len()), expected);
        }
    }
}

#[test]
fn rewrites_pages_split_at_any_byte() {
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
fn keeps_unchanged_markup_byte_for_byte() {
    for page in [
        "<A  Href = 'x' ><!-- <a href=/x> --><script>'<a href=/x>'</script><p title=\"/x\">&amp;<br/></P>",
        "<a href=\"http://[bad\"><a href=mailto:x><a href='//other/x'><a href>",
        "<style>a{background:url(/x)}</style><iframe srcdoc='<a href=/x>'></iframe><meta content='0;url=/x'>",
        "not html < > & \u{0} \r\n",
        "<textarea><a href=/x></textarea><title><a href=/x></title><a",
    ] {
        assert_eq!(rewritten(page, 3), page);
    }
}

#[test]
fn namespaced_elements_are_sorted() {
    assert!(NAMESPACED.is_sorted());
}

#[test]
fn rewrites_pages_at_the_bounds() {
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
    // A changed tag is serialized again, with one space between attributes and quoted values.
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
fn closed_svg_elements_do_not_count_as_open() {
    let page = "<svg><title>x</title><use href=/a></use></svg>".repeat(MAX_DEPTH) + "<a href=/x>";
    assert!(rewritten(&page, 50_000).ends_with("<a href=\"/p/x\">"));
}

/// CONFORMANCE C76.
#[test]
fn keeps_bytes_of_pages_in_an_unknown_encoding() {
    let unknown = encoding(Some("ISO-88509-1")).unwrap();
    let page = b"<a title='\xe9\x81' href='/\xe9\x81'>\xff\x80</a>";
    let expected = b"<a title='\xe9\x81' href=\"/p/\xe9\x81\">\xff\x80</a>";
    assert_eq!(rewritten_bytes(page, 7, unknown), expected);
}

/// CONFORMANCE C76.
#[test]
fn supports_only_encodings_compatible_with_ascii() {
    for (charset, known) in [
        (None, true),
        (Some("utf-8"), true),
        (Some("windows-1252"), true),
        (Some("UTF-16LE"), false),
        (Some("none"), true),
        (Some("ISO8859_1"), true),
        (Some(""), true),
    ] {
        assert_eq!(encoding(charset).is_some(), known, "{charset:?}");
    }
}
