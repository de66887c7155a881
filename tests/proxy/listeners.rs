//! Listeners: TLS versions, certificates, plain HTTP.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::OK_RESPONSE;
use crate::support::bastion::Bastion;
use crate::support::eventually;
use crate::support::test_bed::{PREFIX, TestBed, read_all, read_until};

#[tokio::test]
async fn rejects_old_tls_versions() -> Result<()> {
    let with_tls12 = async |bed: &TestBed| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_file_iter(&bed.ca.file)?.flatten());
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(bed.bastion.secure).await?;
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        anyhow::Ok(connector.connect("localhost".try_into()?, stream).await?)
    };
    let bed = TestBed::new().await?;
    with_tls12(&bed).await.context("TLS 1.2 is served")?;
    // A ClientHello of TLS 1.1 (RFC 4346): version, random, no session, one suite, no compression.
    let hello = [&[3, 2][..], &[7; 32], &[0], &[0, 2, 0, 0x2f], &[1, 0]].concat();
    let length = u8::try_from(hello.len())?;
    let record = [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &hello].concat();
    let mut client = TcpStream::connect(bed.bastion.secure).await?;
    client.write_all(&record).await?;
    let mut alert = [0; 7];
    client.read_exact(&mut alert).await?;
    ensure!((alert[0], alert[5]) == (21, 2), "no fatal alert: {alert:?}");

    let strict = TestBed::with(&["--tls-min-version=VersionTLS13"]).await?;
    let error = with_tls12(&strict)
        .await
        .err()
        .context("TLS 1.2 was served")?;
    ensure!(error.to_string().contains("ProtocolVersion"), "{error:#}");
    strict.client().await.context("TLS 1.3 is served")?;
    Ok(())
}

#[tokio::test]
async fn reloads_certificate_and_keeps_old_one_on_error() -> Result<()> {
    let bed = TestBed::new().await?;
    let served = async || -> Result<Vec<u8>> {
        let stream = bed.client().await?;
        Ok(stream
            .get_ref()
            .1
            .peer_certificates()
            .context("a certificate")?[0]
            .to_vec())
    };
    let before = served().await?;
    let (certificate, key) = (
        bed.folder.path().join("bastion.crt"),
        bed.folder.path().join("bastion.key"),
    );
    std::fs::write(&key, "not a key")?;
    eventually("the invalid key to be logged", async || {
        Ok(bed
            .bastion
            .log()
            .contains("cannot use the changed certificate"))
    })
    .await?;
    ensure!(served().await? == before);
    // Issued by the same CA, which the client trusts.
    let renewed = bed
        .ca
        .server(bed.folder.path(), "renewed", &["localhost"])?;
    std::fs::copy(&renewed.key, &key)?;
    std::fs::copy(&renewed.certificate, &certificate)?;
    eventually(
        "the new certificate",
        async || Ok(served().await? != before),
    )
    .await
}

#[tokio::test]
async fn logs_fingerprint_of_self_signed_certificate() -> Result<()> {
    kube_bastion::tls::install_provider();
    let folder = tempfile::tempdir()?;
    let bastion = Bastion::start(&[&format!("--manifests-dir={}", folder.path().display())])?;
    let log = bastion.log();
    let (_, rest) = log
        .split_once(r#""sha256":""#)
        .context("the fingerprint is logged")?;
    let (fingerprint, _) = rest.split_once('"').context("a JSON string")?;
    let output = Command::new("sh")
        .args([
            "-c",
            &format!(
                "openssl s_client -connect {} </dev/null 2>/dev/null | openssl x509 -noout -fingerprint -sha256",
                bastion.secure
            ),
        ])
        .output()?;
    let presented = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        presented.trim().ends_with(fingerprint) && fingerprint.len() == 95,
        "logged {fingerprint}, presented {presented}"
    );
    Ok(())
}

#[tokio::test]
async fn serves_plain_http_on_insecure_address() -> Result<()> {
    let bed = TestBed::with(&["--insecure-listen-address=127.0.0.1:0"]).await?;
    let log = bed.bastion.log();
    let (_, rest) = log
        .split_once(r#""insecure":""#)
        .context("the port is logged")?;
    let (address, _) = rest.split_once('"').context("a JSON string")?;
    let mut client = TcpStream::connect(address).await?;
    client
        .write_all(
            format!("GET {PREFIX}/ HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n")
                .as_bytes(),
        )
        .await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(head.contains("X-Forwarded-Proto: http\r\n"), "{head}");
    backend.write_all(OK_RESPONSE).await?;
    ensure!(
        read_until(&mut client, "ok")
            .await?
            .starts_with("HTTP/1.1 200 ")
    );
    Ok(())
}

/// CONFORMANCE C102.
#[tokio::test]
async fn closes_connection_with_incomplete_request_head() -> Result<()> {
    let bed = TestBed::serving("headTimeout: 200ms", &[]).await?;
    let mut client = bed.client().await?;
    client.write_all(b"GET / HTTP/1.1\r\nHost: h").await?;
    let response = read_all(&mut client).await;
    ensure!(
        response.starts_with("HTTP/1.1 408 ") && response.contains("serving.headTimeout"),
        "{response}"
    );
    Ok(())
}
