//! The browser of the user.

use std::ffi::OsString;

use webbrowser::{Browser, BrowserOptions};

/// Reason why no browser is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBrowser {
    /// The terminal is that of another host, on which a browser would be of no use.
    Ssh,
    NoDisplay,
}

impl NoBrowser {
    pub fn describe(self) -> &'static str {
        match self {
            Self::Ssh => "no browser is opened in an SSH session",
            Self::NoDisplay => "no browser is opened without a display",
        }
    }
}

/// Returns the reason why no browser can be opened, from the environment of the process.
pub fn obstacle(variable: impl Fn(&str) -> Option<OsString>) -> Option<NoBrowser> {
    let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    if is_set("SSH_CONNECTION") || is_set("SSH_TTY") {
        return Some(NoBrowser::Ssh);
    }
    let needs_display = cfg!(all(unix, not(target_os = "macos")));
    let has_display = is_set("DISPLAY") || is_set("WAYLAND_DISPLAY");
    (needs_display && !has_display).then_some(NoBrowser::NoDisplay)
}

/// Opens a URL in the browser of the user, without waiting for it.
pub fn open(url: String) {
    let opening = move || {
        let mut options = BrowserOptions::new();
        options.with_suppress_output(true);
        if let Err(error) = webbrowser::open_browser_with_options(Browser::Default, &url, &options)
        {
            eprintln!("cannot open a browser: {error}; open {url} yourself");
        }
    };
    // A thread of its own: some browsers return only when they are closed.
    if let Err(error) = std::thread::Builder::new()
        .name("browser".into())
        .spawn(opening)
    {
        tracing::debug!(%error, "cannot start a thread for the browser");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_no_browser_over_ssh_or_without_a_display() {
        for (set, expected) in [
            (&["DISPLAY"][..], None),
            (&["WAYLAND_DISPLAY"], None),
            (&["DISPLAY", "SSH_CONNECTION"], Some(NoBrowser::Ssh)),
            (&["DISPLAY", "SSH_TTY"], Some(NoBrowser::Ssh)),
            #[cfg(target_os = "linux")]
            (&[], Some(NoBrowser::NoDisplay)),
        ] {
            let found = obstacle(|name| set.contains(&name).then(|| OsString::from("x")));
            assert_eq!(found, expected, "{set:?}");
        }
        let empty = obstacle(|name| {
            (name != "DISPLAY")
                .then(OsString::new)
                .or_else(|| Some("x".into()))
        });
        assert_eq!(empty, None);
    }
}
