//! Rejection of requests that a browser sends on behalf of a page of another site.
//!
//! A local listener adds the credentials of its user to each request, so that any page that the
//! user visits could act through it.

use http::{HeaderMap, HeaderName, Method, header};

use crate::http::RequestHead;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Request that a page of another site has caused, with the header that shows it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request was sent by a page of another site ({header}: {value})")]
pub struct CrossSiteRequest {
    header: &'static str,
    value: String,
}

/// Checks that a request was not caused by a page of another site.
///
/// `Sec-Fetch-Site` (Fetch Metadata) and `Origin` (RFC 6454) are set by browsers, and pages cannot
/// change them. Clients that send neither pass. A top-level navigation with GET passes too, because
/// links from other sites lead to the pages of a target and the linking page cannot read the
/// response. In a frame it is rejected, because the framing page could trick the user into clicks.
///
/// # Errors
/// [`CrossSiteRequest`] with the header that names the other site.
pub fn check(head: &RequestHead) -> Result<(), CrossSiteRequest> {
    let headers = &head.headers;
    if head.method == Method::GET
        && is(headers, &SEC_FETCH_MODE, "navigate")
        && is(headers, &SEC_FETCH_DEST, "document")
    {
        return Ok(());
    }
    let rejected = |header, value: &[u8]| CrossSiteRequest {
        header,
        value: String::from_utf8_lossy(value).into_owned(),
    };
    for site in headers.get_all(SEC_FETCH_SITE) {
        if site.as_bytes().eq_ignore_ascii_case(b"cross-site") {
            return Err(rejected("Sec-Fetch-Site", site.as_bytes()));
        }
    }
    // A page whose referrer policy is `no-referrer` sends `null` to its own site.
    let is_same_origin = is(headers, &SEC_FETCH_SITE, "same-origin");
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.as_bytes();
        let is_own = (is_same_origin && origin == b"null") || is_origin_of(origin, head);
        if !is_own {
            return Err(rejected("Origin", origin));
        }
    }
    Ok(())
}

/// Returns true if the only value of a header is `expected`.
fn is(headers: &HeaderMap, name: &HeaderName, expected: &str) -> bool {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    first.is_some_and(|value| value == expected) && values.next().is_none()
}

/// Returns true if an origin has the host and the port that the request is for. The scheme may
/// differ, because a proxy before the listener may have terminated TLS.
fn is_origin_of(origin: &[u8], head: &RequestHead) -> bool {
    let (default_port, authority) = if let Some(authority) = origin.strip_prefix(b"http://") {
        (&b":80"[..], authority)
    } else if let Some(authority) = origin.strip_prefix(b"https://") {
        (&b":443"[..], authority)
    } else {
        return false;
    };
    let host = head.target.authority().map(str::as_bytes);
    let host = host.or_else(|| Some(head.headers.get(header::HOST)?.as_bytes()));
    let without_port = |authority| strip_suffix(authority, default_port);
    !authority.is_empty()
        && host.is_some_and(|host| without_port(host).eq_ignore_ascii_case(without_port(authority)))
}

fn strip_suffix<'a>(text: &'a [u8], suffix: &[u8]) -> &'a [u8] {
    text.strip_suffix(suffix).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::head;

    type Lines<'a> = &'a [(&'a str, &'a str)];

    fn check_lines(method: &str, host: &str, lines: Lines<'_>) -> Result<(), String> {
        let mut request = http::Request::builder().method(method).uri("/");
        request = request.header("host", host);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        check(&head(request)).map_err(|error| error.to_string())
    }

    const SITE: &str = "sec-fetch-site";
    const MODE: &str = "sec-fetch-mode";
    const DEST: &str = "sec-fetch-dest";

    #[test]
    fn passes_requests_of_own_pages_and_of_other_clients() {
        let cases: [(&str, &str, Lines<'_>); 14] = [
            ("GET", "127.0.0.1:8001", &[]),
            ("POST", "127.0.0.1:8001", &[]),
            (
                "POST",
                "localhost:8001",
                &[("origin", "http://localhost:8001")],
            ),
            (
                "POST",
                "LOCALHOST:8001",
                &[("origin", "http://localhost:8001")],
            ),
            ("POST", "[::1]:8001", &[("origin", "http://[::1]:8001")]),
            ("POST", "localhost", &[("origin", "http://localhost")]),
            ("POST", "localhost:80", &[("origin", "http://localhost")]),
            // Behind a proxy that terminates TLS.
            (
                "POST",
                "desk.example",
                &[("origin", "https://desk.example")],
            ),
            (
                "POST",
                "a:1",
                &[("origin", "http://a:1"), (SITE, "same-origin")],
            ),
            ("POST", "a:1", &[("origin", "null"), (SITE, "same-origin")]),
            (
                "GET",
                "a:1",
                &[(SITE, "none"), (MODE, "navigate"), (DEST, "document")],
            ),
            ("GET", "a:1", &[(SITE, "same-site")]),
            (
                "GET",
                "a:1",
                &[(SITE, "cross-site"), (MODE, "navigate"), (DEST, "document")],
            ),
            (
                "GET",
                "a:1",
                &[
                    ("origin", "null"),
                    (SITE, "cross-site"),
                    (MODE, "navigate"),
                    (DEST, "document"),
                ],
            ),
        ];
        for (method, host, lines) in cases {
            assert_eq!(
                check_lines(method, host, lines),
                Ok(()),
                "{method} {lines:?}"
            );
        }
    }

    #[test]
    fn rejects_requests_of_other_sites() {
        let cases: [(&str, &str, Lines<'_>); 17] = [
            (
                "POST",
                "127.0.0.1:8001",
                &[("origin", "https://evil.example")],
            ),
            (
                "GET",
                "127.0.0.1:8001",
                &[("origin", "https://evil.example")],
            ),
            ("GET", "a:1", &[("origin", "null")]),
            ("GET", "a:1", &[("origin", "")]),
            ("GET", "a:1", &[("origin", "http://")]),
            ("GET", "a:1", &[("origin", "http://a")]),
            ("GET", "a:1", &[("origin", "http://a:2")]),
            ("GET", "a:1", &[("origin", "http://b.a:1")]),
            ("GET", "a:1", &[("origin", "file://a:1")]),
            ("GET", "a:443", &[("origin", "http://a")]),
            (
                "GET",
                "a:1",
                &[("origin", "http://a:1"), ("origin", "http://b")],
            ),
            ("GET", "a:1", &[(SITE, "cross-site")]),
            (
                "GET",
                "a:1",
                &[(SITE, "cross-site"), (MODE, "no-cors"), (DEST, "image")],
            ),
            (
                "GET",
                "a:1",
                &[(SITE, "cross-site"), (MODE, "navigate"), (DEST, "iframe")],
            ),
            (
                "POST",
                "a:1",
                &[(SITE, "cross-site"), (MODE, "navigate"), (DEST, "document")],
            ),
            (
                "GET",
                "a:1",
                &[
                    (SITE, "cross-site"),
                    (MODE, "websocket"),
                    (DEST, "websocket"),
                ],
            ),
            ("POST", "a:1", &[("origin", "null"), (SITE, "cross-site")]),
        ];
        for (method, host, lines) in cases {
            assert!(
                check_lines(method, host, lines).is_err(),
                "{method} {lines:?}"
            );
        }
    }

    #[test]
    fn error_names_the_header_that_shows_the_other_site() {
        let text = |lines: Lines<'_>| check_lines("POST", "a:1", lines).unwrap_err();
        assert_eq!(
            text(&[("origin", "https://evil.example")]),
            "the request was sent by a page of another site (Origin: https://evil.example)"
        );
        assert_eq!(
            text(&[(SITE, "cross-site"), ("origin", "https://evil.example")]),
            "the request was sent by a page of another site (Sec-Fetch-Site: cross-site)"
        );
    }

    #[test]
    fn authority_of_the_target_replaces_host() {
        let mut head = head(http::Request::post("/").header("host", "a:1"));
        let form = b"http://b:2/";
        head.target = crate::http::RequestTarget::parse(&Method::POST, form).unwrap();
        head.headers
            .insert(header::ORIGIN, "http://b:2".parse().unwrap());
        assert_eq!(check(&head), Ok(()));
        head.headers
            .insert(header::ORIGIN, "http://a:1".parse().unwrap());
        assert!(check(&head).is_err());
    }
}
