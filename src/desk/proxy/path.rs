//! Paths of requests, and the prefixes below which the proxy serves.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Resolves dot segments and removes empty ones, as Go's `ServeMux` does. Escapes stay as they are,
/// and so does a slash at the end.
pub fn clean(path: &str) -> Cow<'_, str> {
    if is_clean(path) {
        return Cow::Borrowed(path);
    }
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let mut cleaned = String::with_capacity(path.len() + 1);
    for segment in &segments {
        cleaned.push('/');
        cleaned.push_str(segment);
    }
    // The slash of a dot segment at the end is not one of the path.
    if segments.is_empty() || path.ends_with('/') {
        cleaned.push('/');
    }
    Cow::Owned(cleaned)
}

fn is_clean(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return path.is_empty();
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    path == "/"
        || rest
            .split('/')
            .all(|segment| !matches!(segment, "" | "." | ".."))
}

/// Prefix of paths, which begins and ends with a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

/// Prefix without a slash at its start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{prefix:?} is not a path prefix; it begins with a slash, such as /custom/")]
pub struct InvalidPrefix {
    prefix: String,
}

impl Prefix {
    /// Parses a prefix and adds the slash at its end if it lacks one.
    ///
    /// # Errors
    /// [`InvalidPrefix`] if it does not begin with a slash.
    pub fn parse(text: &str) -> Result<Self, InvalidPrefix> {
        if !text.starts_with('/') {
            let prefix = text.to_owned();
            return Err(InvalidPrefix { prefix });
        }
        let mut prefix = clean(text).into_owned();
        if !prefix.ends_with('/') {
            prefix.push('/');
        }
        Ok(Self(prefix))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the rest of a path below the prefix, with the slash that the prefix ends with. The
    /// segments of the path are compared decoded.
    pub fn strip<'p>(&self, path: &'p str) -> Option<&'p str> {
        let mut rest = path;
        for segment in self.0.split('/').skip(1).filter(|part| !part.is_empty()) {
            let (first, _) = rest.strip_prefix('/')?.split_once('/')?;
            if !percent_decode_str(first).eq(segment.bytes()) {
                return None;
            }
            rest = &rest[first.len() + 1..];
        }
        rest.starts_with('/').then_some(rest)
    }

    /// Returns true if the path lacks only the slash at the end of the prefix.
    pub fn lacks_slash(&self, path: &str) -> bool {
        !path.ends_with('/') && self.strip(&format!("{path}/")) == Some("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_paths_as_go_does() {
        for (path, expected) in [
            ("", ""),
            ("/", "/"),
            ("/a", "/a"),
            ("/a/", "/a/"),
            ("//", "/"),
            ("//a", "/a"),
            ("/a//b/", "/a/b/"),
            ("/a///", "/a/"),
            ("/./a/.", "/a"),
            ("/a/./", "/a/"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a"),
            ("/a/b/../", "/a/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a%2F..%2Fb", "/a%2F..%2Fb"),
            ("/%2e%2e/a", "/%2e%2e/a"),
            ("/.a/..b/...", "/.a/..b/..."),
            ("a/b", "/a/b"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
    }

    #[test]
    fn completes_prefixes() {
        for (text, expected) in [
            ("/", "/"),
            ("/custom", "/custom/"),
            ("/custom/", "/custom/"),
            ("//a//b", "/a/b/"),
        ] {
            assert_eq!(Prefix::parse(text).unwrap().as_str(), expected);
        }
        for text in ["", "custom/", "k8s.example/"] {
            let error = Prefix::parse(text).unwrap_err().to_string();
            assert!(error.contains("begins with a slash"), "{error}");
        }
    }

    #[test]
    fn strips_prefix_and_keeps_a_slash() {
        for (prefix, path, expected) in [
            ("/", "/metrics", Some("/metrics")),
            ("/", "/", Some("/")),
            ("/custom/", "/custom/api/metrics", Some("/api/metrics")),
            ("/custom/", "/custom/", Some("/")),
            ("/custom/", "/cust%6fm/a%2Fb", Some("/a%2Fb")),
            ("/a/b/", "/a/b/c/", Some("/c/")),
            ("/custom/", "/custom", None),
            ("/custom/", "/customs/a", None),
            ("/custom/", "/metrics", None),
            ("/custom/", "/custom%2Fapi", None),
            ("/a/b/", "/a/", None),
            ("/", "", None),
        ] {
            assert_eq!(
                Prefix::parse(prefix).unwrap().strip(path),
                expected,
                "{prefix} {path}"
            );
        }
    }

    #[test]
    fn finds_path_without_slash() {
        let prefix = Prefix::parse("/a/b/").unwrap();
        assert!(prefix.lacks_slash("/a/b"));
        for path in ["/a/b/", "/a/b/c", "/a", "/", ""] {
            assert!(!prefix.lacks_slash(path), "{path}");
        }
        let root = Prefix::parse("/").unwrap();
        assert!(!root.lacks_slash("/") && !root.lacks_slash("/a"));
    }
}
