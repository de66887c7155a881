//! Quoting of strings as in Go's `%q`, so that messages equal kube-apiserver's.

use std::fmt::{self, Write};

/// Displays a string as Go's `%q` does: in double quotes, with escapes such as `\n`, `\x7f` and
/// `\u200b` for characters that are not printable.
#[derive(Clone, Copy, Debug)]
pub struct GoQuoted<'a>(pub &'a str);

impl fmt::Display for GoQuoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\u{7}' => f.write_str("\\a")?,
                '\u{8}' => f.write_str("\\b")?,
                '\u{c}' => f.write_str("\\f")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '\u{b}' => f.write_str("\\v")?,
                c if is_printable(c) => f.write_char(c)?,
                c if u32::from(c) < 0x80 => write!(f, "\\x{:02x}", u32::from(c))?,
                c if u32::from(c) < 0x1_0000 => write!(f, "\\u{:04x}", u32::from(c))?,
                c => write!(f, "\\U{:08x}", u32::from(c))?,
            }
        }
        f.write_char('"')
    }
}

/// Returns true if Rust prints `c` without an escape. Go agrees except for combining marks.
fn is_printable(c: char) -> bool {
    c == '\'' || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_strings_like_go() {
        let cases = [
            ("web", r#""web""#),
            ("a'b", r#""a'b""#),
            ("a\"b\\", r#""a\"b\\""#),
            ("\u{0}\n\u{7f}", r#""\x00\n\x7f""#),
            ("\u{200b}é", r#""\u200bé""#),
        ];
        for (text, quoted) in cases {
            assert_eq!(GoQuoted(text).to_string(), quoted);
        }
    }
}
