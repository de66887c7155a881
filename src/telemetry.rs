//! What the bastion says of itself: events on standard error, one line per request on standard
//! output.

mod access;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

pub use access::{AccessLog, Record, Recorder};

use crate::config::{Log, LogFormat};

/// Events for this target are written whatever the level is: an operator needs them even where
/// nothing else is logged.
pub const OPERATOR_TARGET: &str = "kube_bastion::always";
/// Off: the client's own events about failed requests, each of which is logged by its sender; and
/// whole answers that it cannot read, which may hold what no log should.
const SUPPRESSED: &str = "kube_client::client=off,kube_runtime::watcher=error";

/// Sends events to standard error. Called once, by `main`; later calls change nothing, as tests
/// need it.
pub fn init(log: &Log) {
    // Flag, environment and file read the level by one parser (`config::parse_log_level`): nothing
    // is lost. Its directives may overrule what stands before them.
    let always = format!("{OPERATOR_TARGET}=trace")
        .parse()
        .expect("a module and a level make a directive");
    let filter = EnvFilter::builder()
        .parse_lossy(format!("{SUPPRESSED},{}", log.level))
        .add_directive(always);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = match log.format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
