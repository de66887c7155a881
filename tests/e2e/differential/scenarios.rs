//! Rows that one request and its answer cannot tell.

use anyhow::{Result, bail};

use super::ask::Side;
use super::observe::Observation;
use super::setting::Setting;
use super::table::Row;

/// Runs the scenario that a row names.
///
/// # Errors
/// Where there is none of that name, or it cannot be run.
pub async fn run(name: &str, setting: &Setting<'_>, side: &Side, row: &Row) -> Result<Observation> {
    match name {
        _ => bail!("no scenario is called {name:?}"),
    }
}
