//! Tunnels end when their callers may open them no longer.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::eventually;
use crate::{PREFIX, TestBed, read_until};

/// Both ends of an open tunnel.
struct Open {
    client: TlsStream<TcpStream>,
    backend: TcpStream,
}

impl Open {
    async fn new(bed: &TestBed, token: &str) -> Result<Self> {
        let mut client = bed.client().await?;
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        let head = format!(
            "GET {PREFIX}/ HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n{upgrade}\r\n"
        );
        client.write_all(head.as_bytes()).await?;
        let (mut backend, _) = bed.accept().await?;
        backend
            .write_all(format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n").as_bytes())
            .await?;
        read_until(&mut client, "\r\n\r\n").await?;
        let mut open = Self { client, backend };
        open.passes().await?;
        Ok(open)
    }

    async fn passes(&mut self) -> Result<()> {
        self.client.write_all(b"ping").await?;
        ensure!(read_until(&mut self.backend, "ping").await? == "ping");
        self.backend.write_all(b"pong").await?;
        ensure!(read_until(&mut self.client, "pong").await? == "pong");
        Ok(())
    }

    /// Waits until both ends are closed.
    async fn ends(mut self) -> Result<()> {
        let (mut client, mut backend) = (Vec::new(), Vec::new());
        let ends = async {
            tokio::join!(
                self.client.read_to_end(&mut client),
                self.backend.read_to_end(&mut backend)
            )
        };
        let _ends = tokio::time::timeout(PATIENCE, ends)
            .await
            .context("the tunnel stays open")?;
        Ok(())
    }
}

/// For a tunnel to end, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

const SHORT_TTLS: [&str; 2] = [
    "--authentication-token-webhook-cache-ttl=1s",
    "--authorization-webhook-cache-authorized-ttl=1s",
];

#[tokio::test]
async fn a_tunnel_ends_with_the_right_to_it_and_others_stay_open() -> Result<()> {
    let bed = TestBed::with(&SHORT_TTLS).await?;
    let (readers, mut masters) = (Open::new(&bed, "r").await?, Open::new(&bed, "t").await?);
    let file = bed.folder.path().join("manifests/all.yaml");
    let manifests = std::fs::read_to_string(&file)?;
    std::fs::write(
        &file,
        manifests.replace(
            "{kind: User, name: reader}",
            "{kind: User, name: somebody-else}",
        ),
    )?;
    readers.ends().await?;
    masters.passes().await?;
    closed(&bed, "permit_revoked").await
}

#[tokio::test]
async fn a_tunnel_ends_with_its_credential() -> Result<()> {
    let bed = TestBed::with(&SHORT_TTLS).await?;
    let open = Open::new(&bed, "r").await?;
    std::fs::write(
        bed.folder.path().join("tokens"),
        "t,jane,1,\"system:masters\"\n",
    )?;
    open.ends().await?;
    closed(&bed, "permit_revoked").await
}

#[tokio::test]
async fn a_tunnel_ends_at_its_maximum_age() -> Result<()> {
    let bed = TestBed::serving("tunnelMaxAge: 1s", &[]).await?;
    Open::new(&bed, "t").await?.ends().await?;
    closed(&bed, "max_age").await
}

async fn closed(bed: &TestBed, reason: &str) -> Result<()> {
    let counted = format!(r#"kube_bastion_tunnels_closed_total{{reason="{reason}"}} 1"#);
    eventually("the metric to count it", async || {
        Ok(bed.bastion.metrics().await?.contains(&counted))
    })
    .await
}
