//! The `Date` field (RFC 9110 section 6.6.1), formatted once per second and thread.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

thread_local! {
    /// The second since the Unix epoch, and its text.
    static NOW: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Appends the current date in the form of `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(super) fn write_now(out: &mut Vec<u8>) {
    let second = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    NOW.with_borrow_mut(|(formatted, text)| {
        if *formatted != second || text.is_empty() {
            text.clear();
            let timestamp = i64::try_from(second)
                .ok()
                .and_then(|second| Timestamp::from_second(second).ok())
                .unwrap_or_default();
            // Fails only for years that the format cannot express.
            let _ = DateTimePrinter::new().print_timestamp_rfc9110(&timestamp, &mut *text);
            *formatted = second;
        }
        out.extend_from_slice(text.as_bytes());
    });
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
