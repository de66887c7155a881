//! The PROXY protocol of load balancers, versions 1 and 2.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::OK_RESPONSE;
use crate::support::client::tls_over;
use crate::support::eventually;
use crate::support::test_bed::{PREFIX, TestBed, read_all, read_until};

/// Settings in which 127.0.0.1 is a load balancer, and other loopback addresses are not.
const FROM_BALANCER: &str = "proxyProtocol: {from: [127.0.0.1, 192.0.2.0/24]}";
const BALANCER: &str = "127.0.0.1";

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Returns a header of version 2.
fn v2(command: u8, family: u8, block: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(block.len())?.to_be_bytes();
    Ok([SIGNATURE, &[0x20 | command, family], &length, block].concat())
}

fn v1(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 10.0.0.1 4711 443\r\n").into_bytes()
}

/// Connects from a loopback address.
async fn connect(from: &str, address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from.parse::<IpAddr>()?, 0).into())?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects from the load balancer, sends `header`, and begins TLS.
async fn balanced(bed: &TestBed, header: &[u8]) -> Result<TlsStream<TcpStream>> {
    let mut stream = connect(BALANCER, bed.bastion.secure).await?;
    stream.write_all(header).await?;
    tls_over(stream, &bed.ca.file, None, &[]).await
}

/// Sends a request and returns the head that the endpoint receives.
async fn forwarded_head(
    bed: &TestBed,
    client: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
) -> Result<String> {
    let request = format!("GET {PREFIX}/ HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n");
    client.write_all(request.as_bytes()).await?;
    client.flush().await?;
    let (mut endpoint, head) = bed.accept().await?;
    endpoint.write_all(OK_RESPONSE).await?;
    read_until(client, "ok").await?;
    Ok(head)
}

#[tokio::test]
async fn client_is_the_source_in_the_header() -> Result<()> {
    let bed = TestBed::serving(FROM_BALANCER, &["--insecure-listen-address=127.0.0.1:0"]).await?;
    let ipv4 = [203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x67, 1, 0xbb];
    let ipv6 = |source: &str| -> Result<Vec<u8>> {
        let source: std::net::Ipv6Addr = source.parse()?;
        Ok([&source.octets()[..], &[0; 16], &[0x12, 0x67, 1, 0xbb]].concat())
    };
    let fields = [&[2, 0, 7][..], b"bastion", &[4, 1, 0], &[7; 256]].concat();
    let headers = [
        (v1("203.0.113.7"), "203.0.113.7"),
        (
            b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n".to_vec(),
            "2001:db8::7",
        ),
        (
            b"PROXY TCP6 ::ffff:203.0.113.7 ::1 4711 443\r\n".to_vec(),
            "203.0.113.7",
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), BALANCER),
        (
            b"PROXY UNKNOWN 203.0.113.7 10.0.0.1 1 2\r\n".to_vec(),
            BALANCER,
        ),
        (v2(1, 0x11, &ipv4)?, "203.0.113.7"),
        (v2(1, 0x11, &[&ipv4[..], &fields].concat())?, "203.0.113.7"),
        (v2(1, 0x21, &ipv6("2001:db8::7")?)?, "2001:db8::7"),
        (v2(1, 0x21, &ipv6("::ffff:203.0.113.7")?)?, "203.0.113.7"),
        (v2(1, 0x31, &[b'/'; 216])?, BALANCER),
        (v2(1, 0x12, &ipv4)?, BALANCER),
        (v2(1, 0, &[])?, BALANCER),
        (v2(0, 0, &[])?, BALANCER),
        (v2(0, 0x11, &ipv4)?, BALANCER),
    ];
    for (header, client) in headers {
        let line = format!("\r\nX-Forwarded-For: {client}\r\n");
        let mut secure = balanced(&bed, &header).await?;
        let head = forwarded_head(&bed, &mut secure).await?;
        ensure!(head.contains(&line), "{header:?}: {head}");
        ensure!(head.contains("X-Forwarded-Proto: https\r\n"), "{head}");
        let mut plain = connect(BALANCER, bed.insecure()?).await?;
        plain.write_all(&header).await?;
        let head = forwarded_head(&bed, &mut plain).await?;
        ensure!(head.contains(&line), "{header:?}: {head}");
    }
    // In pieces, each of which is read before the next.
    for header in [v1("203.0.113.7"), v2(1, 0x11, &ipv4)?] {
        let mut stream = connect(BALANCER, bed.bastion.secure).await?;
        for byte in header {
            stream.write_all(&[byte]).await?;
            tokio::task::yield_now().await;
        }
        let mut client = tls_over(stream, &bed.ca.file, None, &[]).await?;
        let head = forwarded_head(&bed, &mut client).await?;
        ensure!(head.contains("X-Forwarded-For: 203.0.113.7\r\n"), "{head}");
    }
    // Only the address of the client counts for the next request as well.
    let mut client = balanced(&bed, &v1("203.0.113.8")).await?;
    for _ in 0..2 {
        let head = forwarded_head(&bed, &mut client).await?;
        ensure!(head.contains("X-Forwarded-For: 203.0.113.8\r\n"), "{head}");
    }
    Ok(())
}

#[tokio::test]
async fn connections_of_a_load_balancer_without_valid_header_are_closed() -> Result<()> {
    let bed = TestBed::serving(FROM_BALANCER, &["--insecure-listen-address=127.0.0.1:0"]).await?;
    let request = format!("GET {PREFIX}/ HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n");
    let starts = [
        request.clone().into_bytes(),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
        b"PROXY TCP4 203.0.113.7\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2\n".to_vec(),
        [&b"PROXY "[..], &[b'x'; 200]].concat(),
        b"SSH-2.0-x\r\n".to_vec(),
        v2(2, 0x11, &[0; 12])?,
        v2(1, 0x11, &[0; 11])?,
        v2(1, 0x11, &[0; 14])?,
        v2(1, 0x11, &[0; 5000])?,
    ];
    for address in [bed.bastion.secure, bed.insecure()?] {
        for start in &starts {
            let mut client = connect(BALANCER, address).await?;
            let _ = client.write_all(start).await;
            let response = read_all(&mut client).await;
            ensure!(response.is_empty(), "{start:.40?}: {response:?}");
        }
        // Ends within the header.
        for start in [&b"PROXY TC"[..], &SIGNATURE[..5]] {
            let mut client = connect(BALANCER, address).await?;
            client.write_all(start).await?;
            client.shutdown().await?;
            ensure!(read_all(&mut client).await.is_empty(), "{start:?}");
        }
    }
    let count = 2 * (starts.len() + 2);
    let metric = format!(r#"connections_rejected_total{{reason="proxy_header"}} {count}"#);
    let warnings = || {
        let log = bed.bastion.log();
        log.matches("further ones are counted only").count()
    };
    eventually(&format!("{metric} and a warning"), async || {
        Ok(bed.bastion.metrics().await?.contains(&metric) && warnings() > 0)
    })
    .await?;
    ensure!(warnings() < starts.len(), "{}", bed.bastion.log());
    let metrics = bed.bastion.metrics().await?;
    ensure!(!metrics.contains("bastion_requests_total{"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn header_of_another_address_is_not_accepted() -> Result<()> {
    let bed = TestBed::serving(FROM_BALANCER, &["--insecure-listen-address=127.0.0.1:0"]).await?;
    for header in [v1("203.0.113.7"), v2(1, 0x11, &[7; 12])?, v2(0, 0, &[])?] {
        let mut client = connect("127.0.0.2", bed.bastion.secure).await?;
        client.write_all(&header).await?;
        ensure!(read_all(&mut client).await.is_empty(), "{header:?}");
        let mut client = connect("127.0.0.2", bed.insecure()?).await?;
        client
            .write_all(&[&header[..], b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"].concat())
            .await?;
        let response = read_all(&mut client).await;
        ensure!(
            response.starts_with("HTTP/1.1 400 ") && response.contains("proxyProtocol.from"),
            "{response}"
        );
    }
    let metric = r#"connections_rejected_total{reason="proxy_header"} 3"#;
    eventually(metric, async || {
        Ok(bed.bastion.metrics().await?.contains(metric))
    })
    .await?;
    // Without a header it is served, and its own address counts.
    let stream = connect("127.0.0.2", bed.bastion.secure).await?;
    let mut client = tls_over(stream, &bed.ca.file, None, &[]).await?;
    let head = forwarded_head(&bed, &mut client).await?;
    ensure!(head.contains("X-Forwarded-For: 127.0.0.2\r\n"), "{head}");
    Ok(())
}

#[tokio::test]
async fn header_must_arrive_within_the_handshake_timeout() -> Result<()> {
    let settings = format!("{FROM_BALANCER}, handshakeTimeout: 2s");
    let bed = TestBed::serving(&settings, &["--insecure-listen-address=127.0.0.1:0"]).await?;
    let (addresses, mut closed) = ([bed.bastion.secure, bed.insecure()?], Vec::new());
    for address in addresses {
        for start in [&b""[..], b"PROXY TCP4 203.0.113.7", &SIGNATURE[..9]] {
            closed.push(async move {
                let mut client = connect(BALANCER, address).await?;
                client.write_all(start).await?;
                ensure!(read_all(&mut client).await.is_empty(), "{start:?}");
                Ok(())
            });
        }
    }
    try_join_all(closed).await?;
    // The timeout of the header does not apply to the connection behind it.
    let mut client = connect(BALANCER, bed.insecure()?).await?;
    client.write_all(&v1("203.0.113.7")).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    forwarded_head(&bed, &mut client).await?;
    Ok(())
}

#[tokio::test]
async fn health_checks_of_load_balancers_leave_no_trace() -> Result<()> {
    let flags = [
        "--insecure-listen-address=127.0.0.1:0",
        "--log-level=kube_bastion=debug",
    ];
    let bed = TestBed::serving(FROM_BALANCER, &flags).await?;
    let before = bed.bastion.log();
    for address in [bed.bastion.secure, bed.insecure()?] {
        for header in [
            Vec::new(),
            v2(0, 0, &[])?,
            v1("203.0.113.7"),
            b"PROXY UNKNOWN\r\n".into(),
        ] {
            let mut client = connect(BALANCER, address).await?;
            client.write_all(&header).await?;
            client.shutdown().await?;
            ensure!(read_all(&mut client).await.is_empty(), "{header:?}");
            // As HAProxy ends its checks.
            let mut client = connect(BALANCER, address).await?;
            client.write_all(&header).await?;
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        }
    }
    eventually("the connections to end", async || {
        Ok(bed.bastion.metrics().await?.contains("connections_open 0"))
    })
    .await?;
    let (log, metrics) = (bed.bastion.log(), bed.bastion.metrics().await?);
    ensure!(log == before, "{log}");
    for reason in ["proxy_header", "client_share"] {
        let metric = format!(r#"connections_rejected_total{{reason="{reason}"}} 0"#);
        ensure!(metrics.contains(&metric), "{metrics}");
    }
    ensure!(!metrics.contains("bastion_requests_total{"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn limits_connections_per_client_behind_a_load_balancer() -> Result<()> {
    let settings = format!("{FROM_BALANCER}, maxConnectionsPerClient: 2");
    let bed = TestBed::serving(&settings, &[]).await?;
    let first = balanced(&bed, &v1("203.0.113.7")).await?;
    let _second = balanced(&bed, &v1("203.0.113.7")).await?;
    ensure!(
        balanced(&bed, &v1("203.0.113.7")).await.is_err(),
        "a third connection of the client is served"
    );
    // The load balancer has more connections than the limit of an address.
    let _others = [
        balanced(&bed, &v1("203.0.113.8"))
            .await
            .context("another client")?,
        balanced(&bed, &v1("203.0.113.8"))
            .await
            .context("another client")?,
    ];
    let metrics = bed.bastion.metrics().await?;
    let metric = r#"connections_rejected_total{reason="client_share"} 1"#;
    ensure!(metrics.contains(metric), "{metrics}");
    drop(first);
    eventually("the connection to be released", async || {
        Ok(balanced(&bed, &v1("203.0.113.7")).await.is_ok())
    })
    .await?;
    // Before its header is read, a connection counts for the load balancer.
    let _pending = [
        connect(BALANCER, bed.bastion.secure).await?,
        connect(BALANCER, bed.bastion.secure).await?,
    ];
    let mut third = connect(BALANCER, bed.bastion.secure).await?;
    ensure!(read_all(&mut third).await.is_empty());
    Ok(())
}
