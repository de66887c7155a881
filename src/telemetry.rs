//! Logs: events on standard error, the access log on standard output.

mod access;
mod event;
mod interval;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

pub use access::{AccessLog, Record, Recorder};
pub use interval::LogLimit;

use crate::config::{Log, LogFormat};
use event::EventFormat;

/// Target of events that are written at every log level, because operators cannot do without them.
pub const OPERATOR_TARGET: &str = "kube_bastion::always";
/// Directives that suppress events of libraries: of the Kubernetes client those about failed
/// requests, which their senders log, and about complete responses that it cannot decode, which may
/// contain secrets; those of notify about directories that no longer exist; and those of the
/// protocols, because peers can cause thousands in a second.
const SUPPRESSED: &str = "kube_client::client=off,kube_runtime::watcher=error,notify=error,\
                          rustls=off,h2=off,hyper=off";

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
    let installed = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(log.format == LogFormat::Text && std::io::stderr().is_terminal())
        .event_format(EventFormat(log.format))
        .with_writer(std::io::stderr)
        .try_init();
    if installed.is_ok() && log.format == LogFormat::Json {
        std::panic::set_hook(Box::new(log_panic));
    }
}

/// Logs a panic as an event, so that a log in JSON has no other lines.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    tracing::error!(
        target: OPERATOR_TARGET,
        error = panic.payload_as_str().unwrap_or_default(),
        location = panic.location().map(ToString::to_string),
        backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
        "panic; please report it"
    );
}
