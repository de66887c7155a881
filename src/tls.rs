//! TLS configuration: the server side with its reloads, and the client sides for targets and
//! kubelets.

mod client;
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{SupportedProtocolVersion, version};

use crate::config::TlsVersion;
pub use client::{ClientTls, EndpointTls, KubeletTls};
pub use server::{ServerTls, sha256_hex};

/// Reason why TLS cannot be set up. Names the file, if any; the cause is the error's source.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {content} from {path:?}")]
    Pem {
        /// Expected content of the file.
        content: &'static str,
        path: PathBuf,
        source: pem::Error,
    },
    #[error("cannot read {content} from {path:?}: the PEM file is damaged or incomplete")]
    Damaged {
        /// Expected content of the file.
        content: &'static str,
        path: PathBuf,
    },
    #[error("{path:?} contains no certificate; expected a PEM file with BEGIN CERTIFICATE")]
    NoCertificate { path: PathBuf },
    #[error(
        "the private key {key:?} does not match the certificate {certificate:?}; use the key that \
         the certificate was issued for"
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("{path:?} contains a certificate that is damaged or not X.509")]
    BadCertificate { path: PathBuf },
    #[error("the private key {key:?} or the certificate {certificate:?} cannot be used")]
    BadPair {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("{path:?} contains a CA certificate that is damaged or not X.509")]
    BadCa { path: PathBuf },
    #[error("cannot create a self-signed certificate")]
    SelfSigned(#[from] rcgen::Error),
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

/// Reads a certificate chain and its private key, and checks that they match.
fn load_pair(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = load_certificates(certificate)?;
    let pem = |source| pem_error("a private key", key, source);
    let der = PrivateKeyDer::from_pem_file(key).map_err(pem)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let (certificate, key) = (certificate.to_owned(), key.to_owned());
    CertifiedKey::from_der(chain, der, &provider)
        .map(Arc::new)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { certificate, key },
            rustls::Error::InvalidCertificate(_) => TlsError::BadCertificate { path: certificate },
            source => TlsError::BadPair {
                certificate,
                key,
                source,
            },
        })
}

fn pem_error(content: &'static str, path: &Path, source: pem::Error) -> TlsError {
    let path = path.to_owned();
    match source {
        // Their messages print the lines of the file as lists of bytes.
        pem::Error::MissingSectionEnd { .. } | pem::Error::IllegalSectionStart { .. } => {
            TlsError::Damaged { content, path }
        }
        source => TlsError::Pem {
            content,
            path,
            source,
        },
    }
}

fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| pem_error("certificates", path, source);
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(pem)?
        .collect::<Result<_, _>>()
        .map_err(pem)?;
    if chain.is_empty() {
        Err(TlsError::NoCertificate { path: path.into() })
    } else {
        Ok(chain)
    }
}
