//! Detection of the responses whose links are rewritten.

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};

use super::coding::Coding;
use super::{html, sniff};

/// Content coding of an HTML page.
#[derive(Clone, Copy, Debug)]
pub struct PageFormat {
    pub(super) coding: Coding,
}

impl PageFormat {
    /// Returns the format of the response's page if its links are to be rewritten: HTML, complete,
    /// in a supported coding and encoding, and not a redirect. `start` has the first bytes of a
    /// response for which [`Self::is_untyped`] is true.
    pub fn detect<B>(
        method: &Method,
        response: &Response<B>,
        start: Option<&Bytes>,
    ) -> Option<Self> {
        if is_incomplete(method, response) {
            return None;
        }
        match start {
            Some(start) => sniff::is_html(start).then_some(Self {
                coding: Coding::Identity,
            }),
            None => Self::of_headers(response.headers()),
        }
    }

    /// Returns true if browsers decide by the first bytes of the response: it has no type, and does
    /// not forbid it.
    pub fn is_untyped<B>(method: &Method, response: &Response<B>) -> bool {
        let headers = response.headers();
        !headers.contains_key(header::CONTENT_TYPE)
            && !is_incomplete(method, response)
            && !headers.contains_key(header::LOCATION)
            && !headers.contains_key(header::CONTENT_ENCODING)
            && !headers.contains_key(header::X_CONTENT_TYPE_OPTIONS)
    }

    /// As [`Self::detect`], for responses with the headers of a page and another content.
    pub fn of_headers(headers: &HeaderMap) -> Option<Self> {
        let HtmlType { charset } = html_type(headers)?;
        if headers.contains_key(header::LOCATION) || !html::supports(charset) {
            return None;
        }
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = match (codings.next(), codings.next()) {
            (None, _) => Coding::Identity,
            (Some(coding), None) => Coding::parse(coding.to_str().ok()?)?,
            // Stacked codings would need a chain of decoders, and do not occur in practice.
            (Some(_), Some(_)) => return None,
        };
        Some(Self { coding })
    }

    /// Memory that rewriting the page holds from the start, in bytes.
    pub fn held_bytes(&self) -> usize {
        html::PARSER_BYTES + html::BLOCK_BYTES + self.coding.held_bytes()
    }
}

/// Returns true if the response has no page, or a part of one: its links may be cut anywhere, also
/// within a tag.
fn is_incomplete<B>(method: &Method, response: &Response<B>) -> bool {
    *method == Method::HEAD
        || matches!(
            response.status(),
            StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED
        )
}

/// Type of a response that browsers take for HTML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HtmlType<'a> {
    charset: Option<&'a [u8]>,
}

/// Returns the type of a response if it is HTML. Of several types, browsers use the last one (Fetch
/// section 3.5), and a charset given for the same type.
fn html_type(headers: &HeaderMap) -> Option<HtmlType<'_>> {
    let mut found: Option<HtmlType<'_>> = None;
    let values = headers.get_all(header::CONTENT_TYPE).iter();
    for value in values.flat_map(|value| split_unquoted(value.as_bytes(), b',')) {
        let value = value.trim_ascii();
        // Browsers end the type at these characters, not only at a semicolon.
        let end = value.iter().position(|byte| b"; \t(".contains(byte));
        let media_type = &value[..end.unwrap_or(value.len())];
        let parameters = memchr::memchr(b';', value).map_or(&b""[..], |at| &value[at..]);
        if !media_type.contains(&b'/') || media_type == b"*/*" {
            continue;
        }
        let is_html = media_type.eq_ignore_ascii_case(b"text/html");
        found = is_html.then(|| HtmlType {
            charset: charset(parameters).or(found.and_then(|found| found.charset)),
        });
    }
    found
}

/// Returns the value of the first `charset` parameter.
fn charset(parameters: &[u8]) -> Option<&[u8]> {
    split_unquoted(parameters, b';').find_map(|parameter| {
        let at = memchr::memchr(b'=', parameter)?;
        let is_charset = parameter[..at]
            .trim_ascii()
            .eq_ignore_ascii_case(b"charset");
        is_charset.then(|| unquoted(parameter[at + 1..].trim_ascii()))
    })
}

fn unquoted(value: &[u8]) -> &[u8] {
    let is_quote = |byte: &u8| matches!(byte, b'"' | b'\'');
    let start = value.iter().take_while(|byte| is_quote(byte)).count();
    let value = &value[start..];
    let end = value.iter().rev().take_while(|byte| is_quote(byte)).count();
    value[..value.len() - end].trim_ascii()
}

/// Splits a list at separators outside of quoted strings.
fn split_unquoted(list: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    list.split(move |byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
        *byte == separator && !is_quoted
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(types: &[&'static [u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for content_type in types {
            headers.append(
                header::CONTENT_TYPE,
                HeaderValue::from_bytes(content_type).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn recognizes_the_types_that_browsers_take_for_html() {
        for (types, expected) in [
            (&[&b"text/html"[..]][..], Some(None)),
            (&[b" Text/HTML ;a=b"], Some(None)),
            (&[b"text/html;charset=utf-8"], Some(Some(&b"utf-8"[..]))),
            (
                &[b"text/html; CharSet = \"UTF-8\" ; charset=x"],
                Some(Some(b"UTF-8")),
            ),
            (&[b"text/html; charset='koi8-r'"], Some(Some(b"koi8-r"))),
            (&[b"text/html; charset="], Some(Some(b""))),
            (&[b"text/html; charset=\xe9"], Some(Some(b"\xe9"))),
            (
                &[b"text/html; x=\";charset=a\"; charset=b"],
                Some(Some(b"b")),
            ),
            (&[b"text/html charset=utf-8"], Some(None)),
            (&[b"text/html, text/html"], Some(None)),
            (&[b"text/plain", b"text/html"], Some(None)),
            (
                &[b"text/html;charset=a", b"text/html, x, */*"],
                Some(Some(b"a")),
            ),
            (&[b"text/html", b"text/plain"], None),
            (&[b"text/html, image/png"], None),
            (&[b"text/htmlx"], None),
            (&[b"text"], None),
            (&[b"application/xhtml+xml"], None),
            (&[b""], None),
            (&[], None),
        ] {
            let expected = expected.map(|charset| HtmlType { charset });
            assert_eq!(html_type(&headers(types)), expected, "{types:?}");
        }
    }

    #[test]
    fn pages_are_complete_and_in_a_known_coding() {
        let page = |code: u16, name: &'static str, value: &'static str| {
            let response = Response::builder().status(code);
            let response = response.header("content-type", "text/html");
            response.header(name, value).body(()).unwrap()
        };
        for (method, code, name, value, expected) in [
            (Method::GET, 200, "x", "y", true),
            (Method::POST, 500, "x", "y", true),
            (Method::GET, 200, "content-encoding", "gzip", true),
            (Method::HEAD, 200, "x", "y", false),
            (Method::GET, 204, "x", "y", false),
            (Method::GET, 206, "x", "y", false),
            (Method::GET, 304, "x", "y", false),
            (Method::GET, 302, "location", "/", false),
            (Method::GET, 200, "content-encoding", "br", false),
            (Method::GET, 200, "content-type", "text/plain", false),
        ] {
            let found = PageFormat::detect(&method, &page(code, name, value), None);
            assert_eq!(found.is_some(), expected, "{method} {code} {name}: {value}");
        }
    }
}
