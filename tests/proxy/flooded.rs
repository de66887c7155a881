//! The bastion under a flood, its endpoint, and the frames of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::OK_RESPONSE;
use crate::support::frames::{END_HEADERS, FrameClient, HEADERS, MAX_PAYLOAD, frame, literal};
use crate::support::test_bed::{PREFIX, TestBed, read_until};

/// Number of interim responses of 1 KB to a request for `/hints`.
const HINTS: usize = 20_000;

/// Bastion under a flood, and its endpoint.
pub struct Flooded {
    pub bed: Arc<TestBed>,
    pub endpoint: Arc<Endpoint>,
    /// Resident memory before the flood.
    before: usize,
}

/// Progress of the endpoint.
#[derive(Default)]
pub struct Endpoint {
    requests: AtomicUsize,
    /// Requests for `/hints` whose interim responses were written.
    pub hinted: AtomicUsize,
}

impl Flooded {
    pub async fn new() -> Result<Self> {
        // With one worker, floods and other connections share it.
        let bed = Arc::new(TestBed::serving("workers: 1", &[]).await?);
        let endpoint = Arc::<Endpoint>::default();
        let (listening, shared) = (Arc::clone(&bed), Arc::clone(&endpoint));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listening.backend.accept().await {
                let endpoint = Arc::clone(&shared);
                tokio::spawn(async move { endpoint.respond(stream).await });
            }
        });
        let mut flooded = Self {
            bed,
            endpoint,
            before: 0,
        };
        flooded.serves_another_connection().await?;
        flooded.endpoint.requests.store(0, Ordering::Relaxed);
        flooded.bed.bastion.reset_peak()?;
        flooded.before = flooded.bed.bastion.resident()?;
        Ok(flooded)
    }

    pub async fn client(
        &self,
        settings: &[(u16, u32)],
    ) -> Result<FrameClient<TlsStream<TcpStream>>> {
        FrameClient::new(self.bed.http2_client().await?, settings).await
    }

    pub fn requests(&self) -> usize {
        self.endpoint.requests.load(Ordering::Relaxed)
    }

    /// Checks the growth of the resident memory at its peak.
    pub fn memory_below(&self, what: &str, limit: usize) -> Result<()> {
        let grown = self.bed.bastion.peak()?.saturating_sub(self.before);
        let requests = self.requests();
        println!(
            "{what}: {} KiB at the peak, {requests} requests at the endpoint",
            grown / 1024
        );
        ensure!(grown < limit, "{what}: {grown} bytes");
        Ok(())
    }

    pub async fn serves_another_connection(&self) -> Result<()> {
        let mut client = self.bed.request("GET /ok", "\r\n").await?;
        let response = read_until(&mut client, "\r\n\r\n").await?;
        ensure!(response.starts_with("HTTP/1.1 200 "), "{response}");
        Ok(())
    }
}

impl Endpoint {
    /// Serves a connection. The paths name the behavior.
    async fn respond(&self, mut stream: TcpStream) -> Result<()> {
        loop {
            let head = read_until(&mut stream, "\r\n\r\n").await?;
            self.requests.fetch_add(1, Ordering::Relaxed);
            match head.split(' ').nth(1).context("a target")? {
                "/stalled" => std::future::pending().await,
                "/silent" => {}
                "/body" => {
                    read_until(&mut stream, "\r\n0\r\n\r\n").await?;
                    stream.write_all(OK_RESPONSE).await?;
                }
                "/endless" => {
                    let length = 1_u64 << 40;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    stream.write_all(head.as_bytes()).await?;
                    loop {
                        stream.write_all(&[b'x'; MAX_PAYLOAD]).await?;
                    }
                }
                "/hints" => {
                    let link = "x".repeat(1000);
                    for n in 0..HINTS {
                        // Different values, which HPACK does not shorten to an index.
                        let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: <{n}{link}>\r\n\r\n");
                        stream.write_all(hint.as_bytes()).await?;
                    }
                    self.hinted.fetch_add(1, Ordering::Relaxed);
                    stream.write_all(OK_RESPONSE).await?;
                }
                _ => stream.write_all(OK_RESPONSE).await?,
            }
        }
    }
}

/// Header block of a request.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", method),
        (":scheme", "https"),
        (":authority", "h"),
        (":path", &format!("{PREFIX}{path}")),
        ("authorization", "Bearer t"),
    ] {
        literal(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

/// HEADERS frame of a request.
pub fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    single(HEADERS, flags | END_HEADERS, stream, block)
}

pub fn single(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut sent = Vec::new();
    frame(&mut sent, kind, flags, stream, payload);
    sent
}

pub fn stream_id(n: u32) -> u32 {
    2 * n + 1
}
