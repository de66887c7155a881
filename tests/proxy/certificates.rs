//! Certificates of clients, serving certificates, and their metric.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::OK_RESPONSE;
use crate::support::bastion::Bastion;
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::pki::{Ca, fixture};
use crate::support::test_bed::{PREFIX, TestBed, read_all, read_until};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// Presents a certificate with a key that need not belong to it.
#[derive(Debug)]
struct Presented(Arc<CertifiedKey>);

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Bastion that accepts the CAs of the fixtures.
async fn bed() -> Result<TestBed> {
    let folder = tempfile::tempdir()?;
    let cas = folder.path().join("client-ca.crt");
    let bundle = ["ecdsa-ca", "rsa-ca", "constrained-ca"].map(fixture);
    std::fs::write(&cas, bundle.join("\n"))?;
    TestBed::with(&[&format!("--client-ca-file={}", cas.display())]).await
}

async fn connect(
    bed: &TestBed,
    certificate: CertificateDer<'static>,
    version: &'static SupportedProtocolVersion,
) -> Result<TlsStream<TcpStream>> {
    let key = PrivateKeyDer::from_pem_slice(fixture("client.key").as_bytes())?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    let presented = CertifiedKey::new(vec![certificate], key);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_file_iter(&bed.ca.file)?.flatten());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])?
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(Presented(Arc::new(presented))));
    let stream = TcpStream::connect(bed.bastion.secure).await?;
    let connector = TlsConnector::from(Arc::new(config));
    Ok(connector
        .connect(ServerName::try_from("localhost")?, stream)
        .await?)
}

async fn get(stream: &mut TlsStream<TcpStream>, headers: &str) -> Result<()> {
    let head = format!("GET {PREFIX}/ HTTP/1.1\r\nHost: h\r\n{headers}Connection: close\r\n\r\n");
    Ok(stream.write_all(head.as_bytes()).await?)
}

fn of_fixture(name: &str) -> Result<CertificateDer<'static>> {
    Ok(CertificateDer::from_pem_slice(fixture(name).as_bytes())?)
}

#[tokio::test]
async fn authenticates_certificates_of_x509_version_1() -> Result<()> {
    let bed = bed().await?;
    for name in ["version-1", "version-1-rsa-ca", "ca-true", "any-usage"] {
        for version in VERSIONS {
            let mut stream = connect(&bed, of_fixture(name)?, version).await?;
            get(&mut stream, "").await?;
            let response = read_all(&mut stream).await;
            // The user of the certificate has no permissions here.
            ensure!(
                response.starts_with("HTTP/1.1 403 ") && response.contains(r#"User \"jane\""#),
                "{name}: {response}"
            );
        }
    }
    Ok(())
}

/// The permissions of the user do not depend on the version of its certificate.
#[tokio::test]
async fn authorizes_users_of_both_versions_of_x509() -> Result<()> {
    kube_bastion::tls::install_provider();
    let (folder, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let ca = Ca::new(folder.path(), "client-ca")?;
    let bed = TestBed::with(&[&format!("--client-ca-file={}", ca.file.display())]).await?;
    for pair in [
        ca.client(folder.path(), "reader", "g")?,
        ca.client_of_version_1(other.path(), "reader", "g")?,
    ] {
        let secure = bed.bastion.secure;
        let mut client = Client::connect(secure, &bed.ca.file, None, Some(&pair)).await?;
        let path = |pod: &str| format!("/api/v1/namespaces/default/{pod}/proxy/");
        let response = client.get(&path("pods/missing")).await?;
        ensure!(response.status == 404, "{response:?}");
        let response = client.get(&path("services/missing")).await?;
        ensure!(response.status == 403, "{response:?}");
    }
    Ok(())
}

#[tokio::test]
async fn answers_401_with_the_fault_of_a_client_certificate() -> Result<()> {
    let bed = bed().await?;
    let garbage = CertificateDer::from(b"garbage".to_vec());
    for (certificate, fault) in [
        (of_fixture("version-1-expired")?, "it expired at 2021-01-01"),
        (
            of_fixture("version-1-future")?,
            "it is not valid before 2119",
        ),
        (
            of_fixture("version-1-other-ca")?,
            "it is signed by an unknown CA",
        ),
        (of_fixture("version-1-md5")?, "its signature algorithm"),
        (of_fixture("sha1")?, "its signature algorithm"),
        (
            of_fixture("ca-true-server-auth")?,
            "its extended key usages",
        ),
        (
            of_fixture("ca-true-unknown-extension")?,
            "critical extension 1.2.3.4",
        ),
        (of_fixture("version-1-constrained")?, "name constraints"),
        (of_fixture("rsa-1024")?, "an RSA key of 1024 bits"),
        (of_fixture("dsa")?, "a key of type"),
        (garbage, "is malformed"),
    ] {
        for version in VERSIONS {
            let mut stream = connect(&bed, certificate.clone(), version).await?;
            get(&mut stream, "").await?;
            let response = read_all(&mut stream).await;
            ensure!(
                response.starts_with("HTTP/1.1 401 ")
                    && response.contains(r#""message":"Unauthorized""#)
                    && response.contains(r#""reason":"ClientCertificate""#)
                    && response.contains(fault),
                "{fault}: {response}"
            );
            // A token beside the certificate is used.
            let mut stream = connect(&bed, certificate.clone(), version).await?;
            get(&mut stream, "Authorization: Bearer t\r\n").await?;
            let (mut backend, head) = bed.accept().await?;
            ensure!(head.starts_with("GET / HTTP/1.1\r\n"), "{fault}: {head}");
            backend.write_all(OK_RESPONSE).await?;
            read_until(&mut stream, "ok").await.context(fault)?;
        }
    }
    eventually("the rejections to be logged", async || {
        let log = bed.bastion.log();
        Ok([
            "it expired at 2021-01-01",
            "an RSA key of 1024 bits",
            "is malformed",
        ]
        .iter()
        .all(|fault| {
            let mut lines = log.lines();
            lines.any(|line| {
                line.contains("client certificate rejected")
                    && line.contains(r#""level":"info""#)
                    && line.contains(fault)
            })
        }))
    })
    .await
}

#[tokio::test]
async fn fails_handshake_without_key_of_the_certificate() -> Result<()> {
    let bed = bed().await?;
    // Another key than that of the fixtures.
    let stranger = bed.ca.client(bed.folder.path(), "stranger", "g")?;
    let certificate = CertificateDer::from_pem_file(&stranger.certificate)?;
    for version in VERSIONS {
        // A client of TLS 1.3 completes its handshake before the server rejects it.
        let response = async {
            let mut stream = connect(&bed, certificate.clone(), version).await?;
            get(&mut stream, "Authorization: Bearer t\r\n").await?;
            let mut response = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut response).await?;
            anyhow::Ok(response)
        };
        ensure!(response.await.is_err(), "the handshake succeeded");
    }
    eventually("the failure to be logged", async || {
        Ok(bed.bastion.log().contains("does not hold the key"))
    })
    .await
}

/// Returns the value of the metric for a certificate.
async fn expiration(bastion: &Bastion, certificate: &str) -> Result<Option<i64>> {
    let name = format!(
        "kube_bastion_certificate_expiration_timestamp_seconds{{certificate=\"{certificate}\"}} "
    );
    let metrics = bastion.metrics().await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(&*name));
    Ok(value.map(str::parse).transpose()?)
}

/// Returns the end of a certificate's validity in Unix seconds, as openssl prints it.
fn end_of_validity(file: &std::path::Path) -> Result<i64> {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in"])
        .arg(file)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let date = text
        .trim()
        .strip_prefix("notAfter=")
        .context(text.clone())?;
    Ok(date
        .replace(' ', "T")
        .parse::<jiff::Timestamp>()?
        .as_second())
}

#[tokio::test]
async fn exposes_expiration_of_certificates_in_use() -> Result<()> {
    kube_bastion::tls::install_provider();
    let folder = tempfile::tempdir()?;
    let ca = Ca::new(folder.path(), "kubelet-ca")?;
    let kubelet = ca.client(folder.path(), "kubelet-client", "g")?;
    let bed = TestBed::with(&[
        &format!(
            "--kubelet-client-certificate={}",
            kubelet.certificate.display()
        ),
        &format!("--kubelet-client-key={}", kubelet.key.display()),
    ])
    .await?;
    let serving = bed.folder.path().join("bastion.crt");
    let expected = end_of_validity(&serving)?;
    ensure!(expiration(&bed.bastion, "serving").await? == Some(expected));
    let of_kubelet = end_of_validity(&kubelet.certificate)?;
    ensure!(expiration(&bed.bastion, "kubelet-client").await? == Some(of_kubelet));
    ensure!(expiration(&bed.bastion, "api-client").await?.is_none());

    let renewed = bed
        .ca
        .server_until(bed.folder.path(), "renewed", &["localhost"], 2090)?;
    std::fs::copy(&renewed.key, bed.folder.path().join("bastion.key"))?;
    std::fs::copy(&renewed.certificate, &serving)?;
    let renewed = end_of_validity(&renewed.certificate)?;
    ensure!(renewed != expected);
    eventually("the metric of the renewed certificate", async || {
        Ok(expiration(&bed.bastion, "serving").await? == Some(renewed))
    })
    .await?;
    let renewed = ca.client_until(folder.path(), "renewed-client", 2091)?;
    std::fs::copy(&renewed.key, &kubelet.key)?;
    std::fs::copy(&renewed.certificate, &kubelet.certificate)?;
    let renewed = end_of_validity(&renewed.certificate)?;
    eventually("the metric of the renewed client certificate", async || {
        Ok(expiration(&bed.bastion, "kubelet-client").await? == Some(renewed))
    })
    .await
}

#[tokio::test]
async fn exposes_expiration_of_client_certificate_for_the_api() -> Result<()> {
    kube_bastion::tls::install_provider();
    let folder = tempfile::tempdir()?;
    let pair = Ca::new(folder.path(), "ca")?.client(folder.path(), "bastion", "g")?;
    let kubeconfig = folder.path().join("kubeconfig");
    // No API server listens there.
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
         users: [{{name: u, user: {{client-certificate: {}, client-key: {}}}}}]\n",
        pair.certificate.display(),
        pair.key.display()
    );
    std::fs::write(&kubeconfig, text)?;
    let bastion = Bastion::start(&[&format!("--kubeconfig={}", kubeconfig.display())])?;
    let expected = end_of_validity(&pair.certificate)?;
    ensure!(expiration(&bastion, "api-client").await? == Some(expected));
    Ok(())
}

/// A client that trusts the CA file accepts the self-signed certificate, also after a restart.
#[tokio::test]
async fn stores_self_signed_certificate_with_its_ca() -> Result<()> {
    kube_bastion::tls::install_provider();
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("manifests"))?;
    let flags = [
        format!("--manifests-dir={}", at("manifests").display()),
        format!("--self-signed-dir={}", at("tls").display()),
    ];
    let mut certificates = Vec::new();
    for _ in 0..2 {
        let bastion = Bastion::start(&flags.each_ref().map(String::as_str))?;
        let log = bastion.log();
        let ca = at("tls/ca.crt");
        ensure!(
            log.contains(&format!(r#""ca":"{}""#, ca.display())),
            "{log}"
        );
        let stream = crate::support::client::tls(bastion.secure, &ca, None).await?;
        let presented = stream.get_ref().1.peer_certificates().context("a chain")?;
        certificates.push(presented[0].clone().into_owned());
    }
    ensure!(certificates[0] == certificates[1]);
    Ok(())
}
