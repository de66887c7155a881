//! `proxy` while the credentials of its user change.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::api::{Desk, ok};
use crate::proxy::Proxy;
use crate::support::test_bed::{read_all, read_until};
use crate::support::tls_endpoint::TlsEndpoint;

/// Client certificates are read again every 10 s.
#[tokio::test]
async fn rotated_client_certificate_closes_connections_with_the_earlier_one() -> Result<()> {
    let desk = Desk::new()?;
    let folder = desk.folder.path();
    let endpoint = TlsEndpoint::start_with_clients(&desk.ca, folder, &["127.0.0.1"]).await?;
    let pair = desk.ca.client(folder, "jane", "developers")?;
    let (certificate, key) = (pair.certificate.display(), pair.key.display());
    let user = format!("{{client-certificate: {certificate}, client-key: {key}}}");
    let kubeconfig = desk.kubeconfig(&format!("https://{}", endpoint.address()?), &user)?;
    let proxy = Proxy::start(&[&kubeconfig]).await?;
    let respond = async |stream: &mut TlsStream<TcpStream>| -> Result<()> {
        read_until(stream, "\r\n\r\n").await?;
        Ok(stream.write_all(&ok("ok")).await?)
    };
    // Returns the certificate of the next connection, after its first response.
    let serve = async || -> Result<_> {
        let mut stream = endpoint.accept_http1().await?;
        respond(&mut stream).await?;
        let shown = stream.get_ref().1.peer_certificates();
        let shown = shown.and_then(<[_]>::first).context("a certificate")?;
        Ok((shown.clone().into_owned(), stream))
    };
    let (answer, served) = tokio::join!(proxy.get("/api"), serve());
    let (first, mut stream) = served?;
    assert_eq!(answer?.status, 200);
    // Requests share a connection.
    let (answer, responded) = tokio::join!(proxy.get("/api"), respond(&mut stream));
    responded?;
    assert_eq!(answer?.status, 200);

    desk.ca.client(folder, "jane", "developers")?;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let (answer, served) = tokio::join!(proxy.get("/api"), serve());
    assert_eq!(answer?.status, 200);
    ensure!(served?.0 != first, "the earlier certificate was shown");
    // Before the idle timeout of a minute.
    let end = tokio::time::timeout(Duration::from_secs(30), read_all(&mut stream)).await;
    ensure!(end?.is_empty());
    Ok(())
}
