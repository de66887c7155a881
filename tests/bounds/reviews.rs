//! Reviews asked of the API: how many at once, and what is kept of their answers.

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
use crate::support::scripted_api::{GOOD, ScriptedApi};
use crate::support::test_bed::{read_all, read_until};

const PATH: &str = "/api/v1/namespaces/default/services/s/proxy/";

/// A bastion before an API that a test scripts.
struct Reviewed {
    bastion: Bastion,
    api: ScriptedApi,
    ca: PathBuf,
    _folder: TempDir,
}

impl Reviewed {
    async fn new() -> Result<Self> {
        kube_bastion::tls::install_provider();
        let folder = tempfile::tempdir()?;
        let api = ScriptedApi::start().await?;
        let ca = Ca::new(folder.path(), "ca")?;
        let serving = ca.server(folder.path(), "bastion", &["localhost"])?;
        let config = folder.path().join("config.yaml");
        // A review that is not answered is given up by who asked, not by time.
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

    /// The status of a request with a good token, from another address of loopback.
    async fn neighbor(&self, token: &str) -> Result<String> {
        let local = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
        let mut client = tls_from(local, self.bastion.secure, &self.ca, &[]).await?;
        let head =
            format!("GET {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n");
        client.write_all(head.as_bytes()).await?;
        Ok(read_until(&mut client, "\r\n").await?.trim().to_owned())
    }
}

/// FINDINGS S1: one connection of HTTP/2 asks with 300 tokens that are not known, and resets each
/// stream.
#[tokio::test]
async fn unknown_tokens_hold_a_bounded_number_of_reviews() -> Result<()> {
    const STREAMS: usize = 300;
    /// As many as the bastion lets be open at once.
    const BATCH: usize = 100;
    /// The bastion's limit is 64; some may be on their way out.
    const MOST: usize = 64 + 8;
    let reviewed = Reviewed::new().await?;
    let stream = tls_with_alpn(reviewed.bastion.secure, &reviewed.ca, None, &[b"h2"]).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let before = (
        reviewed.bastion.resident()?,
        reviewed.bastion.descriptors()?,
    );
    let mut sender = sender;
    let mut answers = Vec::new();
    for batch in 0..STREAMS / BATCH {
        // All streams of the batch before are reset.
        answers.clear();
        let asked = reviewed.api.reviews();
        for n in 0..BATCH {
            sender = sender.ready().await?;
            let request = Request::get(format!("https://bastion.test{PATH}"))
                .header("authorization", format!("Bearer unknown-{batch}-{n}"))
                .body(())?;
            answers.push(sender.send_request(request, true)?);
        }
        eventually("a review of the batch", async || {
            Ok(reviewed.api.reviews() > asked)
        })
        .await?;
        for round in 0..4 {
            let status = reviewed
                .neighbor(&format!("{GOOD}-{batch}-{round}"))
                .await?;
            ensure!(
                status.starts_with("HTTP/1.1 403 "),
                "a neighbor waits for the attacker's reviews: {status}"
            );
        }
    }
    let after = (
        reviewed.bastion.resident()?,
        reviewed.bastion.descriptors()?,
    );
    answers.clear();
    let gone = eventually("the reviews of reset streams to be canceled", async || {
        Ok(reviewed.api.waiting() == 0)
    })
    .await;
    println!(
        "S1: {STREAMS} streams: at most {} reviews in flight, {} after all are reset; {} KiB and {} descriptors more",
        reviewed.api.most_waiting(),
        reviewed.api.waiting(),
        after.0.saturating_sub(before.0) / 1024,
        after.1.saturating_sub(before.1)
    );
    ensure!(
        reviewed.api.most_waiting() > 0,
        "no review was asked for: nothing was tested"
    );
    ensure!(
        reviewed.api.most_waiting() <= MOST,
        "{} reviews in flight",
        reviewed.api.most_waiting()
    );
    // One connection to the API for each review in flight, and those of the test itself.
    ensure!(
        after.1 <= before.1 + MOST + 16,
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

/// FINDINGS S2.
#[tokio::test]
async fn large_impersonation_values_are_not_kept() -> Result<()> {
    const REQUESTS: usize = 40;
    const LIMIT: usize = 20 * MIB;
    let reviewed = Reviewed::new().await?;
    let ask = async |n: usize, size: usize| -> Result<String> {
        let mut client = tls(reviewed.bastion.secure, &reviewed.ca, None).await?;
        let user = format!("{n:04}{}", "u".repeat(size));
        let head = format!(
            "GET {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {GOOD}\r\nImpersonate-User: {user}\r\nConnection: close\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await?;
        Ok(read_all(&mut client).await)
    };
    // Buffers that are kept for later have their size after the first.
    for n in 0..4 {
        ask(n, 900_000).await?;
    }
    let before = reviewed.bastion.resident()?;
    for n in 4..REQUESTS + 4 {
        let answer = ask(n, 900_000).await?;
        ensure!(answer.starts_with("HTTP/1.1 4"), "{answer:.200}");
    }
    let grown = reviewed.bastion.resident()?.saturating_sub(before);
    println!(
        "S2: {REQUESTS} requests with 900 kB of Impersonate-User: {} KiB grown",
        grown / 1024
    );
    ensure!(grown < LIMIT, "{grown} bytes stay");
    Ok(())
}
