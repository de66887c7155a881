//! Recorded costs with their margins, and the comparison.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Tolerance above the recorded instructions.
    instructions_margin_percent: f64,
    /// Tolerance above the recorded allocations per request.
    allocations_margin: f64,
    #[serde(flatten)]
    recorded: Costs,
}

/// Costs of a small GET by version of HTTP.
#[derive(Debug, Deserialize)]
pub struct Costs {
    pub http1: Cost,
    pub http2: Cost,
}

/// Cost of one request.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Cost {
    pub instructions: f64,
    pub allocations: f64,
}

impl Costs {
    fn figures(&self) -> [(&'static str, f64); 4] {
        [
            ("HTTP/1.1 instructions", self.http1.instructions),
            ("HTTP/1.1 allocations", self.http1.allocations),
            ("HTTP/2 instructions", self.http2.instructions),
            ("HTTP/2 allocations", self.http2.allocations),
        ]
    }
}

impl Limits {
    /// Reads the file.
    ///
    /// # Errors
    /// Returns an error if it is malformed.
    pub fn read() -> Result<Self> {
        let path = path();
        let text = std::fs::read_to_string(&path)?;
        serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Returns a line for each figure.
    pub fn compare(&self, measured: &Costs) -> String {
        let lines = self.pairs(measured).map(|pair| pair.line());
        lines.join("\n")
    }

    /// Returns the lines of the figures beyond their limits.
    pub fn exceeded(&self, measured: &Costs) -> Vec<String> {
        let pairs = self.pairs(measured);
        let exceeded = pairs.iter().filter(|pair| pair.measured > pair.limit);
        exceeded.map(Pair::line).collect()
    }

    /// Writes the measured figures to the file, with the margins as they are.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn record(&self, measured: &Costs) -> Result<()> {
        let line = |cost: &Cost| {
            format!(
                "{{instructions: {:.0}, allocations: {:.2}}}",
                cost.instructions, cost.allocations
            )
        };
        let text = format!(
            "# Cost of a small GET request on the worker thread, measured by tests/gate.rs. A request that costs more than
# these figures and margins fails the test. UPDATE_GATE=1 make gate writes this file.
instructionsMarginPercent: {}
allocationsMargin: {}
http1: {}
http2: {}
",
            self.instructions_margin_percent,
            self.allocations_margin,
            line(&measured.http1),
            line(&measured.http2)
        );
        Ok(std::fs::write(path(), text)?)
    }

    fn pairs(&self, measured: &Costs) -> [Pair; 4] {
        let (recorded, measured) = (self.recorded.figures(), measured.figures());
        std::array::from_fn(|index| {
            let (name, recorded) = recorded[index];
            let limit = if name.ends_with("instructions") {
                recorded * (1.0 + self.instructions_margin_percent / 100.0)
            } else {
                recorded + self.allocations_margin
            };
            Pair {
                name,
                recorded,
                limit,
                measured: measured[index].1,
            }
        })
    }
}

/// Figure and its limit.
struct Pair {
    name: &'static str,
    recorded: f64,
    limit: f64,
    measured: f64,
}

impl Pair {
    fn line(&self) -> String {
        let Self {
            name,
            recorded,
            limit,
            measured,
        } = self;
        let difference = measured - recorded;
        let percent = 100.0 * difference / recorded;
        format!(
            "{name:22} {measured:>9.2}, recorded {recorded:>9.2} ({difference:+.2}, {percent:+.1} %), limit {limit:.2}"
        )
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gate/limits.yaml")
}

#[test]
fn figures_beyond_their_margins_are_exceeded() {
    let limits = Limits {
        instructions_margin_percent: 2.0,
        allocations_margin: 0.1,
        recorded: Costs {
            http1: cost(1000.0, 10.0),
            http2: cost(2000.0, 20.0),
        },
    };
    let exceeded = |http1, http2| limits.exceeded(&Costs { http1, http2 });
    assert!(exceeded(cost(1019.0, 10.09), cost(100.0, 1.0)).is_empty());
    let lines = exceeded(cost(1021.0, 10.0), cost(2000.0, 20.2));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("HTTP/1.1 instructions"), "{lines:?}");
    assert!(lines[1].starts_with("HTTP/2 allocations"), "{lines:?}");
}

#[cfg(test)]
fn cost(instructions: f64, allocations: f64) -> Cost {
    Cost {
        instructions,
        allocations,
    }
}
