//! Values of attributes that hold URLs.

use std::borrow::Cow;

use super::super::budget::PageLimit;
use super::super::link::LinkRewriter;
use super::bounds::MAX_CANDIDATES;

/// Rewrites a URL as browsers read it. Returns `None` if it does not change; invalid URLs are kept.
pub fn rewrite_url(links: &LinkRewriter, value: &str) -> Option<String> {
    links.rewrite(&as_read(value)).ok().flatten()
}

/// Returns a URL as browsers read it (WHATWG URL section 4.4): without spaces and control
/// characters around it, without tabs and line breaks, and with slashes for backslashes before its
/// query.
fn as_read(value: &str) -> Cow<'_, str> {
    let value = value.trim_matches(|c: char| c <= ' ');
    if !value.contains(['\t', '\n', '\r', '\\']) {
        return Cow::Borrowed(value);
    }
    let mut read: String = value
        .chars()
        .filter(|c| !matches!(c, '\t' | '\n' | '\r'))
        .collect();
    if !read.contains('\\') || has_other_scheme(&read) {
        return Cow::Owned(read);
    }
    let end = read.find(['?', '#']).unwrap_or(read.len());
    let (path, rest) = read.split_at(end);
    let mut slashed = String::with_capacity(read.len());
    let mut before = '/';
    for c in path.chars() {
        // Behind a byte beyond ASCII, it may be the second byte of a character (Shift JIS).
        let is_slash = c == '\\' && before.is_ascii();
        slashed.push(if is_slash { '/' } else { c });
        before = c;
    }
    slashed.push_str(rest);
    read = slashed;
    Cow::Owned(read)
}

/// Returns true for URLs with a scheme in which a backslash is no slash.
fn has_other_scheme(url: &str) -> bool {
    let is_of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let Some((scheme, _)) = url.split_once(':') else {
        return false;
    };
    let special = ["http", "https", "ws", "wss", "ftp", "file"];
    scheme.chars().all(is_of_scheme)
        && !special
            .iter()
            .any(|special| scheme.eq_ignore_ascii_case(special))
}

/// Rewrites URLs that are separated by spaces. Returns `None` if none of them changes.
///
/// # Errors
/// [`PageLimit::Candidates`] if the list is too long.
pub fn rewrite_list(links: &LinkRewriter, value: &str) -> Result<Option<String>, PageLimit> {
    let (mut out, mut changed) = (String::new(), false);
    for (index, part) in value
        .split_inclusive(|c: char| c.is_ascii_whitespace())
        .enumerate()
    {
        if index >= MAX_CANDIDATES {
            return Err(PageLimit::Candidates);
        }
        let url = part.trim_ascii_end();
        match rewrite_url(links, url) {
            Some(rewritten) => {
                changed = true;
                out.push_str(&rewritten);
                out.push_str(&part[url.len()..]);
            }
            None => out.push_str(part),
        }
    }
    Ok(changed.then_some(out))
}

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
        match rewrite_url(links, url) {
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
    let time = value.trim_ascii_start();
    let rest = time.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    if rest.len() == time.len() {
        return None;
    }
    // A URL follows behind a space, a semicolon or a comma, with or without `url=` before it.
    if !rest.starts_with(|c: char| c.is_ascii_whitespace() || c == ';' || c == ',') {
        return None;
    }
    let rest = rest.trim_ascii_start();
    let rest = rest.strip_prefix([';', ',']).unwrap_or(rest);
    let mut url = rest.trim_ascii_start();
    let word = url.get(..3).unwrap_or_default();
    if word.eq_ignore_ascii_case("url")
        && let Some(after) = url[3..].trim_ascii_start().strip_prefix('=')
    {
        url = after.trim_ascii_start();
    }
    let unquoted = url.strip_prefix(['"', '\'']);
    let end = unquoted.and_then(|unquoted| unquoted.find(&url[..1]));
    let url = unquoted.unwrap_or(url);
    let start = value.len() - url.len();
    let url = url[..end.unwrap_or(url.len())].trim_ascii_end();
    let rewritten = rewrite_url(links, url)?;
    Some([&value[..start], &rewritten, &value[start + url.len()..]].concat())
}
