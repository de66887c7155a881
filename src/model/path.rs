//! Paths of URLs (RFC 3986).

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS};

/// What stands escaped in a path that was decoded: whatever would end it, whatever is no part of a
/// URL, and whatever could end an attribute or begin a tag.
pub const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b']')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The path with its dot segments resolved, `%2e` spelled or not; none climbs above the root. Empty
/// segments are segments: `//` stays. A dot segment at the end leaves no slash behind, as with the
/// apiserver (C24, C25) and unlike RFC 3986 section 5.2.4. `path` begins with a slash.
pub fn without_dot_segments(path: &str) -> Cow<'_, str> {
    if !(path.contains("/.") || path.contains("/%2")) {
        return Cow::Borrowed(path);
    }
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match dots(segment) {
            0 => kept.push(segment),
            1 => {}
            _ => {
                kept.pop();
            }
        }
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in kept {
        resolved.push('/');
        resolved.push_str(segment);
    }
    if resolved.is_empty() {
        Cow::Borrowed("/")
    } else {
        Cow::Owned(resolved)
    }
}

/// 1 for `.`, 2 for `..`, with `%2e` for any dot; 0 for anything else.
fn dots(segment: &str) -> u8 {
    let dot = |rest: &[u8]| match rest {
        [b'.', ..] => 1,
        [b'%', b'2', b'e' | b'E', ..] => 3,
        _ => 0,
    };
    let segment = segment.as_bytes();
    let first = dot(segment);
    let second = dot(&segment[first..]);
    match (first, second) {
        (0, _) => 0,
        (first, 0) if first == segment.len() => 1,
        (first, second) if second > 0 && first + second == segment.len() => 2,
        _ => 0,
    }
}
