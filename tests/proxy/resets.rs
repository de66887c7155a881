//! Ends of tunnels: a half-close, and a reset of either side, reach the other as such.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::connect::{data, http2, send, send_http2};
use crate::support::test_bed::{TestBed, read_until};

const AUTHORITY: &str = "s.default.svc:80";

/// Closes a connection with RST.
fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Reads until the connection fails, and returns the failure.
async fn read_failure(stream: &mut TcpStream) -> Result<ErrorKind> {
    match stream.read_to_end(&mut Vec::new()).await {
        Ok(_) => bail!("the connection ended in order"),
        Err(error) => Ok(error.kind()),
    }
}

/// Opens a tunnel over HTTP/2 through which a byte has passed.
async fn open(bed: &TestBed) -> Result<(SendStream<Bytes>, RecvStream, TcpStream)> {
    let mut connection = http2(bed).await?;
    let (response, send) = send_http2(&mut connection, AUTHORITY).await?;
    let (mut backend, _) = bed.backend.accept().await?;
    backend.write_all(b"x").await?;
    let mut body = response.into_body();
    ensure!(data(&mut body).await? == "x");
    Ok((send, body, backend))
}

#[tokio::test]
async fn reset_of_the_endpoint_resets_the_stream_of_http2() -> Result<()> {
    let bed = TestBed::new().await?;
    let (_send, mut body, backend) = open(&bed).await?;
    reset(backend)?;
    let ended = body.data().await.context("the stream ended in order")?;
    let error = ended.err().context("the stream is reset")?;
    ensure!(error.reason() == Some(Reason::CONNECT_ERROR), "{error}");
    Ok(())
}

#[tokio::test]
async fn reset_of_a_stream_of_http2_resets_the_endpoint() -> Result<()> {
    let bed = TestBed::new().await?;
    let (mut send, _body, mut backend) = open(&bed).await?;
    send.send_reset(Reason::CANCEL);
    ensure!(read_failure(&mut backend).await? == ErrorKind::ConnectionReset);
    // Also one that was half-closed before.
    let (mut send, _body, mut backend) = open(&bed).await?;
    send.send_data(Bytes::new(), true)?;
    ensure!(backend.read_to_end(&mut Vec::new()).await? == 0);
    send.send_reset(Reason::CANCEL);
    let ready = backend.ready(tokio::io::Interest::ERROR).await?;
    ensure!(ready.is_error());
    Ok(())
}

#[tokio::test]
async fn half_closed_stream_of_http2_receives_the_answer() -> Result<()> {
    let bed = TestBed::new().await?;
    let (mut send, mut body, mut backend) = open(&bed).await?;
    send.send_data("question".into(), true)?;
    let mut question = String::new();
    backend.read_to_string(&mut question).await?;
    ensure!(question == "question");
    backend.write_all(b"answer").await?;
    drop(backend);
    let mut answer = Vec::new();
    while let Some(data) = body.data().await {
        answer.extend_from_slice(&data?);
    }
    ensure!(answer == b"answer", "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn reset_passes_through_a_tunnel_of_http1() -> Result<()> {
    let bed = TestBed::new().await?;
    let credentials = "Proxy-Authorization: Bearer t\r\n";
    let mut client = send(&bed, AUTHORITY, credentials).await?;
    let (backend, _) = bed.backend.accept().await?;
    read_until(&mut client, "\r\n\r\n").await?;
    reset(backend)?;
    let (tcp, _) = client.get_mut();
    ensure!(read_failure(tcp).await? == ErrorKind::ConnectionReset);

    let mut client = send(&bed, AUTHORITY, credentials).await?;
    let (mut backend, _) = bed.backend.accept().await?;
    read_until(&mut client, "\r\n\r\n").await?;
    let (tcp, _) = client.into_inner();
    reset(tcp)?;
    ensure!(read_failure(&mut backend).await? == ErrorKind::ConnectionReset);
    Ok(())
}

/// Many programs close TLS without its closing alert, and expect that all they sent arrives.
#[tokio::test]
async fn tls_that_ends_without_alert_ends_the_endpoint_in_order() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = send(&bed, AUTHORITY, "Proxy-Authorization: Bearer t\r\n").await?;
    let (mut backend, _) = bed.backend.accept().await?;
    read_until(&mut client, "\r\n\r\n").await?;
    client.write_all(b"all").await?;
    client.flush().await?;
    drop(client);
    let mut received = String::new();
    backend.read_to_string(&mut received).await?;
    ensure!(received == "all");
    Ok(())
}

#[tokio::test]
async fn large_transfer_passes_through_a_stream_of_http2() -> Result<()> {
    const BLOCKS: usize = 512;
    let pattern = |index: usize| u8::try_from(index % 251).unwrap_or_default();
    let block = move |index: usize| vec![pattern(index); 64 * 1024];
    let bed = TestBed::new().await?;
    let (mut send, mut body, mut backend) = open(&bed).await?;
    let uploading = tokio::spawn(async move {
        for index in 0..BLOCKS {
            let mut rest = Bytes::from(block(index));
            while !rest.is_empty() {
                send.reserve_capacity(rest.len());
                let capacity = std::future::poll_fn(|context| send.poll_capacity(context)).await;
                let capacity = capacity.context("the stream was reset")??;
                send.send_data(rest.split_to(capacity.min(rest.len())), false)?;
            }
        }
        send.send_data(Bytes::new(), true)?;
        anyhow::Ok(())
    });
    let echoing = tokio::spawn(async move {
        let (mut read, mut write) = backend.split();
        tokio::io::copy(&mut read, &mut write).await?;
        write.shutdown().await?;
        anyhow::Ok(())
    });
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        for (offset, byte) in data.iter().enumerate() {
            let position = received + offset;
            ensure!(*byte == pattern(position / (64 * 1024)), "byte {position}");
        }
        received += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    ensure!(received == BLOCKS * 64 * 1024, "{received}");
    uploading.await??;
    echoing.await?
}
