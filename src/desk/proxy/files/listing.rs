//! Listings of directories as pages.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::escaped;

/// Maximum number of entries of a listing.
const MAX_ENTRIES: usize = 100_000;

/// Returns the page that lists a directory, sorted by name.
///
/// # Errors
/// An I/O error, also for a directory with too many entries.
pub(super) fn list(directory: &Path) -> io::Result<String> {
    let mut entries: Vec<(Vec<u8>, bool)> = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        if entries.len() == MAX_ENTRIES {
            return Err(io::Error::other(format!(
                "{directory:?} has more than {MAX_ENTRIES} entries"
            )));
        }
        let entry = entry?;
        // A symbolic link to a directory has no slash, as in Go's listings.
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        entries.push((entry.file_name().as_bytes().to_owned(), is_directory));
    }
    entries.sort_unstable();
    let mut page = String::from(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n",
    );
    for (name, is_directory) in &entries {
        let slash = if *is_directory { "/" } else { "" };
        // A colon in the first segment of a relative reference would end a scheme.
        let dot = if name.contains(&b':') { "./" } else { "" };
        page.push_str(&format!("<a href=\"{dot}{}{slash}\">", escaped(name)));
        push_html(&mut page, &String::from_utf8_lossy(name));
        page.push_str(&format!("{slash}</a>\n"));
    }
    page.push_str("</pre>\n");
    Ok(page)
}

/// Appends text with the characters escaped that have a meaning in HTML.
fn push_html(page: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&#34;"),
            '\'' => page.push_str("&#39;"),
            other => page.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_entries_by_name_and_escapes_them() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a b?#%.txt", "<i>&\"'", "c:d", "Z"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("dir")).unwrap();
        let expected = "<!doctype html>\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <pre>\n\
             <a href=\"%3Ci%3E&%22%27\">&lt;i&gt;&amp;&#34;&#39;</a>\n\
             <a href=\"Z\">Z</a>\n\
             <a href=\"a%20b%3F%23%25.txt\">a b?#%.txt</a>\n\
             <a href=\"b.txt\">b.txt</a>\n\
             <a href=\"./c:d\">c:d</a>\n\
             <a href=\"dir/\">dir/</a>\n\
             </pre>\n";
        assert_eq!(list(folder.path()).unwrap(), expected);
    }
}
