//! Fixtures shared by the tests and the benchmark: a real control plane, a network namespace with
//! backends, the bastion as a process, and small clients.
#![allow(dead_code, reason = "each test binary uses a part of them")]

pub mod access_log;
pub mod api_load;
pub mod app;
pub mod backend;
pub mod bastion;
pub mod client;
pub mod cluster;
pub mod connect;
pub mod connect_udp;
pub mod control_plane;
pub mod dns;
pub mod fault_proxy;
pub mod frames;
pub mod kubelet;
pub mod load;
pub mod net;
pub mod objects;
pub mod pki;
pub mod postgres;
pub mod process;
pub mod program;
pub mod raw;
pub mod relay;
pub mod scripted_api;
pub mod streaming_kubelet;
pub mod test_bed;
pub mod tls_endpoint;

use std::time::Duration;

use anyhow::{Result, bail};

/// Polls `is` until it returns true, for at most 30 seconds. `what` describes the condition in the
/// error.
///
/// # Errors
/// Returns an error if the condition does not become true, or the first error of `is`.
pub async fn eventually(what: &str, is: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    within(Duration::from_secs(30), what, is).await
}

/// Polls as [`eventually`], for at most `timeout`.
///
/// # Errors
/// As [`eventually`].
pub async fn within(
    timeout: Duration,
    what: &str,
    mut is: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 0..timeout.as_millis() / PAUSE.as_millis() {
        if is().await? {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("timed out after {timeout:?} waiting for {what}")
}
