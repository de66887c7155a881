//! Access log. A request fills one [`Record`]; dropping it updates the metrics and writes the line.
//!
//! Lines are buffered per worker and written in large batches by one thread, because a write per
//! request costs more than the rest of the log. If standard output is too slow, lines are dropped
//! and counted; requests never wait for the log. Lines of unauthenticated requests have a buffer of
//! their own and are dropped first, so that a flood of them does not hide the actions of
//! authenticated callers.

mod format;
mod record;
mod writer;

pub use record::{Record, Recorder};
pub use writer::AccessLog;

#[cfg(test)]
mod tests;
