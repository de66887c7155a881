//! Listeners: TLS versions, certificates, plain HTTP, other protocols.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::OK_RESPONSE;
use crate::support::bastion::Bastion;
use crate::support::client::tls_over;
use crate::support::eventually;
use crate::support::frames::{GOAWAY, SETTINGS};
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
    let mut client = TcpStream::connect(bed.insecure()?).await?;
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

/// Response of kube-apiserver to HTTP/1 on its HTTPS port.
const PLAIN_HTTP_RESPONSE: &str =
    "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

#[tokio::test]
async fn answers_plain_http_on_https_port_as_kube_apiserver() -> Result<()> {
    let bed = TestBed::new().await?;
    let body = "x".repeat(200_000);
    let upload = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n{body}");
    let requests = [
        "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /api/v1 HTTP/1.0\r\n\r\n",
        "GET /\r\n",
        "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
        "PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n",
        "PATCH /x HTTP/1.1\r\nHost: h\r\n\r\n",
        "DELETE /x HTTP/1.1\r\nHost: h\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        "CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
        "UPDATEREDIRECTREF / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        &upload,
    ];
    for request in requests {
        let mut client = TcpStream::connect(bed.bastion.secure).await?;
        client.write_all(request.as_bytes()).await?;
        let response = read_all(&mut client).await;
        ensure!(
            response == PLAIN_HTTP_RESPONSE,
            "{request:.30?}: {response:?}"
        );
    }
    // Byte by byte, until the response arrives.
    let mut client = TcpStream::connect(bed.bastion.secure).await?;
    client.set_nodelay(true)?;
    for byte in b"GET /" {
        client.write_all(&[*byte]).await?;
        tokio::task::yield_now().await;
    }
    ensure!(read_all(&mut client).await == PLAIN_HTTP_RESPONSE);
    let metric = format!(
        r#"requests_total{{kind="none",method="other",code="400"}} {}"#,
        requests.len() + 1
    );
    let metrics = bed.bastion.metrics().await?;
    ensure!(metrics.contains(&metric), "{metric} in\n{metrics}");
    bed.client().await.context("TLS is not served")?;
    Ok(())
}

#[tokio::test]
async fn answers_http2_without_tls_on_https_port_with_goaway() -> Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let bed = TestBed::new().await?;
    let mut client = TcpStream::connect(bed.bastion.secure).await?;
    client.write_all(PREFACE).await?;
    let mut response = Vec::new();
    client.read_to_end(&mut response).await?;
    let goaway = response.get(9..).context("SETTINGS and another frame")?;
    ensure!(
        response[3] == SETTINGS && goaway[3] == GOAWAY,
        "{response:?}"
    );
    // Length of the payload, last stream, INADEQUATE_SECURITY (RFC 9113 section 7), the reason.
    ensure!(usize::from(goaway[2]) == goaway.len() - 9, "{goaway:?}");
    ensure!(goaway[9..17] == [0, 0, 0, 0, 0, 0, 0, 0xc], "{goaway:?}");
    ensure!(goaway[17..] == *b"Client sent an HTTP request to an HTTPS server.");
    let stream = TcpStream::connect(bed.bastion.secure).await?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await?;
    let connection = tokio::spawn(connection);
    let request =
        http::Request::get("http://h/").body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let error = sender.send_request(request).await.err();
    let error = format!("{error:?} {:?}", connection.await?);
    ensure!(error.contains("INADEQUATE_SECURITY"), "{error}");
    Ok(())
}

#[tokio::test]
async fn closes_connections_that_begin_with_other_protocols_than_tls() -> Result<()> {
    let bed = TestBed::with(&["--log-level=debug"]).await?;
    for start in [
        &b"SSH-2.0-OpenSSH_9.6\r\n"[..],
        b"EHLO mail.example\r\n",
        b"USER anonymous\r\n",
        b"\r\n\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\n\r\n",
        &vec![b'G'; 100_000],
    ] {
        let mut client = TcpStream::connect(bed.bastion.secure).await?;
        let _ = client.write_all(start).await;
        let response = read_all(&mut client).await;
        ensure!(response.is_empty(), "{start:.20?}: {response:?}");
    }
    // Bytes that may be a TLS record get an alert.
    for start in [
        &[0; 64][..],
        &[0x80, 0x2e, 1, 3, 1],
        &[22, 9, 9, 0, 5, 1, 0, 0, 1, 0],
        &[0xff; 64],
    ] {
        let mut client = TcpStream::connect(bed.bastion.secure).await?;
        client.write_all(start).await?;
        client.shutdown().await?;
        let mut response = Vec::new();
        let _ = client.read_to_end(&mut response).await;
        ensure!(response.first() == Some(&21), "{start:?}: {response:?}");
    }
    let metrics = bed.bastion.metrics().await?;
    ensure!(!metrics.contains("bastion_requests_total{"), "{metrics}");
    bed.client().await.context("TLS is not served")?;
    Ok(())
}

#[tokio::test]
async fn unfinished_start_of_a_connection_ends_with_the_handshake_timeout() -> Result<()> {
    let bed = TestBed::serving("handshakeTimeout: 200ms", &[]).await?;
    for start in [
        &b""[..],
        b"G",
        b"GET ",
        b"PRI * HTTP",
        b"\r\n\r\n\0\r\nQ",
        &[22, 3, 1],
    ] {
        let mut client = TcpStream::connect(bed.bastion.secure).await?;
        client.write_all(start).await?;
        ensure!(read_all(&mut client).await.is_empty(), "{start:?}");
    }
    Ok(())
}

/// Health checks of load balancers connect and close.
#[tokio::test]
async fn unused_connections_leave_no_trace() -> Result<()> {
    let bed = TestBed::with(&[
        "--insecure-listen-address=127.0.0.1:0",
        "--log-level=kube_bastion=debug",
    ])
    .await?;
    let before = bed.bastion.log();
    for address in [bed.bastion.secure, bed.insecure()?] {
        for _ in 0..5 {
            drop(TcpStream::connect(address).await?);
            let reset = TcpStream::connect(address).await?;
            socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO))?;
            drop(reset);
            let mut closed = TcpStream::connect(address).await?;
            closed.shutdown().await?;
            ensure!(read_all(&mut closed).await.is_empty());
        }
    }
    eventually("the connections to end", async || {
        Ok(bed.bastion.metrics().await?.contains("connections_open 0"))
    })
    .await?;
    let log = bed.bastion.log();
    ensure!(log == before, "{log}");
    let metrics = bed.bastion.metrics().await?;
    ensure!(!metrics.contains("bastion_requests_total{"), "{metrics}");
    // A client that speaks is logged at this level.
    let mut client = TcpStream::connect(bed.bastion.secure).await?;
    client.write_all(&[22, 9, 9, 0, 5, 1, 0, 0, 1, 0]).await?;
    read_all(&mut client).await;
    eventually("the failed handshake to be logged", async || {
        Ok(bed.bastion.log().contains("TLS handshake failed"))
    })
    .await
}

#[tokio::test]
async fn rejects_tls_and_unexpected_proxy_headers_on_port_for_plain_http() -> Result<()> {
    let bed = TestBed::with(&["--insecure-listen-address=127.0.0.1:0"]).await?;
    let address = bed.insecure()?;
    let error = tls_over(TcpStream::connect(address).await?, &bed.ca.file, None, &[]).await;
    ensure!(error.is_err(), "TLS is served");
    let request = format!("GET {PREFIX}/ HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n");
    let request = request.as_bytes();
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\0\x01\0\x02";
    for (start, reason) in [
        (
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
            "a TLS handshake",
        ),
        (b"\x16".to_vec(), "a TLS handshake"),
        (
            [b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n", request].concat(),
            "serving.proxyProtocol.from",
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), "serving.proxyProtocol.from"),
        ([&v2[..], request].concat(), "serving.proxyProtocol.from"),
    ] {
        let mut client = TcpStream::connect(address).await?;
        client.write_all(&start).await?;
        let response = read_all(&mut client).await;
        ensure!(
            response.starts_with("HTTP/1.1 400 ") && response.contains(reason),
            "{start:?}: {response}"
        );
    }
    // HTTP/2 without TLS is not served on this port.
    let mut client = TcpStream::connect(address).await?;
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await?;
    let response = read_all(&mut client).await;
    ensure!(response.starts_with("HTTP/1.1 505 "), "{response}");
    Ok(())
}
