//! Bounds of pending reviews and of cached results.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use http::Request;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::MIB;
use crate::support::bastion::Bastion;
use crate::support::client::{tls, tls_from, tls_with_alpn};
use crate::support::eventually;
use crate::support::pki::Ca;
use crate::support::scripted_api::{ScriptedApi, VALID_TOKEN_PREFIX};
use crate::support::test_bed::{read_all, read_until};

const PATH: &str = "/api/v1/namespaces/default/services/s/proxy/";

/// Bastion with a scripted API server.
struct ReviewTestBed {
    bastion: Bastion,
    api: ScriptedApi,
    ca: PathBuf,
    _folder: TempDir,
}

impl ReviewTestBed {
    async fn new() -> Result<Self> {
        kube_bastion::tls::install_provider();
        let folder = tempfile::tempdir()?;
        let api = ScriptedApi::start().await?;
        let ca = Ca::new(folder.path(), "ca")?;
        let serving = ca.server(folder.path(), "bastion", &["localhost"])?;
        let config = folder.path().join("config.yaml");
        // With a long timeout, only a reset of the request ends a review without a response.
        let text = format!(
            "apiVersion: kube-bastion.dev/v1alpha1
kind: BastionConfiguration
serving: {{tlsCertFile: {}, tlsPrivateKeyFile: {}}}
source: {{kubernetes: {{kubeconfig: {}}}}}
authentication: {{tokenReview: {{timeout: 10m}}}}
",
            serving.certificate.display(),
            serving.key.display(),
            api.kubeconfig(folder.path())?.display()
        );
        std::fs::write(&config, text)?;
        let bastion = Bastion::start(&[&format!("--config={}", config.display())])?;
        bastion.ready().await?;
        Ok(Self {
            bastion,
            api,
            ca: ca.file,
            _folder: folder,
        })
    }

    /// Sends a request with a valid token from another loopback address. Returns the status line.
    async fn neighbor(&self, token: &str) -> Result<String> {
        let local = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
        let mut client = tls_from(local, self.bastion.secure, &self.ca, &[]).await?;
        let head =
            format!("GET {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n");
        client.write_all(head.as_bytes()).await?;
        Ok(read_until(&mut client, "\r\n").await?.trim().to_owned())
    }
}

/// One HTTP/2 connection sends requests with 300 unknown tokens and resets each stream.
#[tokio::test]
async fn bounds_pending_reviews_of_unknown_tokens() -> Result<()> {
    const STREAMS: usize = 300;
    /// Maximum number of concurrent streams of a connection.
    const BATCH: usize = 100;
    /// Limit of the bastion, 64, and some reviews that are being canceled.
    const MAX_PENDING: usize = 64 + 8;
    let reviewed = ReviewTestBed::new().await?;
    let stream = tls_with_alpn(reviewed.bastion.secure, &reviewed.ca, None, &[b"h2"]).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let before = (
        reviewed.bastion.resident()?,
        reviewed.bastion.descriptors()?,
    );
    let mut sender = sender;
    let mut responses = Vec::new();
    for batch in 0..STREAMS / BATCH {
        // Resets all streams of the previous batch.
        responses.clear();
        let reviews_before = reviewed.api.reviews();
        for n in 0..BATCH {
            sender = sender.ready().await?;
            let request = Request::get(format!("https://bastion.test{PATH}"))
                .header("authorization", format!("Bearer unknown-{batch}-{n}"))
                .body(())?;
            responses.push(sender.send_request(request, true)?);
        }
        eventually("a review of the batch", async || {
            Ok(reviewed.api.reviews() > reviews_before)
        })
        .await?;
        for round in 0..4 {
            let status = reviewed
                .neighbor(&format!("{VALID_TOKEN_PREFIX}-{batch}-{round}"))
                .await?;
            ensure!(
                status.starts_with("HTTP/1.1 403 "),
                "another client is delayed by the attacker: {status}"
            );
        }
    }
    let after = (
        reviewed.bastion.resident()?,
        reviewed.bastion.descriptors()?,
    );
    responses.clear();
    let gone = eventually("the reviews of reset streams to be canceled", async || {
        Ok(reviewed.api.pending() == 0)
    })
    .await;
    println!(
        "{STREAMS} streams: at most {} reviews in flight, {} after all are reset; {} KiB and {} descriptors more",
        reviewed.api.max_pending(),
        reviewed.api.pending(),
        after.0.saturating_sub(before.0) / 1024,
        after.1.saturating_sub(before.1)
    );
    ensure!(
        reviewed.api.max_pending() > 0,
        "the API server received no review"
    );
    ensure!(
        reviewed.api.max_pending() <= MAX_PENDING,
        "{} reviews in flight",
        reviewed.api.max_pending()
    );
    // One connection to the API server per pending review, and connections of the test itself.
    ensure!(
        after.1 <= before.1 + MAX_PENDING + 16,
        "{} descriptors, {} before",
        after.1,
        before.1
    );
    ensure!(
        after.0 <= before.0 + 32 * MIB,
        "{} bytes, {} before",
        after.0,
        before.0
    );
    gone
}

#[tokio::test]
async fn does_not_cache_large_impersonation_values() -> Result<()> {
    const REQUESTS: usize = 40;
    const LIMIT: usize = 20 * MIB;
    let reviewed = ReviewTestBed::new().await?;
    let impersonate = async |n: usize, size: usize| -> Result<String> {
        let mut client = tls(reviewed.bastion.secure, &reviewed.ca, None).await?;
        let user = format!("{n:04}{}", "u".repeat(size));
        let head = format!(
            "GET {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {VALID_TOKEN_PREFIX}\r\nImpersonate-User: {user}\r\nConnection: close\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await?;
        Ok(read_all(&mut client).await)
    };
    // The first requests grow the buffers that are reused.
    for n in 0..4 {
        impersonate(n, 900_000).await?;
    }
    let before = reviewed.bastion.resident()?;
    for n in 4..REQUESTS + 4 {
        let response = impersonate(n, 900_000).await?;
        ensure!(response.starts_with("HTTP/1.1 4"), "{response:.200}");
    }
    let grown = reviewed.bastion.resident()?.saturating_sub(before);
    println!(
        "{REQUESTS} requests with 900 kB of Impersonate-User: {} KiB grown",
        grown / 1024
    );
    ensure!(grown < LIMIT, "{grown} bytes are not released");
    Ok(())
}
