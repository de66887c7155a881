//! Messages of a running command: one per kind of failure, and the status lines of a terminal.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::relay::Traffic;
use crate::desk::printable;

/// Time between two messages of the same kind about a target.
const REPEAT_AFTER: Duration = Duration::from_secs(30);
/// Maximum number of kinds of failures that are remembered.
const MAX_KINDS: usize = 1024;
/// Maximum number of status lines, of which all must be on the screen.
const MAX_STATUS_LINES: usize = 20;
/// Interval of the status lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Destination of the lines that kubectl prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    Stdout,
    /// Standard output belongs to the command or to a program that reads JSON.
    Stderr,
    None,
}

/// Messages about the targets.
#[derive(Debug)]
pub struct Report {
    lines: Lines,
    failures: RefCell<HashMap<(String, String), Instant>>,
    /// Number of status lines on the terminal.
    printed: Cell<usize>,
    status: RefCell<Vec<(String, Rc<Traffic>)>>,
}

impl Report {
    pub fn new(lines: Lines) -> Self {
        Self {
            lines,
            failures: RefCell::default(),
            printed: Cell::new(0),
            status: RefCell::default(),
        }
    }

    /// Prints that a connection has arrived, unless a command uses the terminal.
    pub fn connection(&self, port: u16) {
        if self.lines == Lines::Stdout {
            self.line(&format!("Handling connection for {port}"));
        }
    }

    /// Prints a line that kubectl prints.
    pub fn line(&self, text: &str) {
        match self.lines {
            Lines::Stdout => self.above(|| {
                // Fails if the output is closed; the forwards continue.
                let _ = writeln!(std::io::stdout(), "{text}");
            }),
            Lines::Stderr => self.print(text),
            Lines::None => {}
        }
    }

    /// Prints the failure of a connection, unless one of the same kind was printed recently.
    pub fn failure(&self, target: &str, kind: &str, text: &str) {
        let mut failures = self.failures.borrow_mut();
        let key = (target.to_owned(), kind.to_owned());
        let is_recent = |time: &Instant| time.elapsed() < REPEAT_AFTER;
        if failures.get(&key).is_some_and(is_recent) {
            return;
        }
        if failures.len() >= MAX_KINDS {
            failures.retain(|_, time| is_recent(time));
        }
        if failures.len() < MAX_KINDS {
            failures.insert(key, Instant::now());
        }
        drop(failures);
        self.print(&format!("{target}: {}", printable(text)));
    }

    /// Prints a line to standard error.
    pub fn print(&self, text: &str) {
        self.above(|| {
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }

    /// Prints above the status lines.
    fn above(&self, print: impl FnOnce()) {
        self.clear();
        print();
        self.draw();
    }

    /// Shows the open connections and the bytes of the targets, if standard error is a terminal.
    pub async fn show_status(&self, targets: Vec<(String, Rc<Traffic>)>) {
        if !std::io::stderr().is_terminal() {
            std::future::pending::<()>().await;
        }
        *self.status.borrow_mut() = targets;
        self.status.borrow_mut().truncate(MAX_STATUS_LINES);
        loop {
            self.clear();
            self.draw();
            sleep(INTERVAL).await;
        }
    }

    /// Removes the status lines.
    fn clear(&self) {
        let printed = self.printed.take();
        if printed > 0 {
            // To the first of them, and erase to the end of the screen.
            let _ = write!(std::io::stderr(), "\x1b[{printed}F\x1b[J");
        }
    }

    fn draw(&self) {
        let targets = self.status.borrow();
        if targets.is_empty() {
            return;
        }
        let text: String = targets
            .iter()
            .map(|(name, traffic)| format!("{}\n", status_line(name, traffic)))
            .collect();
        // A line that is longer than the terminal is wide is cut off: wrapped, it would have two
        // lines to remove.
        let _ = write!(std::io::stderr(), "\x1b[?7l{text}\x1b[?7h");
        self.printed.set(targets.len());
    }
}

fn status_line(name: &str, traffic: &Traffic) -> String {
    let mut line = format!(
        "{name}: {} open, {} in total, ",
        traffic.open.get(),
        traffic.total.get()
    );
    // Writing to a string cannot fail.
    let _ = write!(
        line,
        "{} sent, {} received",
        size(traffic.sent.get()),
        size(traffic.received.get())
    );
    line
}

/// Formats a number of bytes with three digits.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut index) = (bytes.saturating_mul(10) / 1024, 0);
    while tenths >= 10_240 && index + 1 < units.len() {
        tenths /= 1024;
        index += 1;
    }
    let unit = units[index];
    if tenths >= 1000 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_connections_and_bytes() {
        let traffic = Traffic::default();
        traffic.open.set(2);
        traffic.total.set(30);
        traffic.sent.set(999);
        traffic.received.set(5 * 1024 * 1024 / 2);
        assert_eq!(
            status_line("service/db 5432 -> 5432", &traffic),
            "service/db 5432 -> 5432: 2 open, 30 in total, 999 B sent, 2.5 MiB received"
        );
        for (bytes, text) in [
            (0, "0 B"),
            (1024, "1.0 KiB"),
            (1024 * 1023, "1023 KiB"),
            (150 * 1024, "150 KiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "1677721 TiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }
}
