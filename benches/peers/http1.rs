//! A blocking HTTP/1.1 client over TLS for the load generators of this benchmark.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};

/// Maximum time of a read or write, which ends a load on a peer that hangs.
const IO_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of the head of a response.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Returns the TLS settings of a client. Without `resumption` it never offers a session, so that
/// each handshake is full. Its key share is for X25519, so that all peers do the same key exchange.
///
/// # Errors
/// Returns an error if the file of the CA is invalid.
pub fn client_config(ca: &Path, resumption: bool) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca)? {
        roots.add(root?)?;
    }
    let mut provider = aws_lc_rs::default_provider();
    // OpenSSL requires the curve of its certificate to be offered.
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if !resumption {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// Returns the head of a request.
pub fn head(method: &str, path: &str, token: &str, more: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
    )
    .into_bytes()
}

/// Open connection.
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Box<[u8]>,
}

impl Connection {
    /// Connects. The handshake is complete after the first request.
    ///
    /// # Errors
    /// Returns an error if the connection is refused.
    pub fn open(config: &Arc<ClientConfig>, address: SocketAddr) -> Result<Self> {
        Self::over(TcpStream::connect(address)?, config)
    }

    /// Connects with a receive buffer of a size in bytes, so that the kernel takes little of a
    /// response that is not read.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_small(
        config: &Arc<ClientConfig>,
        address: SocketAddr,
        receive_buffer: usize,
    ) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_recv_buffer_size(receive_buffer)?;
        socket.connect(&address.into())?;
        Self::over(socket.into(), config)
    }

    fn over(stream: TcpStream, config: &Arc<ClientConfig>) -> Result<Self> {
        const BUFFER_BYTES: usize = 16 << 10;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        let name = ServerName::try_from("localhost")?;
        let tls = ClientConnection::new(Arc::clone(config), name)?;
        Ok(Self {
            stream: StreamOwned::new(tls, stream),
            buffer: vec![0; BUFFER_BYTES].into(),
        })
    }

    pub fn handshake(&self) -> Option<HandshakeKind> {
        self.stream.conn.handshake_kind()
    }

    /// Sends a request without a body and reads the complete response. Returns the size of its
    /// body.
    ///
    /// # Errors
    /// Returns an error if the response is not 2xx.
    pub fn exchange(&mut self, head: &[u8]) -> Result<u64> {
        self.stream.write_all(head)?;
        self.response()
    }

    /// Sends a request with a body and reads the complete response.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn upload(&mut self, head: &[u8], body: u64) -> Result<()> {
        static CHUNK: [u8; 64 << 10] = [b'x'; 64 << 10];
        self.stream.write_all(head)?;
        let mut left = body;
        while left > 0 {
            let size = CHUNK.len().min(usize::try_from(left)?);
            self.stream.write_all(&CHUNK[..size])?;
            left -= size as u64;
        }
        self.response()?;
        Ok(())
    }

    /// Sends a request and reads the head of the response, and whatever of its body arrived with
    /// it.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn begin(&mut self, head: &[u8]) -> Result<()> {
        self.stream.write_all(head)?;
        self.response_head()?;
        Ok(())
    }

    /// Reads and discards some bytes of a body.
    ///
    /// # Errors
    /// Returns an error if the connection ends before.
    pub fn skip(&mut self, bytes: u64) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let room = self.buffer.len().min(usize::try_from(left)?);
            let read = self.stream.read(&mut self.buffer[..room])?;
            ensure!(read > 0, "the connection ended within the body");
            left -= read as u64;
        }
        Ok(())
    }

    /// Closes the connection as a client does that has all it wanted.
    pub fn close(mut self) {
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
    }

    fn response(&mut self) -> Result<u64> {
        let (length, received) = self.response_head()?;
        let left = length
            .checked_sub(received)
            .context("more bytes than Content-Length")?;
        self.skip(left)?;
        Ok(length)
    }

    /// Returns Content-Length, and the number of bytes of the body that arrived with the head.
    fn response_head(&mut self) -> Result<(u64, u64)> {
        let mut filled = 0;
        let end = loop {
            ensure!(filled < MAX_HEAD_BYTES, "the head of the response is long");
            let read = self.stream.read(&mut self.buffer[filled..])?;
            ensure!(read > 0, "the connection ended before a response");
            filled += read;
            let end = self.buffer[..filled]
                .windows(4)
                .position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]);
        ensure!(head.starts_with("HTTP/1.1 2"), "not 2xx: {head}");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.trim().parse().ok())?
        });
        let length = length.with_context(|| format!("no Content-Length: {head}"))?;
        Ok((length, (filled - end) as u64))
    }
}
