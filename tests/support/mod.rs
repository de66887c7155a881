//! What the end-to-end tests and the benchmark stand on: a real control plane, a network namespace
//! with backends, the bastion as a process, and small clients.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod app;
pub mod backend;
pub mod bastion;
pub mod client;
pub mod cluster;
pub mod fault_proxy;
pub mod kubelet;
pub mod load;
pub mod net;
pub mod objects;
pub mod pki;
pub mod process;
pub mod program;
pub mod raw;
pub mod relay;
pub mod scripted_api;
pub mod test_bed;

use std::time::Duration;

use anyhow::{Result, bail};

/// Asks again until the answer is yes, for at most half a minute.
///
/// # Errors
/// Where it never is.
pub async fn eventually(what: &str, is: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    within(Duration::from_secs(30), what, is).await
}

/// The same with another patience.
///
/// # Errors
/// As [`eventually`].
pub async fn within(
    patience: Duration,
    what: &str,
    mut is: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 0..patience.as_millis() / PAUSE.as_millis() {
        if is().await? {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("waited in vain for {what}")
}
