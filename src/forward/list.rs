//! Lists in header values (RFC 9110 section 5.6.1).

use http::HeaderValue;

/// The tokens of a value, without the empty ones.
pub(super) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|token| !token.is_empty())
}

/// Tokens are compared without regard to case.
pub(super) fn is(token: &str, expected: &str) -> bool {
    token.eq_ignore_ascii_case(expected)
}
