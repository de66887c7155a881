//! TLS configuration: the server side with its reloads, and the client sides for targets and
//! kubelets.

mod client;
mod fingerprint;
mod pair;
mod self_signed;
mod server;
mod x509;

use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustls::{SupportedProtocolVersion, version};

use crate::config::TlsVersion;
pub use client::{
    ApiServerTls, ClientTls, EndpointTls, KubeletTls, WantsClientCert, builder as client_builder,
    unverified as unverified_client_builder,
};
pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use pair::{Concern, Pair};
pub use self_signed::SelfSignedError;
pub use server::{ServerTls, sha256_hex};
pub use x509::{
    KeyError, PublicKey, SignatureError, alternative_names, parse_certificate, signature_algorithm,
    value as der_value, verify_signature,
};

use crate::model::pem::PemError;

/// Maximum size of a file with certificates or a key, far above that of all public CAs together.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Reason why TLS cannot be set up. Names the file, if any; the cause is the error's source.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {content} from {path:?}")]
    Read {
        /// Expected content of the file.
        content: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot read {content} from {path:?}")]
    Pem {
        /// Expected content of the file.
        content: &'static str,
        path: PathBuf,
        source: PemError,
    },
    #[error(
        "the private key {key:?} does not match the certificate {certificate:?}; use the key that \
         the certificate was issued for"
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error(
        "the private key {key:?} matches certificate {position} of {certificate:?}, not the first; \
         write the certificate of the key first and its intermediates behind it"
    )]
    LeafNotFirst {
        certificate: PathBuf,
        key: PathBuf,
        /// Number of the certificate that matches, from 1.
        position: usize,
    },
    #[error("certificate {position} of {path:?} is damaged or not X.509")]
    BadCertificate {
        path: PathBuf,
        /// Number in the file, from 1.
        position: usize,
    },
    #[error(
        "the certificate {path:?} is X.509 version {version}, which many peers reject; issue it as \
         version 3, for example with openssl x509 -req -extfile FILE, and in that file \
         subjectAltName = DNS:NAME for a server or extendedKeyUsage = clientAuth for a client"
    )]
    Version { path: PathBuf, version: u32 },
    #[error("the private key {path:?} cannot be used")]
    Key { path: PathBuf, source: KeyError },
    #[error("{path:?} contains a CA certificate that is damaged or not X.509")]
    BadCa { path: PathBuf },
    /// The source of the cluster has no CA, as one with certificates of a public CA.
    #[error(
        "no CA for API servers: the cluster source has none; set apiServers.certificateAuthority"
    )]
    NoApiServerCa,
    #[error("cannot create a self-signed certificate")]
    SelfSigned(#[from] SelfSignedError),
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// Installs aws-lc-rs as the cryptography provider of the process. Called first in `main`, and by
/// every test that uses TLS.
pub fn install_provider() {
    // Fails if a provider is installed already, as in a second test of one process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Returns the TLS versions from `min` on.
fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static TLS12: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    static TLS13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
    match min {
        TlsVersion::Tls12 => &TLS12,
        TlsVersion::Tls13 => &TLS13,
    }
}

/// Stores a self-signed certificate for this host and a listen address in a directory, as
/// `serving.selfSignedDir` does: `ca.crt`, `tls.crt` and `tls.key`.
///
/// # Errors
/// A directory that cannot be written.
pub fn store_self_signed(directory: &Path, listen: SocketAddr) -> Result<(), TlsError> {
    self_signed::load_or_create(directory, listen, true).map(drop)
}

/// Returns true if a TLS handshake failed because of the certificate of the peer.
pub fn is_certificate_error(error: &io::Error) -> bool {
    let source = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(source, Some(rustls::Error::InvalidCertificate(_)))
}

/// Reads a file up to the maximum size.
fn read(content: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let mut file = Vec::new();
        let opened = std::fs::File::open(path)?;
        opened.take(MAX_FILE_BYTES).read_to_end(&mut file)?;
        Ok(file)
    };
    read().map_err(|source| TlsError::Read {
        content,
        path: path.into(),
        source,
    })
}
