//! Front proxies whose `X-Forwarded-*` headers count.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::support::access_log::AccessLog;
use crate::support::client::{tls_from, tls_over};
use crate::support::test_bed::{PREFIX, TestBed, read_until};
use crate::{OK_RESPONSE, SWITCH_TO_X};

/// Settings in which 127.0.0.1 and a network are front proxies.
const TRUSTED: &str = "trustedProxies: [127.0.0.1, 10.0.0.0/8]";
const PROXY: &str = "127.0.0.1";
const OTHER: &str = "127.0.0.2";

/// Header lines of a request that came through two front proxies, and forged ones of its client.
const REPORTED: &str = "X-Forwarded-For: 198.51.100.1, 203.0.113.7\r\nX-Forwarded-For: 10.1.1.1\r\n\
                        X-Forwarded-Proto: http\r\nX-Forwarded-Host: apps.example:8443\r\n";

/// Sends a GET from a loopback address.
async fn get(bed: &TestBed, from: &str, path: &str, rest: &str) -> Result<TlsStream<TcpStream>> {
    let (from, ca): (IpAddr, _) = (from.parse()?, &bed.ca.file);
    let mut client = tls_from(from, bed.bastion.secure, ca, &[]).await?;
    let head = format!(
        "GET {PREFIX}{path} HTTP/1.1\r\nHost: inner\r\nAuthorization: Bearer t\r\n{rest}\r\n"
    );
    client.write_all(head.as_bytes()).await?;
    Ok(client)
}

/// Returns the values of the headers that describe the client, in the order of their names.
fn described(head: &str) -> Vec<&str> {
    let values = |name: &str| {
        let name = name.to_owned();
        head.lines().filter_map(move |line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(&name).then_some(value)
        })
    };
    [
        "host",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    ]
    .into_iter()
    .flat_map(values)
    .collect()
}

#[tokio::test]
async fn headers_of_trusted_proxies_only_count() -> Result<()> {
    let bed = TestBed::serving(TRUSTED, &[]).await?;
    let _client = get(&bed, PROXY, "/", REPORTED).await?;
    let (_endpoint, head) = bed.accept().await?;
    let expected = [
        "apps.example:8443",
        "198.51.100.1, 203.0.113.7, 10.1.1.1, 127.0.0.1",
        "apps.example:8443",
        "http",
    ];
    ensure!(described(&head) == expected, "{head}");
    let _client = get(&bed, OTHER, "/", REPORTED).await?;
    let (_endpoint, head) = bed.accept().await?;
    let expected = [
        "inner",
        "198.51.100.1, 203.0.113.7, 10.1.1.1, 127.0.0.2",
        "inner",
        "https",
    ];
    ensure!(described(&head) == expected, "{head}");
    // What a trusted proxy does not report, or not validly, is that of the connection.
    for rest in ["", "X-Forwarded-Proto: gopher\r\nX-Forwarded-Host: a/b\r\n"] {
        let _client = get(&bed, PROXY, "/", rest).await?;
        let (_endpoint, head) = bed.accept().await?;
        ensure!(
            described(&head) == ["inner", PROXY, "inner", "https"],
            "{head}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn headers_count_over_http2_and_with_upgrades() -> Result<()> {
    let bed = TestBed::serving(TRUSTED, &[]).await?;
    let expected = [
        "apps.example",
        "203.0.113.7, 127.0.0.1",
        "apps.example",
        "http",
    ];
    let upgrade = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Host: apps.example\r\n\
                   X-Forwarded-Proto: ws\r\nConnection: Upgrade, X-Forwarded-For, Host\r\n\
                   Upgrade: x\r\n";
    let mut client = get(&bed, PROXY, "/", upgrade).await?;
    let (mut endpoint, head) = bed.accept().await?;
    // `Connection` must not remove the address of the proxy, only what came before it.
    let mut of_upgrade = expected;
    of_upgrade[1] = PROXY;
    ensure!(described(&head) == of_upgrade, "{head}");
    endpoint.write_all(SWITCH_TO_X).await?;
    read_until(&mut client, "\r\n\r\n").await?;

    let io = hyper_util::rt::TokioIo::new(bed.http2_client().await?);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await?;
    tokio::spawn(connection);
    let request = Request::get(format!("https://inner{PREFIX}/"))
        .header("authorization", "Bearer t")
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-forwarded-host", "apps.example")
        .header("x-forwarded-proto", "http")
        .body(http_body_util::Empty::<Bytes>::new())?;
    let response = tokio::spawn(async move { sender.send_request(request).await });
    let (mut endpoint, head) = bed.accept().await?;
    ensure!(described(&head) == expected, "{head}");
    endpoint.write_all(OK_RESPONSE).await?;
    ensure!(response.await??.status() == 200);
    Ok(())
}

#[tokio::test]
async fn links_with_the_reported_host_lead_through_the_bastion() -> Result<()> {
    let bed = TestBed::serving(TRUSTED, &[]).await?;
    for (from, location) in [
        (PROXY, format!("{PREFIX}/login")),
        (OTHER, "http://apps.example:8443/login".into()),
    ] {
        let mut client = get(&bed, from, "/", REPORTED).await?;
        let (mut endpoint, _) = bed.accept().await?;
        endpoint
            .write_all(
                b"HTTP/1.1 302 Found\r\nLocation: http://apps.example:8443/login\r\nContent-Length: 0\r\n\r\n",
            )
            .await?;
        let response = read_until(&mut client, "\r\n\r\n").await?;
        let line = format!("Location: {location}\r\n");
        ensure!(response.contains(&line), "{from}: {response}");
    }
    let mut client = get(&bed, PROXY, "/", REPORTED).await?;
    let (mut endpoint, _) = bed.accept().await?;
    let page = r#"<a href="http://apps.example:8443/x">"#;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
        page.len()
    );
    endpoint
        .write_all(format!("{head}{page}").as_bytes())
        .await?;
    let response = read_until(&mut client, ">").await?;
    ensure!(
        response.ends_with(&format!(r#"<a href="{PREFIX}/x">"#)),
        "{response}"
    );
    Ok(())
}

/// Sends requests through a bastion with an access log, and returns the clients in its lines.
async fn logged_clients(settings: &str, starts: &[(&str, &[u8], &str)]) -> Result<Vec<String>> {
    let mut bed = TestBed::serving(settings, &[]).await?;
    let log = AccessLog::of(&mut bed).await?;
    for (from, start, lines) in starts {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from.parse::<IpAddr>()?, 0).into())?;
        let mut stream = socket.connect(bed.bastion.secure).await?;
        stream.write_all(start).await?;
        let mut client = tls_over(stream, &bed.ca.file, None, &[]).await?;
        // Rejected without an endpoint: the lines of such requests name the client as well.
        let head = format!("GET /x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n{lines}\r\n");
        client.write_all(head.as_bytes()).await?;
        let response = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(response.starts_with("HTTP/1.1 404 "), "{response}");
    }
    let lines = log.lines(starts.len()).await?;
    let client = |line: &serde_json::Value| Ok(line["client"].as_str().context("a client")?.into());
    lines.iter().map(client).collect()
}

#[tokio::test]
async fn access_log_has_the_reported_client() -> Result<()> {
    let settings = format!("workers: 1, {TRUSTED}, proxyProtocol: {{from: [127.0.0.3]}}");
    let clients = logged_clients(
        &settings,
        &[
            (PROXY, b"", REPORTED),
            (OTHER, b"", REPORTED),
            (PROXY, b"", "X-Forwarded-For: unknown\r\n"),
            (PROXY, b"", "X-Forwarded-For: 2001:db8::7\r\n"),
            // Behind a load balancer: its client is a front proxy, or is not.
            (
                "127.0.0.3",
                b"PROXY TCP4 10.1.1.1 10.0.0.9 1 2\r\n",
                REPORTED,
            ),
            (
                "127.0.0.3",
                b"PROXY TCP4 192.0.2.9 10.0.0.9 1 2\r\n",
                REPORTED,
            ),
            (
                "127.0.0.3",
                b"PROXY TCP6 ::ffff:10.1.1.1 ::1 1 2\r\n",
                REPORTED,
            ),
        ],
    )
    .await?;
    let expected = [
        "203.0.113.7",
        OTHER,
        PROXY,
        "2001:db8::7",
        "203.0.113.7",
        "192.0.2.9",
        "203.0.113.7",
    ];
    ensure!(clients == expected, "{clients:?}");
    Ok(())
}

/// A trusted proxy reports addresses, not users.
#[tokio::test]
async fn trusted_proxy_cannot_name_a_user() -> Result<()> {
    let bed = TestBed::serving(TRUSTED, &[]).await?;
    let mut client = tls_from(PROXY.parse()?, bed.bastion.secure, &bed.ca.file, &[]).await?;
    let head = format!(
        "GET {PREFIX}/ HTTP/1.1\r\nHost: h\r\nX-Remote-User: jane\r\n\
         X-Remote-Group: system:masters\r\n{REPORTED}\r\n"
    );
    client.write_all(head.as_bytes()).await?;
    let response = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(response.starts_with("HTTP/1.1 401 "), "{response}");
    Ok(())
}
