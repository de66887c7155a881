//! Rotation of certificates and tokens.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::BoundObjectReference;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use serde_json::json;

use super::api::fault_proxy;
use crate::fixture::{Fixture, SHOP, bastion};
use crate::support::client::{Client, tls};
use crate::support::cluster::{HOME, KubeconfigUser};
use crate::support::load::{Load, Shape};
use crate::support::objects::Objects;
use crate::support::pki::{Ca, Pair};
use crate::support::{eventually, within};

/// Connections are replaced often, so that each certificate is used by handshakes.
const SHAPE: Shape = Shape {
    http1: 4,
    http2: 2,
    pause: Duration::from_millis(20),
    per_connection: 10,
};

pub async fn rotated_certificates_and_tokens_fail_no_request(fixture: &mut Fixture) -> Result<()> {
    /// The bastion reads the file of its token again within a minute.
    const TOKEN_RELOAD_TIMEOUT: Duration = Duration::from_secs(100);
    /// Time after which the API server no longer caches a token.
    const TOKEN_CACHE_EXPIRY: Duration = Duration::from_secs(15);
    let cluster = &fixture.cluster;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);

    // The token of the bastion, which becomes invalid with its bound object.
    let home = Objects {
        client: cluster.client.clone(),
        namespace: HOME.into(),
    };
    home.create::<Secret>(json!({"metadata": {"name": "rotated"}}))
        .await?;
    let uid = Api::<Secret>::namespaced(cluster.client.clone(), HOME)
        .get("rotated")
        .await?
        .metadata
        .uid;
    let bound = BoundObjectReference {
        kind: Some("Secret".into()),
        api_version: Some("v1".into()),
        name: Some("rotated".into()),
        uid,
    };
    std::fs::write(at("token"), cluster.token(HOME, HOME, Some(bound)).await?)?;
    let proxy = fault_proxy(fixture).await?;
    let server = format!("https://{}", proxy.address);
    let kubeconfig = cluster.kubeconfig(
        "rotated",
        &server,
        &cluster.ca.file,
        &KubeconfigUser::TokenFile(&at("token")),
    )?;

    let (old_ca, new_ca) = (
        Ca::new(folder.path(), "old-ca")?,
        Ca::new(folder.path(), "new-ca")?,
    );
    let old = old_ca.client(folder.path(), "old", "rotated")?;
    let new = new_ca.client(folder.path(), "new", "rotated")?;
    let group = json!({"kind": "Group", "name": "rotated"});
    fixture
        .objects
        .allow("rotated", group, &["services/proxy"], &["get"])
        .await?;
    std::fs::copy(&old_ca.file, at("clients.crt"))?;
    let serving = Pair {
        certificate: at("serving.crt"),
        key: at("serving.key"),
    };
    install(&fixture.serving, &serving)?;
    let rotated = bastion(
        &kubeconfig,
        &serving,
        &[&format!("--client-ca-file={}", at("clients.crt").display())],
    )?;
    rotated.ready().await?;

    let by_token = fixture.target(&rotated);
    let mut by_certificate = by_token.clone();
    (by_certificate.token, by_certificate.certificate) = (None, Some(old.clone()));
    let tokens = Load::start(&by_token, SHAPE).await?;
    let certificates = Load::start(&by_certificate, SHAPE).await?;
    certificates.wait_for_requests(100).await;
    let own = cluster.token(HOME, HOME, None).await?;
    std::fs::write(at("token"), &own)?;

    // Meanwhile, rotate the serving certificate, the client CA and the token of the caller.
    let ca = &cluster.ca.file;
    let before = served(&rotated.secure, ca).await?;
    let renewed = cluster
        .ca
        .server(folder.path(), "renewed", &["localhost", "127.0.0.1"])?;
    install(&renewed, &serving)?;
    eventually("the new certificate", async || {
        Ok(served(&rotated.secure, ca).await? != before)
    })
    .await?;
    let both = [std::fs::read(&old_ca.file)?, std::fs::read(&new_ca.file)?].concat();
    std::fs::write(at("clients.crt"), both)?;
    eventually("the new CA", async || {
        let mut client = Client::connect(rotated.secure, ca, None, Some(&new)).await?;
        Ok(client.get(&by_token.path).await?.status == 200)
    })
    .await?;
    tokens.set_token(&cluster.token(SHOP, "caller", None).await?);
    within(
        TOKEN_RELOAD_TIMEOUT,
        "the bastion's new token",
        async || Ok(proxy.last_token_is(&own)),
    )
    .await?;
    home.delete::<Secret>("rotated").await?;
    tokio::time::sleep(TOKEN_CACHE_EXPIRY).await;
    tokens.set_token(&cluster.token(SHOP, "caller", None).await?);
    tokens.wait_for_requests(200).await;

    let (tokens, certificates) = (tokens.stop().await, certificates.stop().await);
    println!(
        "     certificates and tokens rotated: by token {tokens}; by certificate {certificates}"
    );
    std::fs::copy(&new_ca.file, at("clients.crt"))?;
    eventually("rejection of the old CA", async || {
        let mut client = Client::connect(rotated.secure, ca, None, Some(&old)).await?;
        Ok(client.get(&by_token.path).await?.status == 401)
    })
    .await?;
    ensure!(rotated.readyz().await?.0 == 200);
    tokens.ensure_none_failed()?;
    certificates.ensure_none_failed()
}

/// Writes the key first, as some tools do, so that key and certificate do not match for a moment.
fn install(from: &Pair, to: &Pair) -> Result<()> {
    std::fs::copy(&from.key, &to.key)?;
    std::fs::copy(&from.certificate, &to.certificate)?;
    Ok(())
}

async fn served(address: &std::net::SocketAddr, ca: &Path) -> Result<Vec<u8>> {
    let stream = tls(*address, ca, None).await?;
    Ok(stream
        .get_ref()
        .1
        .peer_certificates()
        .context("a certificate")?[0]
        .to_vec())
}
