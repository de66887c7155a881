//! Ranges of bytes (RFC 9110 section 14).

/// Part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub start: u64,
    pub length: u64,
}

/// Range that cannot be sent. The texts are those of Go's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RangeError {
    #[error("invalid range")]
    Invalid,
    #[error("invalid range: failed to overlap")]
    NoOverlap,
}

impl Part {
    /// Returns the value of `Content-Range` for a file of `size` bytes.
    pub fn content_range(&self, size: u64) -> String {
        // A part without bytes ends before its start, at -1 for the start of the file.
        let last = i128::from(self.start) + i128::from(self.length) - 1;
        format!("bytes {}-{last}/{size}", self.start)
    }
}

/// Parses the value of `Range` for a file of `size` bytes. `None` if the whole file is sent: for
/// several ranges, which a server may ignore, and for an empty file.
///
/// # Errors
/// [`RangeError`] if the value is malformed, or all ranges are behind the end of the file.
pub(super) fn parse(value: &str, size: u64) -> Result<Option<Part>, RangeError> {
    let ranges = value.strip_prefix("bytes=").ok_or(RangeError::Invalid)?;
    let ranges = ranges
        .split(',')
        .map(str::trim)
        .filter(|range| !range.is_empty());
    let mut parts = Vec::new();
    let mut is_outside = false;
    for range in ranges {
        match parse_one(range, size)? {
            Some(part) => parts.push(part),
            None => is_outside = true,
        }
    }
    match parts[..] {
        [] if is_outside && size > 0 => Err(RangeError::NoOverlap),
        [part] => Ok(Some(part)),
        _ => Ok(None),
    }
}

/// Parses one range. `None` if it begins behind the end of the file.
fn parse_one(range: &str, size: u64) -> Result<Option<Part>, RangeError> {
    let (start, end) = range.split_once('-').ok_or(RangeError::Invalid)?;
    let (start, end) = (start.trim(), end.trim());
    if start.is_empty() {
        // The last bytes.
        let length = number(end)?.min(size);
        let start = size - length;
        return Ok(Some(Part { start, length }));
    }
    let start = number(start)?;
    if start >= size {
        return Ok(None);
    }
    let last = if end.is_empty() {
        size - 1
    } else {
        number(end)?.min(size - 1)
    };
    if last < start {
        return Err(RangeError::Invalid);
    }
    let length = last - start + 1;
    Ok(Some(Part { start, length }))
}

fn number(text: &str) -> Result<u64, RangeError> {
    // `parse` accepts a plus sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RangeError::Invalid);
    }
    text.parse().map_err(|_| RangeError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_ranges_as_go_does() {
        let part = |start, length| Ok(Some(Part { start, length }));
        for (value, expected) in [
            ("bytes=0-4", part(0, 5)),
            ("bytes=2-", part(2, 8)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-20", part(0, 10)),
            ("bytes= 0 - 4 ", part(0, 5)),
            ("bytes=5-100", part(5, 5)),
            ("bytes=20-30,0-1", part(0, 2)),
            ("bytes=0-1,4-5", Ok(None)),
            ("bytes=", Ok(None)),
            ("bytes=10-", Err(RangeError::NoOverlap)),
            ("bytes=20-30", Err(RangeError::NoOverlap)),
            ("bytes=5-4", Err(RangeError::Invalid)),
            ("bytes=--5", Err(RangeError::Invalid)),
            ("bytes=-", Err(RangeError::Invalid)),
            ("bytes=+1-2", Err(RangeError::Invalid)),
            ("bytes=x", Err(RangeError::Invalid)),
            ("lines=0-4", Err(RangeError::Invalid)),
        ] {
            assert_eq!(parse(value, 10), expected, "{value}");
        }
        assert_eq!(parse("bytes=0-", 0), Ok(None));
    }

    #[test]
    fn describes_part() {
        let part = Part {
            start: 2,
            length: 3,
        };
        assert_eq!(part.content_range(10), "bytes 2-4/10");
    }
}
