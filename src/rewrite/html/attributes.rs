//! Attributes that hold links among other text.

use super::super::budget::PageLimit;
use super::super::link::LinkRewriter;
use super::bounds::MAX_CANDIDATES;

/// Rewrites image candidates, `url descriptor, url descriptor` (WHATWG HTML section 4.8.4.2.1). A
/// URL may contain commas, but not at its end. Returns `None` if no link changes.
///
/// # Errors
/// [`PageLimit::Candidates`] if the list is too long.
pub fn rewrite_source_set(links: &LinkRewriter, value: &str) -> Result<Option<String>, PageLimit> {
    let mut out = String::new();
    let mut candidates = 0;
    let mut changed = false;
    let mut rest = value;
    loop {
        let start = rest
            .find(|c: char| !(c.is_ascii_whitespace() || c == ','))
            .unwrap_or(rest.len());
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        if rest.is_empty() {
            return Ok(changed.then_some(out));
        }
        candidates += 1;
        if candidates > MAX_CANDIDATES {
            return Err(PageLimit::Candidates);
        }
        let end = rest
            .find(|c: char| c.is_ascii_whitespace())
            .unwrap_or(rest.len());
        let url = rest[..end].trim_end_matches(',');
        // Invalid URLs are kept, as in other attributes.
        match links.rewrite(url).ok().flatten() {
            Some(rewritten) => {
                changed = true;
                out.push_str(&rewritten);
            }
            None => out.push_str(url),
        }
        // A comma directly after a URL ends its candidate. Otherwise a descriptor follows, up to
        // the next comma outside parentheses.
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

/// Rewrites the URL of `<meta http-equiv=refresh content="5; url=/x">` (WHATWG HTML section
/// 4.2.5.3). Returns `None` if it does not change.
pub fn rewrite_refresh(links: &LinkRewriter, value: &str) -> Option<String> {
    // Browsers accept a comma, too, and a URL without the `url=` before it.
    let after_time = value.find([';', ','])? + 1;
    let rest = &value[after_time..];
    let skipped = rest.len() - rest.trim_ascii_start().len();
    let mut start = after_time + skipped;
    if value
        .get(start..start + 3)
        .is_some_and(|word| word.eq_ignore_ascii_case("url"))
    {
        let after = value[start + 3..].trim_ascii_start();
        if let Some(after) = after.strip_prefix('=') {
            start = value.len() - after.trim_ascii_start().len();
        }
    }
    let quote = value[start..]
        .chars()
        .next()
        .filter(|c| matches!(c, '"' | '\''));
    let start = start + quote.map_or(0, char::len_utf8);
    let end = quote
        .and_then(|quote| value[start..].find(quote))
        .map_or(value.len(), |end| start + end);
    let url = value[start..end].trim_ascii_end();
    let rewritten = links.rewrite(url).ok().flatten()?;
    Some([&value[..start], &rewritten, &value[start + url.len()..]].concat())
}
