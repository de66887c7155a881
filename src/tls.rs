//! All of TLS: the serving side with its reloads, and the client sides towards targets.

mod client;
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

pub use client::{AlpnConfigs, ClientTls, KubeletTls};
pub use server::{ServerTls, sha256_hex};

/// Why TLS cannot be set up. Every variant names the file to look at, and has its cause as its
/// source.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {what} from {path:?}")]
    Pem {
        what: &'static str,
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
    #[error("{path:?} holds no certificate: a PEM file with BEGIN CERTIFICATE is wanted")]
    NoCertificate { path: PathBuf },
    #[error(
        "the private key {key:?} does not belong to the certificate {certificate:?}: give the key that the \
         certificate was issued for"
    )]
    Mismatch {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("{path:?} holds a CA certificate that cannot be used")]
    BadCa {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error("cannot make a self-signed certificate")]
    SelfSigned(#[from] rcgen::Error),
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// Makes aws-lc-rs the provider of the process. Called first in `main`, and by every test that
/// speaks TLS.
pub fn install_provider() {
    // A second call finds it installed, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Reads a chain and its key, and checks that they belong together.
fn load_pair(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = load_certificates(certificate)?;
    let pem = |source| TlsError::Pem {
        what: "a private key",
        path: key.into(),
        source,
    };
    let der = PrivateKeyDer::from_pem_file(key).map_err(pem)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mismatch = |source| TlsError::Mismatch {
        certificate: certificate.into(),
        key: key.into(),
        source,
    };
    CertifiedKey::from_der(chain, der, &provider)
        .map(Arc::new)
        .map_err(mismatch)
}

fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem {
        what: "certificates",
        path: path.into(),
        source,
    };
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
