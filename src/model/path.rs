//! Paths of URLs (RFC 3986): escapes and dot segments.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS};

/// Characters that are escaped in a decoded path: those that end a path, those that URLs must not
/// contain, and those that end an HTML attribute or begin a tag.
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

/// Resolves the dot segments of a path, including those spelled `%2e`, without leaving the root.
///
/// Empty segments count, so `//` is kept. A dot segment at the end leaves no slash behind, as with
/// kube-apiserver (C24, C25) and unlike RFC 3986 section 5.2.4. `path` must begin with a slash.
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

/// Returns 1 for `.`, 2 for `..`, with any dot spelled `%2e`, and 0 for other segments.
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

#[cfg(test)]
mod tests {
    use percent_encoding::{percent_decode_str, utf8_percent_encode};

    use super::*;

    #[test]
    fn borrows_paths_without_dot_segments() {
        for path in ["/", "//", "/a/b", "/a.b/c..", "/a%2Fb", "/a/"] {
            assert!(
                matches!(without_dot_segments(path), Cow::Borrowed(same) if same == path),
                "{path}"
            );
        }
    }

    #[test]
    fn resolves_dot_segments_below_the_root() {
        for (path, resolved) in [
            ("/.", "/"),
            ("/..", "/"),
            ("/../..", "/"),
            ("/../a", "/a"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/../../b", "/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a"),
            ("/a/b/../", "/a/"),
            ("/a/b/.", "/a/b"),
        ] {
            assert_eq!(without_dot_segments(path), resolved, "{path}");
        }
    }

    #[test]
    fn resolves_escaped_dots_in_either_case() {
        for (path, resolved) in [
            ("/a/%2e", "/a"),
            ("/a/%2E%2e/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/%2e./b", "/b"),
        ] {
            assert_eq!(without_dot_segments(path), resolved, "{path}");
        }
    }

    #[test]
    fn keeps_segments_that_only_contain_dots_and_escapes() {
        for path in [
            "/...",
            "/.hidden/a",
            "/a/..b/.c",
            "/%2e%2e%2e",
            "/%2",
            "/%2e%2",
            "/..%2f..",
            "/%252e%252e/a",
        ] {
            assert_eq!(without_dot_segments(path), path);
        }
    }

    #[test]
    fn counts_empty_segments() {
        for (path, resolved) in [("//../a", "/a"), ("/a//../b", "/a/b"), ("//./a", "//a")] {
            assert_eq!(without_dot_segments(path), resolved, "{path}");
        }
    }

    #[test]
    fn resolved_paths_have_no_dot_segments_left() {
        for path in [
            "/a/./../.././b",
            "/%2e/%2e%2e/./..",
            "/a/b/c/../../../../..",
        ] {
            let once = without_dot_segments(path).into_owned();
            assert_eq!(without_dot_segments(&once), once, "{path}");
        }
    }

    #[test]
    fn escaped_set_round_trips_and_leaves_no_markup() {
        let decoded = "/a b\"<c>?d#e%2F[f]{g}|h\\i^j`k\u{7f}ä";
        let escaped = utf8_percent_encode(decoded, ESCAPED).to_string();
        assert!(
            !escaped.contains([
                ' ', '"', '<', '>', '?', '#', '[', ']', '{', '}', '|', '\\', '^', '`'
            ]),
            "{escaped}"
        );
        assert_eq!(percent_decode_str(&escaped).decode_utf8().unwrap(), decoded);
        assert_eq!(
            utf8_percent_encode("/a-b_c.d~e:f@g!$&'()*+,;=", ESCAPED).to_string(),
            "/a-b_c.d~e:f@g!$&'()*+,;="
        );
    }
}
