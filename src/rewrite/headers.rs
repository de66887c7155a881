//! Response headers that hold URLs or paths, and those that speak for the whole origin (CONFORMANCE
//! C70, C73 to C75).

use std::borrow::Cow;
use std::cell::LazyCell;

use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, percent_encode};

use super::html::rewrite_refresh;
use super::link::{InvalidUrl, LinkRewriter};

/// Escapes only bytes beyond ASCII.
const BEYOND_ASCII: &AsciiSet = &AsciiSet::EMPTY;

/// Prefix of the names of cookies that are bound to a host (RFC 6265bis section 4.1.3.2).
const HOST_PREFIX: &[u8] = b"__Host-";

const SERVICE_WORKER_ALLOWED: HeaderName = HeaderName::from_static("service-worker-allowed");

/// Headers that describe the bytes of a page.
const NOT_OF_REWRITTEN: [HeaderName; 6] = [
    ACCEPT_RANGES,
    HeaderName::from_static("content-digest"),
    CONTENT_LENGTH,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// Maximum number of URLs in `Link` headers that are rewritten, because each grows by the prefix.
/// Browsers use a few.
const MAX_LINKS: usize = 1000;

/// Content of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// URL that browsers follow. An invalid one is an error of the target.
    Location,
    Url,
    /// `5; url=/x`.
    Refresh,
    /// `</x>; rel=next, </y>; rel=preload` (RFC 8288).
    Links,
    /// Cookie with `Path` and `Domain` (RFC 6265).
    Cookie,
}

/// Rewrites the headers of a response so that they lead through the bastion, and keeps its cookies
/// and service workers below the path of the target.
///
/// # Errors
/// [`InvalidUrl`] if `Location` is not a URL: passed on, it could lead a browser out of the prefix.
pub fn rewrite_headers(
    headers: &mut HeaderMap,
    links: impl FnOnce() -> LinkRewriter,
) -> Result<(), InvalidUrl> {
    // Most responses have none of these headers.
    let links = LazyCell::new(links);
    let scopes = headers.get_all(SERVICE_WORKER_ALLOWED);
    if scopes.iter().any(|scope| leaves_prefix(&links, scope)) {
        headers.remove(SERVICE_WORKER_ALLOWED);
    }
    let mut remaining_links = MAX_LINKS;
    // In place, which keeps their order.
    for (name, value) in headers.iter_mut() {
        if let Some(content) = content(name.as_str())
            && let Some(rewritten) = rewrite_value(&links, content, value, &mut remaining_links)?
        {
            *value = rewritten;
        }
    }
    Ok(())
}

fn content(name: &str) -> Option<Content> {
    Some(match name {
        "location" => Content::Location,
        "content-location" | "service-worker-allowed" | "sourcemap" | "x-sourcemap" => Content::Url,
        "refresh" => Content::Refresh,
        "link" => Content::Links,
        "set-cookie" => Content::Cookie,
        _ => return None,
    })
}

/// Returns the text of a header. Bytes beyond ASCII are escaped, so that those of URLs reach the
/// target unchanged.
fn text(value: &[u8]) -> Cow<'_, str> {
    percent_encode(value, BEYOND_ASCII).into()
}

/// Returns true if a scope of service workers is not below the prefix, also after it is rewritten.
fn leaves_prefix(links: &LinkRewriter, scope: &HeaderValue) -> bool {
    let scope = text(scope.as_bytes());
    match links.rewrite(&scope) {
        Ok(Some(_)) => false,
        Ok(None) => !links.is_below_prefix(&scope),
        Err(_) => true,
    }
}

/// Returns the value for the client, or `None` if it does not change.
fn rewrite_value(
    links: &LinkRewriter,
    content: Content,
    value: &HeaderValue,
    remaining_links: &mut usize,
) -> Result<Option<HeaderValue>, InvalidUrl> {
    let text = text(value.as_bytes());
    let rewritten = match content {
        Content::Location => links.rewrite(&text)?.map(String::into_bytes),
        Content::Url => links.rewrite(&text).ok().flatten().map(String::into_bytes),
        Content::Refresh => rewrite_refresh(links, &text).map(String::into_bytes),
        Content::Links => rewrite_links(links, &text, remaining_links).map(String::into_bytes),
        Content::Cookie => Some(rewrite_cookie(links, value.as_bytes())),
    };
    let value = rewritten.map(HeaderValue::try_from).transpose();
    value.map_err(|_| InvalidUrl(text.into_owned()))
}

/// Rewrites the URLs in angle brackets, outside of quoted parameters. Returns `None` if none of them
/// changes.
fn rewrite_links(links: &LinkRewriter, value: &str, remaining: &mut usize) -> Option<String> {
    let (mut out, mut changed) = (String::with_capacity(value.len()), false);
    let mut rest = value;
    while *remaining > 0
        && let Some(at) = rest.find(['<', '"'])
    {
        let (before, from) = rest.split_at(at + 1);
        out.push_str(before);
        if before.ends_with('"') {
            let end = end_of_quoted(from);
            out.push_str(&from[..end]);
            rest = &from[end..];
            continue;
        }
        let Some(end) = from.find('>') else {
            rest = from;
            break;
        };
        match links.rewrite(from[..end].trim_ascii()) {
            Ok(Some(url)) => {
                out.push_str(&url);
                changed = true;
                *remaining -= 1;
            }
            _ => out.push_str(&from[..end]),
        }
        rest = &from[end..];
    }
    out.push_str(rest);
    changed.then_some(out)
}

/// Removes the headers that are not true of a rewritten page: its length, which is unknown until its
/// end, its ranges and its digests. Its entity tag becomes weak (RFC 9110 section 8.8.1): the page
/// depends on the prefix, and is not equal byte for byte.
pub fn describe_rewritten(headers: &mut HeaderMap) {
    for name in NOT_OF_REWRITTEN {
        headers.remove(name);
    }
    let weak = headers
        .get(ETAG)
        .filter(|tag| tag.as_bytes().starts_with(b"\""))
        .and_then(|tag| HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()).ok());
    if let Some(weak) = weak {
        headers.insert(ETAG, weak);
    }
}

/// Returns the length of a quoted string behind its first quote, the last one included.
fn end_of_quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Moves the path of a cookie below the prefix, and removes its domain, so that browsers send it
/// neither to other targets nor to other hosts. Without a path, browsers take that of the request.
/// Browsers reject a cookie named `__Host-…` with another path than `/`, so that it keeps that.
fn rewrite_cookie(links: &LinkRewriter, cookie: &[u8]) -> Vec<u8> {
    let start = cookie.trim_ascii_start().get(..HOST_PREFIX.len());
    if start.is_some_and(|start| start.eq_ignore_ascii_case(HOST_PREFIX)) {
        return cookie.to_owned();
    }
    let mut parts = cookie.split(|byte| *byte == b';');
    let mut out = parts.next().unwrap_or_default().to_owned();
    // Browsers use the last path (RFC 6265 section 5.3). Others would only grow.
    let mut paths = parts
        .clone()
        .filter(|part| is_attribute(part, b"path"))
        .count();
    for attribute in parts {
        if is_attribute(attribute, b"domain") {
            continue;
        }
        if is_attribute(attribute, b"path") {
            paths -= 1;
            if paths > 0 {
                continue;
            }
            let path = attribute.splitn(2, |byte| *byte == b'=').nth(1);
            let path = path.unwrap_or_default().trim_ascii();
            if path.starts_with(b"/") {
                out.extend_from_slice(b"; Path=");
                out.extend_from_slice(links.prefixed(&text(path)).as_bytes());
                continue;
            }
        }
        out.push(b';');
        out.extend_from_slice(attribute);
    }
    out
}

/// Returns true if an attribute of a cookie has a name, which is lower-case here.
fn is_attribute(attribute: &[u8], name: &[u8]) -> bool {
    let found = attribute.split(|byte| *byte == b'=').next();
    found.is_some_and(|found| found.trim_ascii().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::SET_COOKIE;

    use crate::model::Scheme;

    const PREFIX: &str = "/api/v1/namespaces/shop/services/web/proxy";

    fn links() -> LinkRewriter {
        LinkRewriter {
            prefix: PREFIX.into(),
            client_host: Some("bastion.example".into()),
            endpoint: "10.0.0.1:8080".parse().unwrap(),
            scheme: Scheme::Http,
            service: None,
            cluster_domain: "cluster.local".into(),
        }
    }

    fn rewritten(name: &'static str, value: &str) -> Vec<String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        rewrite_headers(&mut headers, links).unwrap();
        let values = headers.get_all(name).iter();
        values
            .map(|value| value.to_str().unwrap().replace(PREFIX, "P"))
            .collect()
    }

    #[test]
    fn urls_lead_through_the_bastion() {
        for (name, value, expected) in [
            ("location", "/x", "P/x"),
            ("location", "https://bastion.example/x", "P/x"),
            ("content-location", "http://10.0.0.1:8080/x?y", "P/x?y"),
            ("content-location", "x", "x"),
            ("content-location", "ftp://%zz", "ftp://%zz"),
            ("sourcemap", "/app.js.map", "P/app.js.map"),
            ("x-sourcemap", "app.js.map", "app.js.map"),
            ("refresh", "5; url=/x", "5; url=P/x"),
            ("refresh", "0;URL='http://10.0.0.1:8080/x'", "0;URL='P/x'"),
            ("refresh", "5", "5"),
            (
                "link",
                "</a>; rel=next, < /b >; title=\"</c>, \\\"</d>\"; rel=\"x\",<e>,<https://other.example/f>",
                "<P/a>; rel=next, <P/b>; title=\"</c>, \\\"</d>\"; rel=\"x\",<e>,<https://other.example/f>",
            ),
            ("link", "</a", "</a"),
            ("service-worker-allowed", "/", "P/"),
            ("service-worker-allowed", "/app/", "P/app/"),
        ] {
            assert_eq!(rewritten(name, value), [expected], "{name}: {value}");
        }
    }

    #[test]
    fn service_workers_stay_below_the_prefix() {
        for value in ["https://other.example/", "../../", "..", "x/../../y", ":"] {
            assert_eq!(
                rewritten("service-worker-allowed", value),
                [""; 0],
                "{value}"
            );
        }
        assert_eq!(rewritten("service-worker-allowed", "./app/"), ["./app/"]);
    }

    #[test]
    fn cookies_stay_below_the_prefix() {
        for (value, expected) in [
            ("a=1", "a=1"),
            ("a=1; Path=/", "a=1; Path=P/"),
            ("a=1;path = /kiali ;HttpOnly", "a=1; Path=P/kiali;HttpOnly"),
            (
                "a=\"x;y\"; PATH=/; SameSite=Lax",
                "a=\"x;y\"; Path=P/; SameSite=Lax",
            ),
            ("a=1; Domain=.example; Secure", "a=1; Secure"),
            ("a=1; domain; Path=kiali", "a=1; Path=kiali"),
            ("a=1; Path=P/kiali", "a=1; Path=P/kiali"),
            ("a=1; Path=/../../x", "a=1; Path=P/x"),
            ("__host-a=1; Path=/; Secure", "__host-a=1; Path=/; Secure"),
            ("Path=/; Path=/x; Path=/y", "Path=/; Path=P/y"),
            ("a=1; Path=/; Path=", "a=1; Path="),
            ("a=1; Path=/\u{e9}", "a=1; Path=P/%C3%A9"),
        ] {
            let value = value.replace("P/kiali", &format!("{PREFIX}/kiali"));
            assert_eq!(rewritten("set-cookie", &value), [expected], "{value}");
        }
    }

    #[test]
    fn rewritten_pages_have_weak_tags_and_no_digests() {
        let mut headers = HeaderMap::new();
        for name in NOT_OF_REWRITTEN {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        for (tag, expected) in [("\"a\"", "W/\"a\""), ("W/\"a\"", "W/\"a\""), ("a", "a")] {
            headers.insert(ETAG, HeaderValue::from_static(tag));
            describe_rewritten(&mut headers);
            assert_eq!(headers[ETAG], expected);
        }
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn values_grow_within_bounds() {
        let links = format!("</>, {}", "</a>,".repeat(10 * MAX_LINKS));
        let links = &rewritten("link", &links)[0];
        assert!(links.starts_with("<P/>, <P/a>,") && links.ends_with("</a>,"));
        assert_eq!(links.matches("<P/").count(), MAX_LINKS);
        let cookie = format!("a=1{}", ";path=/".repeat(1000));
        assert_eq!(rewritten("set-cookie", &cookie), ["a=1; Path=P/"]);
    }

    #[test]
    fn keeps_bytes_of_cookies() {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(b"a=\xff; Path=/").unwrap();
        headers.insert(SET_COOKIE, value);
        rewrite_headers(&mut headers, links).unwrap();
        let expected = [&b"a=\xff; Path="[..], PREFIX.as_bytes(), b"/"].concat();
        assert_eq!(headers[SET_COOKIE].as_bytes(), expected);
    }

    #[test]
    fn keeps_order_of_fields() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("set-cookie", "a=1; Path=/"),
            ("location", "/x"),
            ("set-cookie", "b=2"),
            ("x-other", "1"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        rewrite_headers(&mut headers, links).unwrap();
        let fields: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap().replace(PREFIX, "P")))
            .collect();
        let expected = [
            ("set-cookie", "a=1; Path=P/"),
            ("set-cookie", "b=2"),
            ("location", "P/x"),
            ("x-other", "1"),
        ];
        assert_eq!(
            fields,
            expected.map(|(name, value)| (name, value.to_owned()))
        );
    }
}
