//! Logs: events on standard error, the access log on standard output.

mod access;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

pub use access::{AccessLog, Record, Recorder};

use crate::config::{Log, LogFormat};

/// Target of events that are written at every log level, because operators cannot do without them.
pub const OPERATOR_TARGET: &str = "kube_bastion::always";
/// Directives that suppress two kinds of events of the Kubernetes client: failed requests, which
/// their senders log, and complete responses that it cannot decode, which may contain secrets.
const SUPPRESSED: &str = "kube_client::client=off,kube_runtime::watcher=error";

/// Starts writing events to standard error. Further calls, as in tests, have no effect.
pub fn init(log: &Log) {
    // Flag, environment and file share one parser (`config::parse_log_level`), so the lossy parser
    // drops nothing. Later directives override earlier ones.
    let always = format!("{OPERATOR_TARGET}=trace")
        .parse()
        .expect("a module and a level are a valid directive");
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
