//! Rewrites headers of responses and the links of HTML pages to resolve through the bastion
//! (CONFORMANCE C73 to C82).

mod body;
mod budget;
mod coding;
mod format;
mod headers;
mod html;
mod link;
mod rewriter;

use http::{HeaderMap, HeaderValue, Method, header};

pub use body::{PageError, RewrittenBody};
pub use budget::{Budget, Share};
pub use format::PageFormat;
pub use headers::{describe_rewritten, rewrite_headers};
pub use link::{InvalidUrl, LinkRewriter};
pub use rewriter::{BadPage, MAX_WORK_PER_SLICE, Rewriter};

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
