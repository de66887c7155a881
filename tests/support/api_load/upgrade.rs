//! Upgrades: `pods/exec` over a WebSocket, as kubectl opens it.

use std::sync::Arc;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ApiTarget, Counts, Kind, PAUSE};
use crate::support::client::tls;

/// Output of the command.
const OUTPUT: &str = "upgraded";

pub(super) async fn keep_executing(target: ApiTarget, pod: String, counts: Arc<Counts>) {
    while counts.is_running() {
        counts.count(Kind::Exec, execute(&target, &pod)).await;
        tokio::time::sleep(8 * PAUSE).await;
    }
}

/// Runs a command, and reads its output.
async fn execute(target: &ApiTarget, pod: &str) -> Result<()> {
    let mut stream = tls(target.address, &target.ca, None).await?;
    let path = target.path(&format!(
        "pods/{pod}/exec?command=echo&command={OUTPUT}&stdout=true&container=c"
    ));
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: bastion.test\r\nAuthorization: Bearer {}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n",
        target.token
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    // Frames of a server are not masked, so the output is part of what arrives.
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await.unwrap_or(0);
        received.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&received);
        if text.starts_with("HTTP/1.1 101 ") && text.contains(OUTPUT) {
            return Ok(());
        }
        ensure!(count > 0, "{text}");
    }
}
