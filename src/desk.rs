//! The commands of the desk: what they share to reach a cluster from a user's machine.

mod api;
pub mod browser;
pub mod client;
pub mod connect;
pub mod context;
pub mod credentials;
pub mod cross_site;
pub mod flags;
pub mod forward;
pub mod kubeconfig;
pub mod open;
pub mod portforward;
pub mod proxy;
mod request;
mod targets;

use std::fmt::Display;
use std::io::Write;

pub use context::{Context, ContextError};
pub use flags::ConnectionFlags;

/// Prints a warning to standard error.
pub fn warn(message: impl Display) {
    // Fails if standard error is closed.
    let _ = writeln!(std::io::stderr(), "warning: {message}");
}

/// Replaces control characters of a text from the cluster, which a terminal would interpret.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}
