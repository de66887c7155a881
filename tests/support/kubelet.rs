//! A server that stands in for a kubelet. It accepts all requests and records their credentials.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::pki::Pair;

/// Credentials of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub authorization: Option<String>,
    /// Client certificate, DER.
    pub certificate: Option<Vec<u8>>,
}

/// Server of one request per connection. Dropping it stops the server.
#[derive(Debug)]
pub struct Kubelet {
    credentials: Arc<Mutex<Vec<Credentials>>>,
    task: AbortHandle,
}

impl Kubelet {
    /// Starts the server. Client certificates are optional and must be issued by `client_ca`.
    ///
    /// # Errors
    /// Returns an error if the files cannot be read.
    pub fn start(listener: TcpListener, serving: &Pair, client_ca: &Path) -> Result<Self> {
        let chain =
            CertificateDer::pem_file_iter(&serving.certificate)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&serving.key)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_file_iter(client_ca)?.flatten());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
            .with_single_cert(chain, key)?;
        let tls = TlsAcceptor::from(Arc::new(config));
        let credentials = Arc::<Mutex<Vec<Credentials>>>::default();
        let shared = Arc::clone(&credentials);
        let accept = async move {
            while let Ok((stream, _)) = listener.accept().await {
                // An aborted request is not recorded.
                let _ = serve(&tls, stream, &shared).await;
            }
        };
        Ok(Self {
            credentials,
            task: tokio::spawn(accept).abort_handle(),
        })
    }

    /// Takes the credentials of the requests since the last call.
    pub fn take_credentials(&self) -> Vec<Credentials> {
        std::mem::take(
            &mut self
                .credentials
                .lock()
                .expect("no thread panics with the list"),
        )
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    tls: &TlsAcceptor,
    stream: TcpStream,
    credentials: &Mutex<Vec<Credentials>>,
) -> std::io::Result<()> {
    let mut stream = tls.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let authorization = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization")
            .then(|| value.to_owned())
    });
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|chain| chain[0].to_vec());
    credentials
        .lock()
        .expect("no thread panics with the list")
        .push(Credentials {
            authorization,
            certificate,
        });
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        .await?;
    stream.shutdown().await
}
