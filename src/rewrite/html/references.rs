//! Character references in attribute values (WHATWG HTML section 13.2.5.72).
//!
//! Only references to ASCII characters are decoded, of which the syntax of URLs consists. The
//! others keep their spelling, because the encoding of the page is not known here.

use std::borrow::Cow;

/// First of the characters that stand for references that keep their spelling. Values do not
/// contain these: they are decoded from single bytes.
const FIRST_KEPT: u32 = 0xf_0000;

/// Names of references to ASCII characters.
const NAMES: [(&str, char); 37] = [
    ("AMP", '&'),
    ("GT", '>'),
    ("Hat", '^'),
    ("LT", '<'),
    ("NewLine", '\n'),
    ("QUOT", '"'),
    ("Tab", '\t'),
    ("UnderBar", '_'),
    ("VerticalLine", '|'),
    ("amp", '&'),
    ("apos", '\''),
    ("ast", '*'),
    ("bsol", '\\'),
    ("colon", ':'),
    ("comma", ','),
    ("commat", '@'),
    ("dollar", '$'),
    ("equals", '='),
    ("excl", '!'),
    ("grave", '`'),
    ("gt", '>'),
    ("lbrace", '{'),
    ("lbrack", '['),
    ("lowbar", '_'),
    ("lpar", '('),
    ("lsqb", '['),
    ("lt", '<'),
    ("num", '#'),
    ("percnt", '%'),
    ("period", '.'),
    ("plus", '+'),
    ("quest", '?'),
    ("quot", '"'),
    ("rpar", ')'),
    ("rsqb", ']'),
    ("semi", ';'),
    ("sol", '/'),
];

/// Names that are references also without a semicolon.
const WITHOUT_SEMICOLON: [&str; 8] = ["AMP", "GT", "LT", "QUOT", "amp", "gt", "lt", "quot"];

/// Attribute value whose references to ASCII characters are decoded.
pub struct Decoded<'a> {
    pub text: Cow<'a, str>,
    /// Spellings of the references that are kept, in the order of the characters that stand for
    /// them.
    kept: Vec<&'a str>,
}

/// Reference at the start of a text.
enum Reference {
    /// The character, and the length of the reference in bytes.
    Ascii(char, usize),
    /// The length of a reference to another character, or to none.
    Kept(usize),
    /// Only an ampersand.
    None,
}

impl<'a> Decoded<'a> {
    /// Decodes a value.
    pub fn new(raw: &'a str) -> Self {
        let Some(first) = raw.find('&') else {
            return Self {
                text: Cow::Borrowed(raw),
                kept: Vec::new(),
            };
        };
        let (mut text, mut kept) = (String::with_capacity(raw.len()), Vec::new());
        let mut rest = raw;
        let mut next = Some(first);
        while let Some(at) = next {
            text.push_str(&rest[..at]);
            rest = &rest[at..];
            let length = match reference(&rest[1..]) {
                Reference::Ascii(c, length) => {
                    text.push(c);
                    length
                }
                Reference::Kept(length) => {
                    let stand_in = u32::try_from(kept.len())
                        .ok()
                        .and_then(|index| char::from_u32(FIRST_KEPT + index));
                    text.push(stand_in.unwrap_or('&'));
                    kept.push(&rest[..=length]);
                    length
                }
                Reference::None => {
                    text.push('&');
                    0
                }
            };
            rest = &rest[1 + length..];
            next = rest.find('&');
        }
        text.push_str(rest);
        Self {
            text: Cow::Owned(text),
            kept,
        }
    }

    /// Encodes a text that consists of parts of [`Self::text`] and of other text, for a value in
    /// double quotes.
    pub fn encode(&self, text: &str) -> String {
        let mut encoded = String::with_capacity(text.len() + 16);
        for c in text.chars() {
            match c {
                '&' => encoded.push_str("&amp;"),
                '<' => encoded.push_str("&lt;"),
                '>' => encoded.push_str("&gt;"),
                '"' => encoded.push_str("&quot;"),
                c => match self.spelling(c) {
                    Some(spelling) => encoded.push_str(spelling),
                    None => encoded.push(c),
                },
            }
        }
        encoded
    }

    fn spelling(&self, c: char) -> Option<&'a str> {
        let index = u32::from(c).checked_sub(FIRST_KEPT)?;
        self.kept.get(usize::try_from(index).ok()?).copied()
    }
}

/// Parses the text behind an ampersand.
fn reference(text: &str) -> Reference {
    if let Some(digits) = text.strip_prefix('#') {
        return numeric_reference(digits);
    }
    let length = text
        .bytes()
        .position(|byte| !byte.is_ascii_alphanumeric())
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(length);
    if name.is_empty() {
        return Reference::None;
    }
    let named = NAMES.binary_search_by_key(&name, |(known, _)| known);
    let named = named.map(|found| NAMES[found].1);
    if rest.starts_with(';') {
        return named.map_or(Reference::Kept(length + 1), |c| {
            Reference::Ascii(c, length + 1)
        });
    }
    // `?a=1&lt=2` is no reference, for compatibility.
    if rest.starts_with('=') {
        return Reference::None;
    }
    match named {
        Ok(c) if WITHOUT_SEMICOLON.contains(&name) => Reference::Ascii(c, length),
        Ok(_) => Reference::None,
        Err(_) => Reference::Kept(length),
    }
}

/// Parses the text behind `&#`.
fn numeric_reference(text: &str) -> Reference {
    let hexadecimal = text.strip_prefix(['x', 'X']);
    let (digits, radix) = hexadecimal.map_or((text, 10), |digits| (digits, 16));
    let start = 1 + text.len() - digits.len();
    let length = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    if length == 0 {
        return Reference::None;
    }
    let semicolon = usize::from(digits[length..].starts_with(';'));
    let length_of_all = start + length + semicolon;
    // Too large numbers are references to the replacement character.
    match u8::from_str_radix(&digits[..length], radix) {
        Ok(code @ 1..=0x7f) => Reference::Ascii(char::from(code), length_of_all),
        _ => Reference::Kept(length_of_all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted() {
        assert!(NAMES.is_sorted());
        assert!(
            WITHOUT_SEMICOLON
                .iter()
                .all(|name| NAMES.binary_search_by_key(name, |(known, _)| known).is_ok())
        );
    }

    #[test]
    fn decodes_references_to_ascii_and_keeps_the_others() {
        for (raw, text, encoded) in [
            ("/x?a=1", "/x?a=1", "/x?a=1"),
            ("&sol;x", "/x", "/x"),
            ("&#47;x&#x2f;&#X2F", "/x//", "/x//"),
            ("&#47x&#00047;", "/x/", "/x/"),
            ("&#x2fx", "/x", "/x"),
            ("http&colon;&#47;/a", "http://a", "http://a"),
            ("?a=1&amp;b=2", "?a=1&b=2", "?a=1&amp;b=2"),
            ("?a=1&b=2", "?a=1&b=2", "?a=1&amp;b=2"),
            (
                "?a=1&lt=2&amp=3",
                "?a=1&lt=2&amp=3",
                "?a=1&amp;lt=2&amp;amp=3",
            ),
            ("?a&lt", "?a<", "?a&lt;"),
            ("?a&ltx", "?a\u{f0000}", "?a&ltx"),
            (
                "/&uuml;&#252;&#xfc",
                "/\u{f0000}\u{f0001}\u{f0002}",
                "/&uuml;&#252;&#xfc",
            ),
            (
                "&#0;&#x110000;&#99999999999;",
                "\u{f0000}\u{f0001}\u{f0002}",
                "&#0;&#x110000;&#99999999999;",
            ),
            (
                "&;&#;&#x;& &",
                "&;&#;&#x;& &",
                "&amp;;&amp;#;&amp;#x;&amp; &amp;",
            ),
            ("\"<>'", "\"<>'", "&quot;&lt;&gt;'"),
        ] {
            let decoded = Decoded::new(raw);
            assert_eq!(decoded.text, text, "{raw}");
            assert_eq!(decoded.encode(&decoded.text), encoded, "{raw}");
        }
    }
}
