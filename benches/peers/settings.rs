//! Settings of a run, from the environment.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::workloads::{WORKLOADS, Workload};

/// Maximum number of rounds of the memory workloads: memory varies little between rounds, and a
/// round needs half a minute.
pub const MAX_MEMORY_ROUNDS: u64 = 2;

#[derive(Debug)]
pub struct Settings {
    /// Number of measured rounds.
    pub rounds: u64,
    /// Seconds of each load.
    pub seconds: u64,
    pub workloads: Vec<&'static Workload>,
    /// Another build of the bastion.
    pub baseline: Option<PathBuf>,
    /// Envoy's binary.
    pub envoy: Option<PathBuf>,
}

impl Settings {
    /// Reads `BENCH_ROUNDS`, `BENCH_SECONDS`, `BENCH_ONLY`, `BENCH_ENVOY` and `KUBE_BASTION_BASELINE`.
    ///
    /// # Errors
    /// Returns an error if a number is invalid or no workload is selected.
    pub fn from_environment() -> Result<Self> {
        let only = std::env::var("BENCH_ONLY")
            .unwrap_or_default()
            .to_lowercase();
        let is_selected =
            |workload: &&Workload| workload.title.to_lowercase().contains(only.trim());
        let workloads: Vec<_> = WORKLOADS.iter().filter(is_selected).collect();
        ensure!(
            !workloads.is_empty(),
            "BENCH_ONLY={only:?} is in the title of no workload; choose from:\n{}",
            WORKLOADS.map(|workload| workload.title).join("\n")
        );
        Ok(Self {
            rounds: positive("BENCH_ROUNDS", 5)?,
            seconds: positive("BENCH_SECONDS", 3)?,
            workloads,
            baseline: path("KUBE_BASTION_BASELINE"),
            envoy: path("BENCH_ENVOY"),
        })
    }

    /// Number of measured rounds of a workload.
    pub fn rounds_of(&self, workload: &Workload) -> u64 {
        if workload.measure.is_memory() {
            self.rounds.min(MAX_MEMORY_ROUNDS)
        } else {
            self.rounds
        }
    }
}

fn path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name).filter(|path| !path.is_empty());
    path.map(PathBuf::from)
}

fn positive(name: &str, default: u64) -> Result<u64> {
    let Ok(text) = std::env::var(name) else {
        return Ok(default);
    };
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .with_context(|| format!("{name} is {text:?}; give a whole number from 1"))
}
