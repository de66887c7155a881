//! Helpers of the unit tests.

use std::io::Write;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{DuplexStream, duplex};

use crate::http::h1::{Framing, ServerConnection};
use crate::http::{RequestBody, RequestHead, RequestTarget, Stream};
use crate::model::ClientAddress;

/// Writer whose clones share what was written.
#[derive(Clone, Debug, Default)]
pub struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    /// Returns what was written.
    ///
    /// # Panics
    /// Panics if it is not UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Polls a condition every 10 ms until it is true.
///
/// # Panics
/// Panics if the condition is still false after `timeout`.
pub async fn eventually(timeout: Duration, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(timeout, waited).await.unwrap();
}

/// Returns a client address of a documentation network (RFC 5737) with the last octet `last`.
pub fn client(last: u8) -> ClientAddress {
    IpAddr::from([192, 0, 2, last]).into()
}

/// Compresses bytes with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns a PEM block of `tests/fixtures/client_certificates.pem`.
pub fn certificate_pem(name: &str) -> &'static str {
    const FILE: &str = include_str!("../tests/fixtures/client_certificates.pem");
    let mut blocks = FILE.split("\n# ");
    let found = blocks.find_map(|block| block.strip_prefix(name)?.strip_prefix('\n'));
    found.unwrap_or_else(|| panic!("no fixture {name}"))
}

/// Returns a certificate of `tests/fixtures/client_certificates.pem`.
pub fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(certificate_pem(name).as_bytes()).unwrap()
}

/// Returns the head of a request. HTTP/2 has the authority of its URI.
pub fn head(request: http::request::Builder) -> RequestHead {
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let target = RequestTarget::from_http2(&parts.method, &parts.uri).unwrap();
    RequestHead {
        method: parts.method,
        target,
        version: parts.version,
        headers: parts.headers,
        names: Default::default(),
    }
}

/// Returns the body of a request with a header line `framing`; the test writes its bytes to the
/// stream.
pub fn request_body(framing: &str) -> (RequestBody, DuplexStream) {
    let (client, server) = duplex(1 << 20);
    let framing = match framing.strip_prefix("content-length: ") {
        Some(length) => Framing::Length(length.parse().unwrap()),
        None => Framing::Chunked,
    };
    let connection = ServerConnection::new(Stream::Memory(server), Duration::from_secs(90));
    (
        RequestBody::Http1(connection.begin(framing, false).unwrap()),
        client,
    )
}
