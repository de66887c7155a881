//! Cookies of one target (CONFORMANCE C73). All targets share the origin of the bastion, and
//! browsers select cookies by their paths only, which anything on the host can choose.
//!
//! Responses keep cookies below the path of their target. This does not concern cookies that have a
//! shorter path already: set without the bastion, by scripts, or by something else on the host. A
//! browser sends names and values only, but it sends longer paths first (RFC 6265 section 5.4).
//! Each target therefore has a *boundary*: a cookie whose path is shorter than that of any cookie
//! of the target and matches no other target. What a browser sends after the boundary, or without
//! one, is not of the target, and is removed.
//!
//! Names prefixed with `__Host-` require the path `/`. They get the tag of their target in their
//! name, which is removed on the way to the target.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use memchr::memmem;

use super::link::{LinkRewriter, text};
use crate::model::Target;

/// Name of the boundary of a target. Its value is the tag of the target.
const BOUNDARY: &str = "kube-bastion-boundary";

/// Name of the boundary that is sent along with cookies for cross-site requests. Browsers accept it
/// over a secure connection only, hence the two.
const CROSS_SITE_BOUNDARY: &str = "kube-bastion-boundary-cross-site";

/// 400 days in seconds, the maximum of browsers (RFC 6265bis). The boundary must not expire before
/// the cookies of its target.
const BOUNDARY_MAX_AGE: u32 = 400 * 24 * 60 * 60;

/// Prefixes of the names of cookies that are bound to a host and to the path `/` (RFC 6265bis
/// section 4.1.3), the longer one first.
const HOST_PREFIXES: [&[u8]; 2] = [b"__Host-Http-", b"__Host-"];

/// Marks the tag of a target in the name of a cookie, behind its prefix. All names of the bastion
/// contain it.
const TAG_MARK: &[u8] = b"kube-bastion-";

/// Length of a tag: 96 bits in base64.
const TAG_BYTES: usize = 16;

/// Cookies of the target of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CookieScope {
    /// The client is a browser that does not have the boundary of the target.
    lacks_boundary: bool,
}

impl CookieScope {
    /// Returns the scope of a request without cookies of the bastion.
    pub fn without_cookies(is_browser: bool) -> Self {
        Self {
            lacks_boundary: is_browser,
        }
    }

    /// Removes the cookies of a request that are not of its target: those that a browser does not
    /// have below the path of the target, and those with the tag of another target. Clients other
    /// than browsers send the cookies that their user chose, and these pass.
    pub fn enter(target: &Target<'_>, headers: &mut HeaderMap, is_browser: bool) -> Self {
        let is_marked = headers
            .get_all(COOKIE)
            .iter()
            .any(|value| memmem::find(value.as_bytes(), TAG_MARK).is_some());
        if !is_marked {
            // Without a search of the names: most requests have no cookie of the bastion.
            if is_browser {
                headers.remove(COOKIE);
            }
            return Self::without_cookies(is_browser);
        }
        let tag = tag(target);
        let (kept, has_boundary) = own_cookies(headers, &tag, is_browser);
        match HeaderValue::from_bytes(&kept) {
            Ok(cookies) if !cookies.is_empty() => {
                headers.insert(COOKIE, cookies);
            }
            _ => {
                headers.remove(COOKIE);
            }
        }
        Self {
            lacks_boundary: is_browser && !has_boundary,
        }
    }

    /// Returns true if the client needs the boundary.
    pub fn lacks_boundary(self) -> bool {
        self.lacks_boundary
    }

    /// Keeps the cookies of a response at its target, and adds the boundary if the browser lacks
    /// it.
    pub fn leave(
        self,
        target: &Target<'_>,
        headers: &mut HeaderMap,
        links: impl FnOnce() -> LinkRewriter,
    ) {
        let mut is_partitioned = false;
        if headers.contains_key(SET_COOKIE) {
            let links = links();
            for (_, value) in headers.iter_mut().filter(|(name, _)| **name == SET_COOKIE) {
                let cookie = value.as_bytes();
                is_partitioned |= attributes(cookie).any(|part| is_attribute(part, b"partitioned"));
                let scoped = scope_cookie(target, &links, cookie);
                if let Ok(scoped) = HeaderValue::from_bytes(&scoped) {
                    *value = scoped;
                }
            }
        }
        if !self.lacks_boundary && !is_partitioned {
            return;
        }
        let prefix = target.shown_prefix();
        let path = prefix.rsplit_once('/').map_or("", |(path, _)| path);
        let boundary = |name, attributes| {
            let value = format!(
                "{name}={}; Path={path}; Max-Age={BOUNDARY_MAX_AGE}; HttpOnly{attributes}",
                tag(target)
            );
            HeaderValue::try_from(value).ok()
        };
        let cross_site = if is_partitioned {
            "; Secure; SameSite=None; Partitioned"
        } else {
            "; Secure; SameSite=None"
        };
        for (name, attributes) in [(BOUNDARY, ""), (CROSS_SITE_BOUNDARY, cross_site)] {
            if let Some(boundary) = boundary(name, attributes) {
                headers.append(SET_COOKIE, boundary);
            }
        }
    }
}

/// Returns a hash of the path of a target, which makes names of cookies unique to it.
fn tag(target: &Target<'_>) -> String {
    let hash = digest::digest(&digest::SHA256, target.plain_prefix().as_bytes());
    let mut tag = URL_SAFE_NO_PAD.encode(hash);
    tag.truncate(TAG_BYTES);
    tag
}

/// Returns the cookies of the target, and whether the request has its boundary.
fn own_cookies(headers: &HeaderMap, tag: &str, is_browser: bool) -> (Vec<u8>, bool) {
    let (mut before, mut tagged, mut has_boundary) = (Vec::new(), Vec::new(), false);
    let values = headers.get_all(COOKIE).iter();
    for cookie in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b';')) {
        let cookie = cookie.trim_ascii();
        let (name, value) = match memchr::memchr(b'=', cookie) {
            Some(at) => (cookie[..at].trim_ascii_end(), &cookie[at + 1..]),
            None => (cookie, &b""[..]),
        };
        if name == BOUNDARY.as_bytes() || name == CROSS_SITE_BOUNDARY.as_bytes() {
            has_boundary |= value == tag.as_bytes();
        } else if let Some((prefix, rest)) = split_tagged(cookie) {
            if let Some(rest) = rest.strip_prefix(tag.as_bytes()) {
                push(&mut tagged, &[prefix, &rest[1..]].concat());
            }
        } else if !has_boundary && !cookie.is_empty() {
            push(&mut before, cookie);
        }
    }
    let mut kept = if has_boundary || !is_browser {
        before
    } else {
        Vec::new()
    };
    if !tagged.is_empty() {
        push(&mut kept, &tagged);
    }
    (kept, has_boundary)
}

fn push(cookies: &mut Vec<u8>, cookie: &[u8]) {
    if !cookies.is_empty() {
        cookies.extend_from_slice(b"; ");
    }
    cookies.extend_from_slice(cookie);
}

/// Splits a cookie with a tag into the prefix of its name, and the rest behind the mark: the tag, a
/// hyphen, and the rest of the name.
fn split_tagged(cookie: &[u8]) -> Option<(&[u8], &[u8])> {
    let (prefix, rest) = split_host_prefix(cookie)?;
    let rest = rest.strip_prefix(TAG_MARK)?;
    (rest.get(TAG_BYTES) == Some(&b'-')).then_some((prefix, rest))
}

/// Splits off the `__Host-` of a name. Browsers compare it without case.
fn split_host_prefix(cookie: &[u8]) -> Option<(&[u8], &[u8])> {
    HOST_PREFIXES.iter().find_map(|prefix| {
        let (start, rest) = cookie.split_at_checked(prefix.len())?;
        start.eq_ignore_ascii_case(prefix).then_some((start, rest))
    })
}

/// Moves the path of a cookie below the prefix, and removes its domain, so that browsers send it
/// neither to other targets nor to other hosts. A cookie that is bound to the path `/` gets the tag
/// of the target in its name instead.
fn scope_cookie(target: &Target<'_>, links: &LinkRewriter, cookie: &[u8]) -> Vec<u8> {
    let mut parts = cookie.split(|byte| *byte == b';');
    let pair = parts.next().unwrap_or_default();
    let host_bound = split_host_prefix(pair.trim_ascii_start());
    let mut out = match host_bound {
        Some((prefix, rest)) => [prefix, TAG_MARK, tag(target).as_bytes(), b"-", rest].concat(),
        None => pair.to_owned(),
    };
    // Browsers use the last path (RFC 6265 section 5.3). Others would only grow.
    let mut paths = attributes(cookie)
        .filter(|part| is_attribute(part, b"path"))
        .count();
    // Without a path, browsers take the directory of the request. That of `…/proxy` is not below
    // it.
    let mut needs_path = host_bound.is_none() && target.rest.is_empty();
    for attribute in parts {
        if is_attribute(attribute, b"domain") {
            continue;
        }
        if is_attribute(attribute, b"path") && host_bound.is_none() {
            paths -= 1;
            if paths > 0 {
                continue;
            }
            if let Some(path) = path_of(attribute) {
                out.extend_from_slice(b"; Path=");
                out.extend_from_slice(links.prefixed(&text(path)).as_bytes());
                needs_path = false;
                continue;
            }
        }
        out.push(b';');
        out.extend_from_slice(attribute);
    }
    if needs_path {
        out.extend_from_slice(b"; Path=");
        out.extend_from_slice(links.prefixed("/").as_bytes());
    }
    out
}

/// Returns the path of a `Path` attribute, or `None` if clients ignore it. curl accepts one in
/// quotes.
fn path_of(attribute: &[u8]) -> Option<&[u8]> {
    let at = memchr::memchr(b'=', attribute)?;
    let path = attribute[at + 1..].trim_ascii();
    let unquoted = path
        .strip_prefix(b"\"")
        .map(|path| path.strip_suffix(b"\"").unwrap_or(path));
    let path = unquoted.unwrap_or(path);
    path.starts_with(b"/").then_some(path)
}

/// Returns the attributes of a cookie.
fn attributes(cookie: &[u8]) -> impl Iterator<Item = &[u8]> {
    cookie.split(|byte| *byte == b';').skip(1)
}

/// Returns true if an attribute of a cookie has a name, which is lower-case here.
fn is_attribute(attribute: &[u8], name: &[u8]) -> bool {
    let found = attribute.split(|byte| *byte == b'=').next();
    found.is_some_and(|found| found.trim_ascii().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests;
