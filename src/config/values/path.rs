//! Paths of files and directories.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::ValueError;

/// Parses a path, and expands `~` to the home directory of the process: shells do so only at the
/// begin of a word, and not in files and environment variables.
///
/// # Errors
/// The path is empty or not UTF-8, or `~` cannot be expanded.
pub fn parse_path(text: impl AsRef<OsStr>) -> Result<PathBuf, ValueError> {
    expand_home(text.as_ref(), std::env::var_os("HOME"))
}

fn expand_home(path: &OsStr, home: Option<OsString>) -> Result<PathBuf, ValueError> {
    let Some(text) = path.to_str() else {
        return Err(ValueError::PathNotUtf8 { path: path.into() });
    };
    if text.is_empty() {
        return Err(ValueError::NoPath);
    }
    let Some(below) = text.strip_prefix('~') else {
        return Ok(text.into());
    };
    let path = || text.to_owned();
    if !below.is_empty() && !below.starts_with('/') {
        return Err(ValueError::OtherHome { path: path() });
    }
    let Some(home) = home.filter(|home| !home.is_empty()) else {
        return Err(ValueError::NoHome { path: path() });
    };
    let Some(home) = home.to_str() else {
        return Err(ValueError::PathNotUtf8 { path: home });
    };
    // Concatenated: `Path::join` would take the rest for an absolute path.
    Ok(format!("{home}{below}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_home_directory_in_paths() {
        let home = || Some(OsString::from("/home/jane"));
        for (path, expected) in [
            ("~/tls.crt", "/home/jane/tls.crt"),
            ("~", "/home/jane"),
            ("~//a", "/home/jane//a"),
            ("a/~", "a/~"),
            ("/~/a", "/~/a"),
            ("./~a", "./~a"),
        ] {
            let expanded = expand_home(OsStr::new(path), home());
            assert_eq!(expanded, Ok(expected.into()), "{path}");
        }
        let error = |path: &str, home| expand_home(OsStr::new(path), home).unwrap_err().to_string();
        for home in [None, Some(OsString::new())] {
            let error = error("~/a", home);
            assert!(error.contains("HOME is not set"), "{error}");
        }
        let error_of_user = error("~jane/a", home());
        assert!(error_of_user.contains("\"./~jane/a\""), "{error_of_user}");
        assert!(error("", home()).contains("not a path"));
    }

    #[test]
    fn rejects_paths_that_are_not_utf_8() {
        use std::os::unix::ffi::OsStrExt;
        let bytes = OsStr::from_bytes(b"/tls/\xff.crt");
        for (path, home) in [(bytes, None), (OsStr::new("~/a"), Some(bytes.to_owned()))] {
            let error = expand_home(path, home).unwrap_err().to_string();
            assert!(error.contains(r#""/tls/\xFF.crt" is not UTF-8"#), "{error}");
        }
    }
}
