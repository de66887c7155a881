//! Comparison of header names as CGI-like backends (WSGI, PHP) see them, with `_` and `-` equal.

/// Returns true if `name` starts with `prefix` when `_` is treated as `-`. Almost all names differ
/// in length or the first bytes, so that the cost is that of one comparison.
pub fn cgi_starts_with(name: &str, prefix: &str) -> bool {
    let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte };
    name.len() >= prefix.len()
        && name
            .bytes()
            .zip(prefix.bytes())
            .all(|(a, b)| dashed(a) == dashed(b))
}
