//! Rewrites headers of responses and the links of HTML pages to resolve through the bastion
//! (CONFORMANCE C73 to C82).

mod body;
mod budget;
mod coding;
mod cookies;
mod format;
mod headers;
mod html;
mod link;
mod rewriter;
mod sniff;
mod validators;

use http::{HeaderMap, HeaderValue, Method, header};

use crate::model::Target;

pub use body::{PageError, RewrittenBody};
pub use budget::{Budget, Share};
pub use cookies::CookieScope;
pub use format::PageFormat;
pub use headers::rewrite_headers;
pub use link::{InvalidUrl, LinkRewriter};
pub use rewriter::{BadPage, MAX_WORK_PER_SLICE, Rewriter};
pub use sniff::is_html;
pub use validators::{
    RequestTags, describe_head, describe_rewritten, is_part_to_join, request_whole,
};

/// Rewrites the headers of a request that its client has from rewritten responses: cookies and
/// entity tags. Returns what its response depends on.
pub fn restore_headers(target: &Target<'_>, headers: &mut HeaderMap) -> (CookieScope, RequestTags) {
    // One pass over the names is cheaper than a lookup for each.
    let (mut has_cookies, mut has_tags) = (false, false);
    let (mut has_language, mut is_browser) = (false, false);
    for name in headers.keys() {
        match name.as_str() {
            "cookie" => has_cookies = true,
            "if-match" | "if-none-match" => has_tags = true,
            "accept-language" => has_language = true,
            // Only browsers send fetch metadata.
            "sec-fetch-mode" => is_browser = true,
            _ => {}
        }
    }
    // Browsers send none over plain HTTP to other hosts than their own, nor for WebSockets. There,
    // they differ from other programs with a name like theirs by the language of their user.
    is_browser |= has_language
        && headers
            .get(header::USER_AGENT)
            .is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla/"));
    let cookies = if has_cookies {
        CookieScope::enter(target, headers, is_browser)
    } else {
        CookieScope::without_cookies(is_browser)
    };
    let tags = if has_tags {
        RequestTags::restore(headers)
    } else {
        RequestTags::default()
    };
    (cookies, tags)
}

/// Removes the content codings that the rewriter cannot decode (`br`, `zstd`) from
/// `Accept-Encoding` of a request for an HTML page. Other requests keep them: their responses pass
/// unmodified.
pub fn narrow_accept_encoding(method: &Method, headers: &mut HeaderMap) {
    let asks_for_page = *method == Method::GET
        && headers
            .get_all(header::ACCEPT)
            .iter()
            .any(|accept| accept.to_str().is_ok_and(|a| a.contains("text/html")));
    if !asks_for_page || !headers.contains_key(header::ACCEPT_ENCODING) {
        return;
    }
    let accepted: Vec<_> = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let supported: Vec<_> = accepted
        .iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|entry| {
            let coding = entry.split(';').next().unwrap_or_default().trim();
            ["gzip", "x-gzip", "deflate", "identity"]
                .iter()
                .any(|supported| supported.eq_ignore_ascii_case(coding))
        })
        .collect();
    // An empty or missing header would allow any coding (RFC 9110 section 12.5.3).
    let narrowed = if supported.is_empty() {
        "identity".to_owned()
    } else {
        supported.join(", ")
    };
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::try_from(narrowed).expect("parts of header values"),
    );
}

#[cfg(test)]
mod tests;
