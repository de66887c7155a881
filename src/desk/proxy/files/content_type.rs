//! Types of files, by the extension of their name, else by their first bytes.

use std::path::Path;

use http::HeaderValue;

use crate::rewrite::is_html;

const TEXT: &str = "text/plain; charset=utf-8";

/// Types by the first bytes (MIME Sniffing section 6). `....` is the length of a container.
const SIGNATURES: [(&[u8], &str); 30] = [
    (b"%PDF-", "application/pdf"),
    (b"%!PS-Adobe-", "application/postscript"),
    (b"\xFE\xFF", "text/plain; charset=utf-16be"),
    (b"\xFF\xFE", "text/plain; charset=utf-16le"),
    (b"\xEF\xBB\xBF", TEXT),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"\x00\x00\x02\x00", "image/x-icon"),
    (b"BM", "image/bmp"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x89PNG\r\n\x1A\n", "image/png"),
    (b"\xFF\xD8\xFF", "image/jpeg"),
    (b"ID3", "audio/mpeg"),
    (b"OggS\x00", "application/ogg"),
    (b"MThd\x00\x00\x00\x06", "audio/midi"),
    (b"\x1A\x45\xDF\xA3", "video/webm"),
    (b"\x00\x01\x00\x00", "font/ttf"),
    (b"OTTO", "font/otf"),
    (b"ttcf", "font/collection"),
    (b"wOFF", "font/woff"),
    (b"wOF2", "font/woff2"),
    (b"\x1F\x8B\x08", "application/x-gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"Rar!\x1A\x07\x00", "application/x-rar-compressed"),
    (b"Rar!\x1A\x07\x01\x00", "application/x-rar-compressed"),
    (b"\x00asm", "application/wasm"),
    (b"RIFF....WEBPVP", "image/webp"),
    (b"RIFF....AVI ", "video/avi"),
    (b"RIFF....WAVE", "audio/wave"),
    (b"FORM....AIFF", "audio/aiff"),
];

/// Returns the type that the extension of a file's name stands for. Texts are UTF-8.
pub(super) fn of_name(file: &Path) -> Option<HeaderValue> {
    let guessed = match mime_guess::from_path(file).first_raw()? {
        // Obsolete (RFC 9239).
        "application/javascript" => "text/javascript",
        other => other,
    };
    if guessed.starts_with("text/") {
        HeaderValue::try_from(format!("{guessed}; charset=utf-8")).ok()
    } else {
        Some(HeaderValue::from_static(guessed))
    }
}

/// Returns the type of a file that begins with `start`.
pub(super) fn of_content(start: &[u8]) -> &'static str {
    if is_html(start) {
        return "text/html; charset=utf-8";
    }
    if start.trim_ascii_start().starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    let found = SIGNATURES
        .iter()
        .find(|(signature, _)| begins_with(start, signature));
    if let Some((_, content_type)) = found {
        return content_type;
    }
    if start.iter().any(|byte| is_binary(*byte)) {
        "application/octet-stream"
    } else {
        TEXT
    }
}

/// Compares the start of a file with a signature.
fn begins_with(start: &[u8], signature: &[u8]) -> bool {
    let Some(start) = start.get(..signature.len()) else {
        return false;
    };
    if signature.get(4..8) == Some(b"....") {
        start[..4] == signature[..4] && start[8..] == signature[8..]
    } else {
        start == signature
    }
}

/// Returns true for bytes that texts do not have (MIME Sniffing section 3).
fn is_binary(byte: u8) -> bool {
    matches!(byte, 0..=8 | 0x0B | 0x0E..=0x1A | 0x1C..=0x1F)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_decide_first() {
        for (name, expected) in [
            ("a.html", Some("text/html; charset=utf-8")),
            ("a.css", Some("text/css; charset=utf-8")),
            ("a.js", Some("text/javascript; charset=utf-8")),
            ("a.mjs", Some("text/javascript; charset=utf-8")),
            ("a.txt", Some("text/plain; charset=utf-8")),
            ("a.JSON", Some("application/json")),
            ("a.svg", Some("image/svg+xml")),
            ("a.png", Some("image/png")),
            ("a.wasm", Some("application/wasm")),
            ("a.tar.gz", Some("application/gzip")),
            ("a", None),
            ("a.unknown-extension", None),
        ] {
            let found = of_name(Path::new(name));
            let found = found.as_ref().map(|found| found.to_str().unwrap());
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn first_bytes_decide_without_extension() {
        for (start, expected) in [
            (&b""[..], TEXT),
            (b"text\n", TEXT),
            (b" <html><p>", "text/html; charset=utf-8"),
            (b"\n<?xml version=\"1.0\"?>", "text/xml; charset=utf-8"),
            (b"%PDF-1.7", "application/pdf"),
            (b"\x89PNG\r\n\x1A\n\x00", "image/png"),
            (b"GIF89a", "image/gif"),
            (b"GIF88a", TEXT),
            (b"RIFF\x01\x02\x03\x04WEBPVP8", "image/webp"),
            (b"RIFF\x01\x02\x03\x04WAVE", "audio/wave"),
            (b"\x1F\x8B\x08\x00", "application/x-gzip"),
            (b"\x7fELF\x02\x01\x01\x00", "application/octet-stream"),
            (b"a\x00b", "application/octet-stream"),
            (b"BM", "image/bmp"),
            (b"B", TEXT),
        ] {
            assert_eq!(of_content(start), expected, "{start:?}");
        }
    }
}
