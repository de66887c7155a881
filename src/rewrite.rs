//! Rewrites `Location` and the links of HTML pages to resolve through the bastion (CONFORMANCE C74,
//! C76 to C82).

mod body;
mod budget;
mod coding;
mod format;
mod html;
mod link;
mod rewriter;

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Method, header};
use percent_encoding::{AsciiSet, percent_encode};

pub use body::{PageError, RewrittenBody};
pub use budget::{Budget, Share};
pub use format::PageFormat;
pub use link::{InvalidUrl, LinkRewriter};
pub use rewriter::{BadPage, MAX_WORK_PER_SLICE, Rewriter};

/// Escapes only bytes beyond ASCII.
const BEYOND_ASCII: &AsciiSet = &AsciiSet::EMPTY;

/// Rewrites `Location` to resolve through the bastion.
///
/// # Errors
/// [`InvalidUrl`] if `Location` is not a URL: passed on, it could lead a browser out of the prefix.
pub fn rewrite_location(
    headers: &mut HeaderMap,
    links: impl FnOnce() -> LinkRewriter,
) -> Result<(), InvalidUrl> {
    let Some(location) = headers.get(header::LOCATION) else {
        return Ok(());
    };
    // A header may hold bytes that are not UTF-8; escaped, they reach the target unchanged.
    let text: Cow<'_, str> = percent_encode(location.as_bytes(), BEYOND_ASCII).into();
    if let Some(rewritten) = links().rewrite(&text)? {
        let value = HeaderValue::try_from(rewritten).map_err(|_| InvalidUrl(text.into_owned()))?;
        headers.insert(header::LOCATION, value);
    }
    Ok(())
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
