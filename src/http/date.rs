//! The `Date` field (RFC 9110 section 6.6.1), formatted once per second and thread.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

thread_local! {
    /// The second since the Unix epoch, and its date.
    static NOW: RefCell<(u64, HeaderValue)> =
        const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// Appends the current date.
pub(super) fn write_now(out: &mut Vec<u8>) {
    with_now(|date| out.extend_from_slice(date.as_bytes()));
}

/// Returns the current date.
pub(super) fn now() -> HeaderValue {
    with_now(HeaderValue::clone)
}

/// Calls `take` with the current date in the form of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn with_now<T>(take: impl FnOnce(&HeaderValue) -> T) -> T {
    let second = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    NOW.with_borrow_mut(|(formatted, date)| {
        if *formatted != second || date.is_empty() {
            let mut text = String::new();
            let timestamp = i64::try_from(second)
                .ok()
                .and_then(|second| Timestamp::from_second(second).ok())
                .unwrap_or_default();
            // Fails only for years that the format cannot express.
            let _ = DateTimePrinter::new().print_timestamp_rfc9110(&timestamp, &mut text);
            *date = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
            *formatted = second;
        }
        take(date)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_date_as_http_requires() {
        let mut out = Vec::new();
        write_now(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            (text.len(), &text[3..5], &text[25..]),
            (29, ", ", " GMT"),
            "{text}"
        );
    }
}
