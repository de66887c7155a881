//! Response headers that hold URLs or paths, and those that speak for the whole origin (CONFORMANCE
//! C70, C73 to C75).

use std::borrow::Cow;

use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, percent_encode};

use super::html::rewrite_refresh;
use super::link::{InvalidUrl, LinkRewriter};

/// Escapes only bytes beyond ASCII.
const BEYOND_ASCII: &AsciiSet = &AsciiSet::EMPTY;

/// Prefix of the names of cookies that are bound to a host (RFC 6265bis section 4.1.3.2).
const HOST_PREFIX: &str = "__Host-";

/// Headers that describe the bytes of a page.
const NOT_OF_REWRITTEN: [HeaderName; 6] = [
    ACCEPT_RANGES,
    HeaderName::from_static("content-digest"),
    CONTENT_LENGTH,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// Content of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// URL that browsers follow. An invalid one is an error of the target.
    Location,
    Url,
    /// Maximum scope of service workers, which must stay under the prefix.
    Scope,
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
    let present: Vec<(HeaderName, Content)> = headers
        .keys()
        .filter_map(|name| Some((name.clone(), content(name.as_str())?)))
        .collect();
    if present.is_empty() {
        return Ok(());
    }
    let links = links();
    for (name, content) in present {
        let mut kept = Vec::new();
        for value in headers.get_all(&name) {
            if let Some(value) = rewrite_value(&links, content, value)? {
                kept.push(value);
            }
        }
        headers.remove(&name);
        for value in kept {
            headers.append(name.clone(), value);
        }
    }
    Ok(())
}

fn content(name: &str) -> Option<Content> {
    Some(match name {
        "location" => Content::Location,
        "content-location" | "sourcemap" | "x-sourcemap" => Content::Url,
        "service-worker-allowed" => Content::Scope,
        "refresh" => Content::Refresh,
        "link" => Content::Links,
        "set-cookie" => Content::Cookie,
        _ => return None,
    })
}

/// Returns the value for the client, or `None` if the header is removed.
fn rewrite_value(
    links: &LinkRewriter,
    content: Content,
    value: &HeaderValue,
) -> Result<Option<HeaderValue>, InvalidUrl> {
    // A header may hold bytes that are not UTF-8. Escaped, those of URLs reach the target unchanged.
    let text: Cow<'_, str> = if content == Content::Cookie {
        match str::from_utf8(value.as_bytes()) {
            Ok(text) => text.into(),
            // Its path cannot be moved below the prefix in the bytes of an unknown encoding.
            Err(_) => return Ok(None),
        }
    } else {
        percent_encode(value.as_bytes(), BEYOND_ASCII).into()
    };
    let rewritten = match content {
        Content::Location => links.rewrite(&text)?,
        Content::Url => links.rewrite(&text).ok().flatten(),
        Content::Scope => match links.rewrite(&text) {
            Ok(Some(scope)) => Some(scope),
            Ok(None) if links.is_below_prefix(&text) => None,
            _ => return Ok(None),
        },
        Content::Refresh => rewrite_refresh(links, &text),
        Content::Links => rewrite_links(links, &text),
        Content::Cookie => Some(rewrite_cookie(links, &text)),
    };
    match rewritten {
        None => Ok(Some(value.clone())),
        Some(rewritten) => match HeaderValue::try_from(rewritten) {
            Ok(rewritten) => Ok(Some(rewritten)),
            Err(_) if content == Content::Location => Err(InvalidUrl(text.into_owned())),
            Err(_) => Ok(None),
        },
    }
}

/// Rewrites the URLs in angle brackets, outside of quoted parameters. Returns `None` if none of them
/// changes.
fn rewrite_links(links: &LinkRewriter, value: &str) -> Option<String> {
    let (mut out, mut changed) = (String::with_capacity(value.len()), false);
    let mut rest = value;
    while let Some(at) = rest.find(['<', '"']) {
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
fn rewrite_cookie(links: &LinkRewriter, cookie: &str) -> String {
    let is_of_host = cookie
        .trim_ascii_start()
        .get(..HOST_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(HOST_PREFIX));
    if is_of_host {
        return cookie.to_owned();
    }
    let mut parts = cookie.split(';');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for attribute in parts {
        let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        let name = name.trim_ascii();
        if name.eq_ignore_ascii_case("domain") {
            continue;
        }
        out.push(';');
        let path = value.trim_ascii();
        if name.eq_ignore_ascii_case("path") && path.starts_with('/') {
            out.push_str(" Path=");
            out.push_str(&links.prefixed(path));
        } else {
            out.push_str(attribute);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::SET_COOKIE;

    use crate::model::Scheme;

    const PREFIX: &str = "/api/v1/namespaces/shop/services/web/proxy";

    fn rewritten(name: &'static str, value: &str) -> Vec<String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        let links = || LinkRewriter {
            prefix: PREFIX.into(),
            client_host: Some("bastion.example".into()),
            endpoint: "10.0.0.1:8080".parse().unwrap(),
            scheme: Scheme::Http,
            service: None,
            cluster_domain: "cluster.local".into(),
        };
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
            ("Path=/; Path=/x; Path=/y", "Path=/; Path=P/x; Path=P/y"),
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
    fn keeps_order_of_repeated_fields() {
        let mut headers = HeaderMap::new();
        for value in ["a=1; Path=/", "b=2; Path=/b", "c=3"] {
            headers.append(SET_COOKIE, HeaderValue::from_static(value));
        }
        let links = || LinkRewriter {
            prefix: "/p".into(),
            client_host: None,
            endpoint: "10.0.0.1:8080".parse().unwrap(),
            scheme: Scheme::Http,
            service: None,
            cluster_domain: "cluster.local".into(),
        };
        rewrite_headers(&mut headers, links).unwrap();
        let values: Vec<_> = headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(values, ["a=1; Path=/p/", "b=2; Path=/p/b", "c=3"]);
    }
}
