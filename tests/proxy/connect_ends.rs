//! Tunnels by CONNECT beside others that end, and tunnels that are only idle.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::Reason;
use http::StatusCode;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::connect::{data, http2, send, send_http2};
use crate::flooded::{headers, single, stream_id};
use crate::support::eventually;
use crate::support::frames::{DATA, FrameClient, HEADERS, MAX_PAYLOAD, RST_STREAM, literal};
use crate::support::test_bed::{TestBed, read_all, read_until};

const AUTHORITY: &str = "s.default.svc:80";

/// Opens a tunnel over HTTP/1.1. Returns both of its ends.
async fn open(bed: &TestBed) -> Result<(TlsStream<TcpStream>, TcpStream)> {
    let mut client = send(bed, AUTHORITY, "Proxy-Authorization: Bearer t\r\n").await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok((client, bed.backend.accept().await?.0))
}

/// Tunnel over HTTP/2, and its connection at the endpoint.
struct Http2Tunnel {
    body: h2::RecvStream,
    stream: h2::SendStream<Bytes>,
    endpoint: TcpStream,
}

impl Http2Tunnel {
    async fn new(bed: &TestBed, sender: &mut h2::client::SendRequest<Bytes>) -> Result<Self> {
        let (response, stream) = send_http2(sender, AUTHORITY).await?;
        ensure!(response.status() == StatusCode::OK, "{response:?}");
        let (endpoint, _) = bed.backend.accept().await?;
        Ok(Self {
            body: response.into_body(),
            stream,
            endpoint,
        })
    }

    /// Checks that bytes pass in both directions.
    async fn ensure_open(&mut self) -> Result<()> {
        self.stream.send_data(Bytes::from_static(b"ping"), false)?;
        read_until(&mut self.endpoint, "ping").await?;
        self.endpoint.write_all(b"pong").await?;
        ensure!(data(&mut self.body).await? == "pong");
        Ok(())
    }
}

#[tokio::test]
async fn reset_tunnels_leave_others_of_their_connection_open() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut sender = http2(&bed).await?;
    let mut other = Http2Tunnel::new(&bed, &mut sender).await?;
    let mut tunnel = Http2Tunnel::new(&bed, &mut sender).await?;
    SockRef::from(&tunnel.endpoint).set_linger(Some(Duration::ZERO))?;
    drop(tunnel.endpoint);
    let end = tunnel.body.data().await.context("no END_STREAM")?;
    let error = end.err().context("no bytes")?;
    ensure!(
        error.is_remote() && error.reason() == Some(Reason::CONNECT_ERROR),
        "{error:?}"
    );
    other.ensure_open().await?;
    let mut tunnel = Http2Tunnel::new(&bed, &mut sender).await?;
    tunnel.stream.send_reset(Reason::CANCEL);
    ensure_reset(&mut tunnel.endpoint).await?;
    other.ensure_open().await
}

/// Frames of clients that do not know of the reset yet are no errors of theirs.
#[tokio::test]
async fn frames_behind_resets_leave_the_connection_open() -> Result<()> {
    const TUNNELS: u32 = 100;
    /// As many as the window of a stream has room for.
    const FRAMES_OF_TUNNEL: usize = 16;
    let bed = TestBed::new().await?;
    let mut client = FrameClient::new(bed.http2_client().await?, &[]).await?;
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "CONNECT"),
        (":authority", AUTHORITY),
        ("proxy-authorization", "Bearer t"),
    ] {
        literal(&mut block, name.as_bytes(), value.as_bytes());
    }
    let part = [b'x'; MAX_PAYLOAD];
    for round in 0..5 {
        let ids = || (round * TUNNELS..(round + 1) * TUNNELS).map(stream_id);
        let sent: Vec<u8> = ids().flat_map(|id| headers(0, id, &block)).collect();
        client.send(&sent).await?;
        let mut endpoints = Vec::new();
        for _ in ids() {
            endpoints.push(bed.backend.accept().await?.0);
        }
        // A reset before the response would be a failed dial.
        for _ in ids() {
            client.until(|frame| frame.kind == HEADERS).await?;
        }
        for endpoint in endpoints {
            SockRef::from(&endpoint).set_linger(Some(Duration::ZERO))?;
        }
        for _ in ids() {
            client.until(|frame| frame.kind == RST_STREAM).await?;
        }
        for _ in 0..FRAMES_OF_TUNNEL {
            let frames: Vec<u8> = ids().flat_map(|id| single(DATA, 0, id, &part)).collect();
            client.send(&frames).await?;
            client.processed().await?;
        }
    }
    Ok(())
}

/// The end of a connection, without those of its streams, is not a complete transfer.
#[tokio::test]
async fn end_of_http2_connection_resets_endpoints() -> Result<()> {
    let bed = TestBed::new().await?;
    let stream = bed.http2_client().await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    let mut tunnels = [
        Http2Tunnel::new(&bed, &mut sender).await?,
        Http2Tunnel::new(&bed, &mut sender).await?,
    ];
    connection.abort();
    for tunnel in &mut tunnels {
        ensure_reset(&mut tunnel.endpoint).await?;
    }
    Ok(())
}

/// Waits for the end of a connection, which must be a reset.
async fn ensure_reset(stream: &mut TcpStream) -> Result<()> {
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest).await;
    let kind = end.as_ref().map_err(std::io::Error::kind);
    ensure!(kind == Err(ErrorKind::ConnectionReset), "{end:?} {rest:?}");
    Ok(())
}

/// Connections without a tunnel are closed by the idle timeout, three in turn, while tunnels stay.
#[tokio::test]
async fn idle_tunnels_outlive_timeouts_of_connections() -> Result<()> {
    let settings = "idleTimeout: 1s, headTimeout: 1s, bodyTimeout: 1s, writeTimeout: 1s";
    let bed = TestBed::serving(settings, &[]).await?;
    let (mut client, mut endpoint) = open(&bed).await?;
    let mut sender = http2(&bed).await?;
    let mut tunnel = Http2Tunnel::new(&bed, &mut sender).await?;
    for _ in 0..3 {
        let mut idle = bed.client().await?;
        ensure!(read_all(&mut idle).await.is_empty());
    }
    client.write_all(b"ping").await?;
    read_until(&mut endpoint, "ping").await?;
    endpoint.write_all(b"pong").await?;
    read_until(&mut client, "pong").await?;
    tunnel.ensure_open().await
}

#[tokio::test]
async fn both_connections_of_tunnel_have_tcp_keepalive() -> Result<()> {
    let bed = TestBed::new().await?;
    let (client, endpoint) = open(&bed).await?;
    for connection in [client.get_ref().0, &endpoint] {
        let (near, far) = (connection.peer_addr()?, connection.local_addr()?);
        let what = format!("a keepalive timer between {near} and {far}");
        eventually(&what, async || has_keepalive(&bed, near, far)).await?;
    }
    Ok(())
}

/// Returns true if a connection of the bastion waits for its next keepalive probe only, as
/// `proc_net_tcp(5)` describes.
fn has_keepalive(bed: &TestBed, local: SocketAddr, remote: SocketAddr) -> Result<bool> {
    const KEEPALIVE_TIMER: &str = "02:";
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", bed.bastion.pid()))?;
    // Addresses are loopback ones, so the ports identify the connection.
    let ports = [local, remote].map(|address| format!(":{:04X}", address.port()));
    let timer = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, _, _, timer, ..] = *fields else {
            return None;
        };
        (local.ends_with(&ports[0]) && remote.ends_with(&ports[1])).then_some(timer)
    });
    let timer = timer.context("the connection is in the table")?;
    Ok(timer.starts_with(KEEPALIVE_TIMER))
}

/// Connections to an endpoint that take up its backlog, so that the system drops the SYN of further
/// ones.
fn fill_backlog(bed: &TestBed) -> Result<Vec<std::net::TcpStream>> {
    // Of one connection.
    SockRef::from(&bed.backend).listen(0)?;
    let address = bed.backend.local_addr()?;
    let mut connections = Vec::new();
    loop {
        match std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            Ok(connection) => connections.push(connection),
            Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(connections),
            Err(error) => return Err(error.into()),
        }
        ensure!(connections.len() < 100, "the backlog has no end");
    }
}

#[tokio::test]
async fn endpoint_that_does_not_answer_is_504() -> Result<()> {
    let bed = TestBed::upstream("dialTimeout: 300ms").await?;
    let backlog = fill_backlog(&bed)?;
    let mut client = send(&bed, AUTHORITY, "Proxy-Authorization: Bearer t\r\n").await?;
    let response = read_all(&mut client).await;
    ensure!(
        response.starts_with("HTTP/1.1 504 ")
            && response.contains("Proxy-Status: kube-bastion; error=connection_timeout\r\n")
            && response.contains(r#""kind":"Status""#),
        "{response}"
    );
    let mut sender = http2(&bed).await?;
    let (response, _) = send_http2(&mut sender, AUTHORITY).await?;
    ensure!(
        response.status() == StatusCode::GATEWAY_TIMEOUT,
        "{response:?}"
    );
    drop(backlog);
    Ok(())
}
