//! What the bastion says of itself: events on standard error, one line per request on standard output.

mod access;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

pub use access::{AccessLog, Record, Recorder};

use crate::config::{Log, LogFormat};

/// Sends events to standard error. Called once, by `main`; later calls change nothing, as tests need it.
pub fn init(log: &Log) {
    // Flag, environment and file read the level by one parser (`config::parse_log_level`): nothing is lost.
    let filter = EnvFilter::builder().parse_lossy(&log.level);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
