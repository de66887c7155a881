//! Lists in header values (RFC 9110 section 5.6.1).

use http::HeaderValue;

/// Returns the non-empty elements of a value. Elements are bytes, because one that is not text must
/// not hide the others: `Connection: x-secret, \xff` names `x-secret`.
pub fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}
