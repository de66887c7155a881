//! A kubelet, and the files by which it knows the bastion and the bastion knows it (CONFORMANCE
//! C52).

use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;

use crate::TestBed;
use crate::support::client::{Answer, Client};
use crate::support::eventually;
use crate::support::kubelet::Kubelet;
use crate::support::pki::{Ca, Pair};

#[tokio::test]
async fn changed_files_for_kubelets_are_followed_and_broken_ones_are_not() -> Result<()> {
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
        format!(
            "kind: Node
metadata: {{name: kubelet}}
status:
  addresses: [{{type: InternalIP, address: 127.0.0.1}}]
  daemonEndpoints: {{kubeletEndpoint: {{Port: {port}}}}}
"
        ),
    )?;
    let client = Client::connect(bed.bastion.secure, &bed.ca.file, Some("t"), None).await?;
    let client = tokio::sync::Mutex::new(client);
    let ask = async || -> Result<Answer> {
        client
            .lock()
            .await
            .get("/api/v1/nodes/kubelet/proxy/healthz")
            .await
    };
    let shown = async || -> Result<Option<Vec<u8>>> {
        ensure!(ask().await?.status == 200);
        Ok(kubelet
            .shown()
            .pop()
            .context("it reached the kubelet")?
            .certificate)
    };
    let der = |pair: &Pair| -> Result<Vec<u8>> {
        Ok(CertificateDer::from_pem_file(&pair.certificate)?.to_vec())
    };

    eventually("the kubelet to be known", async || {
        Ok(ask().await?.status == 200)
    })
    .await?;
    ensure!(shown().await?.as_ref() == Some(&der(&first)?));
    install(&second)?;
    eventually("the renewed certificate", async || {
        Ok(shown().await?.as_ref() == Some(&der(&second)?))
    })
    .await?;

    std::fs::copy(&other.file, at("followed.crt"))?;
    eventually("the changed CA", async || Ok(ask().await?.status == 503)).await?;
    kubelet.shown();
    let answer = ask().await?;
    ensure!(
        answer.body.contains("tls: ") && kubelet.shown().is_empty(),
        "another CA vouches for nobody: {answer:?}"
    );
    std::fs::copy(&ca.file, at("followed.crt"))?;
    eventually("the CA that is right", async || {
        Ok(ask().await?.status == 200)
    })
    .await?;

    std::fs::write(at("followed.crt"), "no CA")?;
    let told = "for kubelets changed and cannot be used";
    eventually("the broken file to be told", async || {
        Ok(bed.bastion.said().contains(told))
    })
    .await?;
    ensure!(ask().await?.status == 200, "the old one stays");
    Ok(())
}
