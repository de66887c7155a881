//! Tunnels are closed when their grant ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::eventually;
use crate::support::test_bed::{PREFIX, TestBed, read_until};

/// Both ends of an open tunnel.
struct OpenTunnel {
    client: TlsStream<TcpStream>,
    backend: TcpStream,
}

impl OpenTunnel {
    async fn new(bed: &TestBed, token: &str) -> Result<Self> {
        let target = format!("{PREFIX}/");
        Self::open(bed, &target, &format!("Authorization: Bearer {token}")).await
    }

    /// Opens a tunnel to the pod through the bastion as an HTTP proxy.
    async fn through_proxy(bed: &TestBed, token: &str) -> Result<Self> {
        let credentials = format!("Proxy-Authorization: Bearer {token}");
        Self::open(bed, "http://p.default.pod/", &credentials).await
    }

    async fn open(bed: &TestBed, target: &str, credentials: &str) -> Result<Self> {
        let mut client = bed.client().await?;
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{credentials}\r\n{upgrade}\r\n");
        client.write_all(head.as_bytes()).await?;
        let (mut backend, _) = bed.accept().await?;
        backend
            .write_all(format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n").as_bytes())
            .await?;
        read_until(&mut client, "\r\n\r\n").await?;
        let mut tunnel = Self { client, backend };
        tunnel.ensure_open().await?;
        Ok(tunnel)
    }

    /// Checks that bytes pass in both directions.
    async fn ensure_open(&mut self) -> Result<()> {
        self.client.write_all(b"ping").await?;
        ensure!(read_until(&mut self.backend, "ping").await? == "ping");
        self.backend.write_all(b"pong").await?;
        ensure!(read_until(&mut self.client, "pong").await? == "pong");
        Ok(())
    }

    /// Waits until both ends are closed.
    async fn wait_until_closed(mut self) -> Result<()> {
        let (mut client, mut backend) = (Vec::new(), Vec::new());
        let closed = async {
            tokio::join!(
                self.client.read_to_end(&mut client),
                self.backend.read_to_end(&mut backend)
            )
        };
        let _ends = tokio::time::timeout(CLOSE_TIMEOUT, closed)
            .await
            .context("the tunnel is still open")?;
        Ok(())
    }
}

/// Maximum time for a tunnel to close, on a busy machine.
const CLOSE_TIMEOUT: Duration = Duration::from_mins(1);

/// Flags that make checks of tunnels frequent.
const SHORT_TTLS: [&str; 2] = [
    "--authentication-token-webhook-cache-ttl=1s",
    "--authorization-webhook-cache-authorized-ttl=1s",
];

#[tokio::test]
async fn closes_tunnel_when_permission_is_revoked_and_keeps_others() -> Result<()> {
    let bed = TestBed::with(&SHORT_TTLS).await?;
    let of_reader = OpenTunnel::new(&bed, "r").await?;
    let mut of_admin = OpenTunnel::new(&bed, "t").await?;
    let file = bed.folder.path().join("manifests/all.yaml");
    let manifests = std::fs::read_to_string(&file)?;
    std::fs::write(
        &file,
        manifests.replace("{kind: User, name: reader}", "{kind: User, name: other}"),
    )?;
    of_reader.wait_until_closed().await?;
    of_admin.ensure_open().await?;
    counts_closed(&bed, "permit_revoked").await
}

#[tokio::test]
async fn checks_tunnels_of_proxy_clients_too() -> Result<()> {
    let bed = TestBed::with(&SHORT_TTLS).await?;
    let of_reader = OpenTunnel::through_proxy(&bed, "r").await?;
    let mut of_admin = OpenTunnel::through_proxy(&bed, "t").await?;
    std::fs::write(
        bed.folder.path().join("tokens"),
        "t,jane,1,\"system:masters\"\n",
    )?;
    of_reader.wait_until_closed().await?;
    of_admin.ensure_open().await?;
    counts_closed(&bed, "permit_revoked").await
}

#[tokio::test]
async fn closes_tunnel_when_token_is_removed() -> Result<()> {
    let bed = TestBed::with(&SHORT_TTLS).await?;
    let tunnel = OpenTunnel::new(&bed, "r").await?;
    std::fs::write(
        bed.folder.path().join("tokens"),
        "t,jane,1,\"system:masters\"\n",
    )?;
    tunnel.wait_until_closed().await?;
    counts_closed(&bed, "permit_revoked").await
}

#[tokio::test]
async fn closes_tunnel_at_maximum_age() -> Result<()> {
    let bed = TestBed::serving("tunnelMaxAge: 1s", &[]).await?;
    OpenTunnel::new(&bed, "t")
        .await?
        .wait_until_closed()
        .await?;
    counts_closed(&bed, "max_age").await
}

/// Waits until the metric counts a closed tunnel.
async fn counts_closed(bed: &TestBed, reason: &str) -> Result<()> {
    let metric = format!(r#"kube_bastion_tunnels_closed_total{{reason="{reason}"}} 1"#);
    eventually("the metric of closed tunnels", async || {
        Ok(bed.bastion.metrics().await?.contains(&metric))
    })
    .await
}
