//! Unit tests of the HTML rewriter.

use super::bounds::{MAX_CANDIDATES, MAX_DEPTH, MAX_NAME_BYTES};
use super::rules::NAMESPACED;
use super::table::{Content, FOREIGN, HTML};
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
    String::from_utf8(rewritten_bytes(page.as_bytes(), chunk)).unwrap()
}

fn rewritten_bytes(page: &[u8], chunk: usize) -> Vec<u8> {
    let mut html = Html::new(links());
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
fn elements_of_the_table_are_sorted() {
    assert!(HTML.is_sorted_by(|(one, _), (next, _)| one < next));
}

#[test]
fn rewrites_every_attribute_of_the_table() {
    let check = |start: &str, attribute: &str, content: Content| {
        let (value, expected) = match content {
            Content::Url => ("/x", "/p/x"),
            Content::List => ("/x\n //o.example/y  /z ", "/p/x\n //o.example/y  /p/z "),
            Content::SourceSet => ("/x, y 2x,/z 3x", "/p/x, y 2x,/p/z 3x"),
            Content::Refresh => ("0; url=/x", "0; url=/p/x"),
        };
        // A tokenizer accepts any element anywhere.
        let page = format!("{start} {}='{value}'>", attribute.to_uppercase());
        let expected = format!("{start} {}=\"{expected}\">", attribute.to_uppercase());
        for chunk in [1, page.len()] {
            assert_eq!(rewritten(&page, chunk), expected);
        }
    };
    for (element, attributes) in HTML {
        for (attribute, content) in *attributes {
            let pragma = if *content == Content::Refresh {
                " http-equiv=\"REF&#114;esh\""
            } else {
                ""
            };
            check(&format!("<{element}{pragma}"), attribute, *content);
        }
    }
    for (attribute, content) in FOREIGN {
        for element in [
            "a",
            "use",
            "image",
            "script",
            "feImage",
            "textPath",
            "mpath",
            "pattern",
            "linearGradient",
            "animate",
        ] {
            check(&format!("<svg><{element}"), attribute, *content);
        }
        check("<math><mrow", attribute, *content);
    }
}

/// The URL attributes of the HTML standard, from its index of attributes, and obsolete ones from
/// its section 16.2, written down independently of the table.
#[test]
fn table_has_the_url_attributes_of_the_standard() {
    let standard = "a.href a.ping area.href area.ping audio.src base.href blockquote.cite \
        button.formaction del.cite embed.src form.action iframe.src img.src img.srcset \
        input.formaction input.src ins.cite link.href link.imagesrcset object.data q.cite script.src \
        source.src source.srcset track.src video.poster video.src img.usemap \
        applet.codebase body.background frame.longdesc frame.src head.profile html.manifest \
        iframe.longdesc img.longdesc img.lowsrc input.usemap object.archive object.classid \
        object.codebase object.usemap table.background td.background th.background tr.background \
        thead.background tbody.background tfoot.background menuitem.icon bgsound.src meta.content";
    for name in standard.split_ascii_whitespace() {
        let (element, attribute) = name.split_once('.').unwrap();
        let found = HTML.iter().find(|(known, _)| *known == element);
        let found =
            found.is_some_and(|(_, known)| known.iter().any(|(name, _)| *name == attribute));
        assert!(found, "{name} is missing");
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
        (
            r#"<a href="/&uuml;&#252;">"#,
            r#"<a href="/p/&uuml;&#252;">"#,
        ),
        ("<a href='&sol;x' HREF=/y>", r#"<a href="/p/x" HREF=/y>"#),
        (r#"<a href=/x?a="b">"#, r#"<a href="/p/x?a=&quot;b&quot;">"#),
        (
            r#"<meta content="0;/x" http-equiv=refresh>"#,
            r#"<meta content="0;/p/x" http-equiv=refresh>"#,
        ),
        (
            r#"<base href="/app/"><a href="b">"#,
            r#"<base href="/p/app/"><a href="b">"#,
        ),
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

#[test]
fn reads_urls_as_browsers_do() {
    for (value, expected) in [
        ("\t\r\n\u{c} /x\u{1} ", "/p/x"),
        ("/a\nb\tc\r/d", "/p/abc/d"),
        ("/\t/other.example/x", ""),
        ("ht\ntp://10.0.0.1/x", "/p/x"),
        ("\\x", "/p/x"),
        ("\\\\other.example\\x", ""),
        ("http:\\\\10.0.0.1\\x?\\y", "/p/x?\\y"),
        ("/a\\..\\..\\x", "/p/x"),
        ("/x?a\\b#c\\d", "/p/x?a\\b#c\\d"),
        ("mailto:\\x", ""),
        ("a\\b", ""),
    ] {
        let page = format!("<a href='{value}'>");
        let expected = if expected.is_empty() {
            page.clone()
        } else {
            format!("<a href=\"{expected}\">")
        };
        assert_eq!(rewritten(&page, 1), expected, "{value:?}");
    }
}

#[test]
fn rewrites_any_refresh_that_browsers_follow() {
    for (value, expected) in [
        ("0;url=/x", "0;url=/p/x"),
        (" 1.5 ; URL = \"/x\" y", " 1.5 ; URL = \"/p/x\" y"),
        ("5,url=/x", "5,url=/p/x"),
        ("5 url=/x", "5 url=/p/x"),
        ("5 /x", "5 /p/x"),
        ("5;'/x", "5;'/p/x"),
        (".;/x", ".;/p/x"),
        ("5;http://10.0.0.1:80/x ", "5;/p/x "),
        // Not followed.
        ("5", "5"),
        ("5;", "5;"),
        ("5x;url=/x", "5x;url=/x"),
        ("url=/x", "url=/x"),
        (";/x", ";/x"),
        ("", ""),
        ("5;url=x", "5;url=x"),
    ] {
        let refresh = rewrite_refresh(&links(), value);
        assert_eq!(refresh.as_deref().unwrap_or(value), expected, "{value:?}");
    }
}

/// CONFORMANCE C76.
#[test]
fn keeps_bytes_of_pages_in_any_encoding() {
    for text in [
        // Invalid in UTF-8; bytes without a character in Windows-1252.
        &b"\xe9\x81\xff\x80\x8d"[..],
        "ü漢字".as_bytes(),
        // Second bytes of Shift JIS, GBK and Big5 that are a backslash, a brace and an at sign.
        b"\x83\x5c\x8b\x7b\x95\x40\x81\x7c",
        b"\x81\x30\x89\x38",
    ] {
        for start in [
            &b""[..],
            b"\xef\xbb\xbf",
            b"\r\n\t <!-- <a href=/c> -->",
            b"<!doctype html>",
            b"<meta charset=utf-16>",
            b"<meta charset=shift_jis><?xml version='1.0'?>",
            b"<meta http-equiv=content-type content='text/html; charset=none'>",
            b"\x00<\xff",
        ] {
            let page = |value: &[u8]| {
                [
                    start,
                    b"<p title='",
                    text,
                    b"'><a title='",
                    text,
                    b"' href=",
                    value,
                    b">",
                    text,
                ]
                .concat()
            };
            let found = rewritten_bytes(&page(&[b"'/", text, b"'"].concat()), 7);
            assert_eq!(found, page(&[b"\"/p/", text, b"\""].concat()));
        }
    }
}

#[test]
fn passes_pages_cut_at_any_byte() {
    let page = "<p title=\"&amp;\">\u{fc}<!-- c --><a href=\"/x&eacute;?a&amp;b\" title='y'>t</a><script>1<2</script>";
    let whole = rewritten(page, page.len());
    for end in 0..page.len() {
        let cut = &page.as_bytes()[..end];
        let found = rewritten_bytes(cut, 5);
        let tag = page.find("<a").unwrap();
        let is_in_tag = (tag..=page.find(">t</a>").unwrap()).contains(&end);
        let expected = if is_in_tag || end <= tag {
            cut.to_vec()
        } else {
            whole.as_bytes()[..whole.len() - (page.len() - end)].to_vec()
        };
        assert_eq!(found, expected, "cut at {end}");
    }
}

/// CONFORMANCE C76.
#[test]
fn supports_only_encodings_compatible_with_ascii() {
    for (charset, expected) in [
        (None, true),
        (Some("utf-8"), true),
        (Some("windows-1252"), true),
        (Some("x-user-defined"), true),
        (Some("UTF-16LE"), false),
        (Some("iso-2022-jp"), false),
        (Some("none"), true),
        (Some("ISO8859_1"), true),
        (Some(""), true),
    ] {
        assert_eq!(
            supports(charset.map(str::as_bytes)),
            expected,
            "{charset:?}"
        );
    }
}
