//! The page of the demo in headless Chromium. The demo has a cluster of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::clients::drive;
use crate::fixture::Fixture;
use crate::support::program::Program;

/// Folder of the screenshots, below the root of the project. `docs/demo.png` is one of them.
const SCREENSHOTS: &str = "target/screenshots";

/// The link that the demo prints shows balancing, failover, a WebSocket, links under a prefix and
/// denied requests, and works with the keyboard.
pub async fn page_shows_balancing_failover_and_rewritten_links(_: &mut Fixture) -> Result<()> {
    let screenshots = Path::new(env!("CARGO_MANIFEST_DIR")).join(SCREENSHOTS);
    std::fs::create_dir_all(&screenshots)?;
    let temporary = tempfile::tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    command.env("TMPDIR", temporary.path()).args([
        "demo",
        "--insecure-listen-address=127.0.0.1:0",
        "--secure-listen-address=127.0.0.1:0",
        "--admin-listen-address=127.0.0.1:0",
    ]);
    let mut demo = Program::start(&mut command)?;
    let link = demo.wait_for_line("/services/dashboard/proxy/").await?;
    demo.wait_for_line("Changes are reported below.").await?;
    let setting = json!({"page": link.trim(), "screenshots": screenshots});
    drive("demo.mjs", setting)
        .await
        .with_context(|| format!("the output of the demo:\n{}", demo.output().join("\n")))
}
