//! Samples of the rounds, and their medians and ranges.

use std::fmt::{self, Display, Formatter};

/// Figures of one peer in one round of one workload.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Figure in the unit of the workload.
    pub figure: f64,
    /// Part of the figure that is CPU time in user mode, if it is CPU time.
    pub user: Option<f64>,
    pub per_second: Option<f64>,
    /// Latency in µs: median, or mean where the load generator prints no median.
    pub latency: Option<f64>,
}

/// Median, minimum and maximum.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// Returns `None` without figures.
    pub fn new(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = figures.collect();
        all.sort_by(f64::total_cmp);
        let (low, high) = (*all.first()?, *all.last()?);
        // The mean of the two in the middle if their number is even.
        let middle = f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2]);
        Some(Self {
            median: middle,
            low,
            high,
        })
    }
}

impl Display for Spread {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let digits = if self.high < 10.0 {
            2
        } else {
            usize::from(self.high < 1000.0)
        };
        let Self { median, low, high } = self;
        write!(
            formatter,
            "{median:.digits$} ({low:.digits$}-{high:.digits$})"
        )
    }
}

/// Returns a percentile of sorted figures, `None` if there are none.
pub fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    sorted
        .get(sorted.len() * percent / 100)
        .or(sorted.last())
        .copied()
}
