//! Responses without a type that browsers take for HTML because of their first bytes (MIME Sniffing
//! section 7.1).

/// Starts of pages, in lower case. A space or `>` follows.
const STARTS: [&[u8]; 17] = [
    b"<!doctype html",
    b"<html",
    b"<head",
    b"<script",
    b"<iframe",
    b"<h1",
    b"<div",
    b"<font",
    b"<table",
    b"<a",
    b"<style",
    b"<title",
    b"<b",
    b"<body",
    b"<br",
    b"<p",
    b"<!--",
];

/// Returns true if a body that starts with `bytes` is HTML for browsers.
pub fn is_html(bytes: &[u8]) -> bool {
    let bytes = bytes.trim_ascii_start();
    STARTS.iter().any(|start| {
        let Some((found, rest)) = bytes.split_at_checked(start.len()) else {
            return false;
        };
        found.eq_ignore_ascii_case(start) && matches!(rest.first(), Some(b' ' | b'>'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_starts_of_pages() {
        for page in [
            "<!DOCTYPE html>",
            "<!doctype HTML PUBLIC \"x\">",
            "\r\n\t <html lang=en>",
            "<HEAD>",
            "<a href=\"/r\">t</a>",
            "<p>text",
            "<!-- comment -->",
            "<B>",
            "<body >",
        ] {
            assert!(is_html(page.as_bytes()), "{page}");
        }
        for other in [
            "",
            "<",
            "<a",
            "<!DOCTYPE html",
            "<!DOCTYPE svg>",
            "<?xml version=\"1.0\"?><html>",
            "<svg>",
            "<html\n>",
            "<bold>",
            "text <html>",
            "\u{feff}<html>",
            "{\"a\": \"<html>\"}",
            "<!--comment",
        ] {
            assert!(!is_html(other.as_bytes()), "{other}");
        }
    }
}
