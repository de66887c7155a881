//! Lists in header values (RFC 9110 section 5.6.1).

use http::HeaderValue;

/// The elements of a value, without the empty ones. They are bytes, so that one that is not text
/// hides none of its neighbors: `Connection: x-secret, \xff` names `x-secret`.
pub fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}
