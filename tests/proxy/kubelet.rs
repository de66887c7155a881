//! Reload of the files for kubelets: CA, client certificate and key (CONFORMANCE C52).

use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;

use crate::support::client::{Client, Response};
use crate::support::eventually;
use crate::support::kubelet::Kubelet;
use crate::support::pki::{Ca, Pair};
use crate::support::test_bed::TestBed;

/// A node. `PORT` is the port of its kubelet.
const NODE: &str = include_str!("../fixtures/kubelet_node.yaml");

#[tokio::test]
async fn reloads_files_for_kubelets_and_keeps_old_ones_on_error() -> Result<()> {
    kube_bastion::tls::install_provider();
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let flags = [
        format!(
            "--kubelet-certificate-authority={}",
            at("followed.crt").display()
        ),
        format!("--kubelet-client-certificate={}", at("own.crt").display()),
        format!("--kubelet-client-key={}", at("own.key").display()),
    ];
    let (ca, other) = (
        Ca::new(folder.path(), "ca")?,
        Ca::new(folder.path(), "other-ca")?,
    );
    let (first, second) = (
        ca.client(folder.path(), "first", "g")?,
        ca.client(folder.path(), "second", "g")?,
    );
    let install = |pair: &Pair| -> Result<()> {
        std::fs::copy(&pair.key, at("own.key"))?;
        std::fs::copy(&pair.certificate, at("own.crt"))?;
        Ok(())
    };
    std::fs::copy(&ca.file, at("followed.crt"))?;
    install(&first)?;
    let serving = ca.server(folder.path(), "kubelet", &["127.0.0.1"])?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let kubelet = Kubelet::start(listener, &serving, &ca.file)?;
    let bed = TestBed::with(&flags.each_ref().map(String::as_str)).await?;
    std::fs::write(
        bed.folder.path().join("manifests/kubelet.yaml"),
        NODE.replace("PORT", &port.to_string()),
    )?;
    let client = Client::connect(bed.bastion.secure, &bed.ca.file, Some("t"), None).await?;
    let client = tokio::sync::Mutex::new(client);
    let get = async || -> Result<Response> {
        client
            .lock()
            .await
            .get("/api/v1/nodes/kubelet/proxy/healthz")
            .await
    };
    let presented = async || -> Result<Option<Vec<u8>>> {
        ensure!(get().await?.status == 200);
        Ok(kubelet
            .take_credentials()
            .pop()
            .context("no request reached the kubelet")?
            .certificate)
    };
    let der = |pair: &Pair| -> Result<Vec<u8>> {
        Ok(CertificateDer::from_pem_file(&pair.certificate)?.to_vec())
    };

    eventually("the kubelet to be reachable", async || {
        Ok(get().await?.status == 200)
    })
    .await?;
    ensure!(presented().await?.as_ref() == Some(&der(&first)?));
    install(&second)?;
    eventually("the renewed certificate", async || {
        Ok(presented().await?.as_ref() == Some(&der(&second)?))
    })
    .await?;

    std::fs::copy(&other.file, at("followed.crt"))?;
    eventually("the changed CA", async || Ok(get().await?.status == 503)).await?;
    kubelet.take_credentials();
    let response = get().await?;
    ensure!(
        response.body.contains("tls: ") && kubelet.take_credentials().is_empty(),
        "the kubelet is not verified: {response:?}"
    );
    std::fs::copy(&ca.file, at("followed.crt"))?;
    eventually("the original CA", async || Ok(get().await?.status == 200)).await?;

    std::fs::write(at("followed.crt"), "no CA")?;
    let message = "cannot use the changed CA or client certificate for kubelets";
    eventually("the invalid file to be logged", async || {
        Ok(bed.bastion.log().contains(message))
    })
    .await?;
    ensure!(get().await?.status == 200, "the previous CA is not used");
    Ok(())
}
