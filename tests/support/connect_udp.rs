//! A client of UDP tunnels (RFC 9298), one connection for each.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use h2::ext::Protocol;
use http::{Method, Request, StatusCode, header};
use kube_bastion::tunnel::capsule::{Decoder, encode_datagram};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::client::{tls, tls_with_alpn};
use super::connect::Version;
use super::eventually;
use super::test_bed::read_until;

/// Open tunnel to one target.
pub struct UdpTunnel {
    stream: Stream,
    decoder: Decoder,
    input: BytesMut,
}

enum Stream {
    Http1(Box<TlsStream<TcpStream>>),
    Http2(h2::SendStream<Bytes>, h2::RecvStream),
}

impl UdpTunnel {
    /// Opens a tunnel to `target`, a host and a port with a slash between.
    ///
    /// # Errors
    /// Returns an error with the response if it opens none.
    pub async fn open(
        bastion: SocketAddr,
        ca: &Path,
        token: &str,
        version: Version,
        target: &str,
    ) -> Result<Self> {
        let path = format!("/.well-known/masque/udp/{target}/");
        let credentials = format!("Bearer {token}");
        let stream = match version {
            Version::Http1 => {
                let mut stream = tls(bastion, ca, None).await?;
                let head = format!(
                    "GET {path} HTTP/1.1\r\nHost: bastion.test\r\nProxy-Authorization: {credentials}\r\n\
                     Connection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).await?;
                let mut head = read_until(&mut stream, "\r\n\r\n").await?;
                if !head.starts_with("HTTP/1.1 101 ") {
                    // The connection may stay open.
                    let mut body = vec![0; 4096];
                    let read = stream.read(&mut body).await.unwrap_or_default();
                    head += &String::from_utf8_lossy(&body[..read]);
                }
                let lower = head.to_ascii_lowercase();
                ensure!(
                    lower.starts_with("http/1.1 101 ")
                        && lower.contains("\r\nupgrade: connect-udp\r\n")
                        && lower.contains("\r\ncapsule-protocol: ?1\r\n"),
                    "{target}: {head}"
                );
                Stream::Http1(Box::new(stream))
            }
            Version::Http2 => {
                let stream = tls_with_alpn(bastion, ca, None, &[b"h2"]).await?;
                let (sender, connection) = h2::client::handshake(stream).await?;
                tokio::spawn(connection);
                let mut sender = sender.ready().await?;
                eventually("extended CONNECT", async || {
                    Ok(sender.is_extended_connect_protocol_enabled())
                })
                .await?;
                let mut request = Request::builder()
                    .method(Method::CONNECT)
                    .uri(format!("https://bastion.test{path}"))
                    .header(header::PROXY_AUTHORIZATION, credentials)
                    .header("capsule-protocol", "?1")
                    .body(())?;
                let protocol = Protocol::from_static("connect-udp");
                request.extensions_mut().insert(protocol);
                let (response, send) = sender.send_request(request, false)?;
                let response = response.await?;
                let capsules = response.headers().get("capsule-protocol");
                let is_open =
                    response.status() == StatusCode::OK && capsules.is_some_and(|it| it == "?1");
                if !is_open {
                    let (head, mut body) = response.into_parts();
                    let text = body.data().await.transpose()?.unwrap_or_default();
                    let text = String::from_utf8_lossy(&text);
                    anyhow::bail!("{target}: {} {text}", head.status);
                }
                Stream::Http2(send, response.into_body())
            }
        };
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            input: BytesMut::new(),
        })
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// Returns an error if the tunnel has ended.
    pub async fn send(&mut self, payload: &[u8]) -> Result<()> {
        let mut capsule = Vec::new();
        encode_datagram(payload, &mut capsule);
        match &mut self.stream {
            Stream::Http1(stream) => {
                stream.write_all(&capsule).await?;
                stream.flush().await?;
            }
            Stream::Http2(send, _) => send.send_data(capsule.into(), false)?,
        }
        Ok(())
    }

    /// Returns the next datagram.
    ///
    /// # Errors
    /// Returns an error if the tunnel has ended.
    pub async fn receive(&mut self) -> Result<Bytes> {
        loop {
            if let Some(datagram) = self.decoder.decode(&mut self.input)? {
                return Ok(datagram);
            }
            match &mut self.stream {
                Stream::Http1(stream) => {
                    let read = stream.read_buf(&mut self.input).await?;
                    ensure!(read > 0, "the connection ended");
                }
                Stream::Http2(_, body) => {
                    let data = body.data().await.context("the stream ended")??;
                    self.input.extend_from_slice(&data);
                    body.flow_control().release_capacity(data.len())?;
                }
            }
        }
    }
}
