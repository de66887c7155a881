//! The access log of a bastion.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use super::bastion::Bastion;
use super::eventually;
use super::test_bed::TestBed;

/// File to which the bastion of a test bed writes its access log.
pub struct AccessLog(PathBuf);

impl AccessLog {
    /// Replaces the bastion of a test bed by one that writes the access log to a file.
    pub async fn of(bed: &mut TestBed) -> Result<Self> {
        let file = bed.folder.path().join("access");
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!(r#"exec "$0" "$@" >{}"#, file.display()))
            .args([env!("CARGO_BIN_EXE_kube-bastion"), "serve", "--config"])
            .arg(bed.folder.path().join("config.yaml"));
        bed.bastion = Bastion::run(command)?;
        bed.bastion.ready().await?;
        Ok(Self(file))
    }

    /// Waits for a number of lines, and returns them.
    pub async fn lines(&self, count: usize) -> Result<Vec<Value>> {
        let mut lines = Vec::new();
        eventually("the lines of the access log", async || {
            let text = std::fs::read_to_string(&self.0)?;
            // The last line may be incomplete.
            let complete = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            lines = complete
                .map(serde_json::from_str)
                .collect::<Result<_, _>>()?;
            Ok(lines.len() >= count)
        })
        .await?;
        Ok(lines)
    }
}
