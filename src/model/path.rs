//! Paths of URLs (RFC 3986): escapes and dot segments.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// Characters that Go's `net/url` escapes in a path.
const ESCAPED_BY_GO: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');

/// Sub-paths, the paths after `/proxy`, that are decoded and encoded again as kube-apiserver does
/// with all of them, so that `%2F` becomes `/`. Endpoints get other sub-paths as sent (C26).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SubPathDecoding {
    /// A single segment with an encoded slash: the generated clients of Kubernetes (Python,
    /// JavaScript, Java) encode a whole sub-path as one. Segments that begin with `@`, the scoped
    /// packages of npm, are not decoded.
    #[default]
    SingleSegment,
    /// All sub-paths.
    Always,
    /// None.
    Never,
}

impl SubPathDecoding {
    /// Returns true if `sub_path`, which begins with a slash, is decoded.
    fn applies_to(self, sub_path: &str) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::SingleSegment => {
                let segment = &sub_path[1..];
                // The shortest search first: most sub-paths have no escapes.
                segment.contains('%')
                    && !segment.contains('/')
                    && !segment.starts_with('@')
                    && (segment.contains("%2F") || segment.contains("%2f"))
            }
        }
    }
}

/// Returns the path for an endpoint, from a sub-path that begins with a slash.
pub fn endpoint_path(sub_path: &str, decoding: SubPathDecoding) -> Cow<'_, str> {
    if decoding.applies_to(sub_path) {
        let canonical = canonical(sub_path);
        // After the decoding, which may reveal dot segments.
        Cow::Owned(without_dot_segments(&canonical).into_owned())
    } else {
        without_dot_segments(sub_path)
    }
}

/// Decodes a path and encodes it again in Go's canonical form. Repeated slashes become one (C27).
fn canonical(path: &str) -> String {
    let mut decoded: Vec<u8> = percent_decode_str(path).collect();
    decoded.dedup_by(|next, previous| (*next, *previous) == (b'/', b'/'));
    percent_encode(&decoded, ESCAPED_BY_GO).to_string()
}

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
    use percent_encoding::utf8_percent_encode;

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
    fn decodes_single_segments_with_an_encoded_slash_by_default() {
        for (sub_path, expected) in [
            ("/metrics%2Fcadvisor", "/metrics/cadvisor"),
            ("/metrics%2fcadvisor%2f", "/metrics/cadvisor/"),
            ("/%2Fmetrics", "/metrics"),
            ("/%2F", "/"),
            ("/%2F%2F", "/"),
            ("/a%2F%2Fb", "/a/b"),
            ("/%40scope%2Fname", "/@scope/name"),
            ("/a%2Fb%3Fc%23d", "/a/b%3Fc%23d"),
            ("/a%2Fb%20c%25d", "/a/b%20c%25d"),
            ("/a%2Fb%252Fc", "/a/b%252Fc"),
            ("/a%2F%C3%A9%FF", "/a/%C3%A9%FF"),
            ("/a%2F(b)%5B", "/a/%28b%29%5B"),
            ("/..%2F..%2Fetc", "/etc"),
            ("/a%2F%2E%2E%2Fb", "/b"),
            ("/a%2F..", "/"),
            ("/a%2Fb%2F.", "/a/b"),
        ] {
            assert_eq!(
                endpoint_path(sub_path, SubPathDecoding::default()),
                expected,
                "{sub_path}"
            );
        }
    }

    #[test]
    fn keeps_other_sub_paths_as_sent_by_default() {
        for sub_path in [
            "/",
            "/@scope%2fname",
            "/metrics%2Fcadvisor/",
            "/api/queues/%2F/name",
            "/projects/group%2Fproject",
            "//a%2Fb",
            "/a%20(b)",
            "/a%252Fb",
            "/%41",
        ] {
            assert_eq!(
                endpoint_path(sub_path, SubPathDecoding::default()),
                sub_path
            );
        }
    }

    #[test]
    fn decodes_all_or_no_sub_paths_on_request() {
        for (sub_path, decoded) in [
            ("/metrics%2Fcadvisor", "/metrics/cadvisor"),
            ("/@scope%2fname", "/@scope/name"),
            ("/api/queues/%2F/name", "/api/queues/name"),
            ("/%41(b)", "/A%28b%29"),
            ("//a/", "/a/"),
            ("/a/%2e%2e/b", "/b"),
        ] {
            assert_eq!(
                endpoint_path(sub_path, SubPathDecoding::Always),
                decoded,
                "{sub_path}"
            );
        }
        for sub_path in ["/metrics%2Fcadvisor", "/@scope%2fname", "//a/%41(b)"] {
            assert_eq!(endpoint_path(sub_path, SubPathDecoding::Never), sub_path);
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
