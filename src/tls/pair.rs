//! Certificate chains and their private keys, loaded from files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{X509Certificate, X509Version};

use super::x509::{parse_certificate, private_key_error, signature_algorithm};
use super::{TlsError, read};
use crate::model::pem;

/// Contents of files, for messages.
const CERTIFICATES: &str = "certificates";
const PRIVATE_KEY: &str = "a private key";

/// Usage of a certificate in TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "serverAuth",
            Self::Client => "clientAuth",
        })
    }
}

/// Certificate chain with its private key.
#[derive(Clone, Debug)]
pub struct Pair {
    pub key: Arc<CertifiedKey>,
    /// End of the leaf's validity in Unix seconds.
    pub expires: i64,
    /// Properties for which peers may reject the certificate.
    pub concerns: Vec<Concern>,
}

/// Property of a usable certificate for which peers may reject it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Concern {
    #[error("certificate {position} of {path:?} expired at {since}; replace it")]
    Expired {
        path: PathBuf,
        /// Number in the file, from 1.
        position: usize,
        since: Timestamp,
    },
    #[error(
        "certificate {position} of {path:?} is not valid before {until}; wait, or correct the clock"
    )]
    NotYetValid {
        path: PathBuf,
        position: usize,
        until: Timestamp,
    },
    #[error(
        "the certificate {path:?} has no subjectAltName, so that most clients reject it; issue it \
         with the names that clients use"
    )]
    NoNames { path: PathBuf },
    #[error(
        "the certificate {path:?} has extended key usages without {required}, so that peers reject \
         it; issue it with {required}"
    )]
    Usage { path: PathBuf, required: Role },
    #[error(
        "certificate {position} of {path:?} is signed with {algorithm}, so that most peers reject \
         it; issue it with SHA-256"
    )]
    Signature {
        path: PathBuf,
        position: usize,
        algorithm: Box<str>,
    },
    #[error(
        "certificate {position} of {path:?} did not issue the certificate before it, so that some \
         peers reject the chain; write each certificate behind the one that it issued"
    )]
    Order { path: PathBuf, position: usize },
}

impl Concern {
    /// Returns true if no peer with a correct clock accepts the certificate now.
    pub fn is_outside_validity(&self) -> bool {
        matches!(self, Self::Expired { .. } | Self::NotYetValid { .. })
    }
}

impl Pair {
    /// Reads a certificate chain and its private key from PEM files, and checks that they can be
    /// used together.
    ///
    /// # Errors
    /// [`TlsError`] with the file, its fault, and a remedy.
    pub(super) fn load(certificate: &Path, key: &Path, role: Role) -> Result<Self, TlsError> {
        let chain = read(CERTIFICATES, certificate)?;
        let private = read(PRIVATE_KEY, key)?;
        Self::parse(certificate, &chain, key, &private, role)
    }

    /// Parses a client certificate and its key in PEM, for another library that loads them. The
    /// paths are for messages.
    ///
    /// # Errors
    /// As of a certificate of this process: [`TlsError`] with the fault and a remedy.
    pub fn parse_client(
        path: &Path,
        certificate: &[u8],
        key_path: &Path,
        key: &[u8],
    ) -> Result<Self, TlsError> {
        Self::parse(path, certificate, key_path, key, Role::Client)
    }

    fn parse(
        path: &Path,
        certificate: &[u8],
        key_path: &Path,
        key: &[u8],
        role: Role,
    ) -> Result<Self, TlsError> {
        let chain = parse_certificates(path, certificate)?;
        let private = pem::private_key(key).map_err(|source| TlsError::Pem {
            content: PRIVATE_KEY,
            path: key_path.into(),
            source,
        })?;
        Self::new(path, chain, key_path, &private, role)
    }

    /// Checks a chain and its key. The paths are for messages.
    pub(super) fn new(
        path: &Path,
        chain: Vec<CertificateDer<'static>>,
        key_path: &Path,
        key: &PrivateKeyDer<'_>,
        role: Role,
    ) -> Result<Self, TlsError> {
        let parsed = parse_chain(path, &chain)?;
        let private = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).map_err(|_| {
            TlsError::Key {
                path: key_path.into(),
                source: private_key_error(key),
            }
        })?;
        let public = private.public_key();
        let belongs = |certificate: &X509Certificate<'_>| {
            // All supported keys have a public key.
            public.as_deref() == Some(certificate.tbs_certificate.subject_pki.raw)
        };
        match parsed.iter().position(belongs) {
            Some(0) => {}
            Some(index) => {
                return Err(TlsError::LeafNotFirst {
                    certificate: path.into(),
                    key: key_path.into(),
                    position: index + 1,
                });
            }
            None => {
                return Err(TlsError::Mismatch {
                    certificate: path.into(),
                    key: key_path.into(),
                });
            }
        }
        let leaf = &parsed[0];
        if leaf.version() != X509Version::V3 {
            return Err(TlsError::Version {
                path: path.into(),
                version: leaf.version().0 + 1,
            });
        }
        let expires = leaf.validity().not_after.timestamp();
        let concerns = concerns(path, &parsed, role);
        drop(parsed);
        Ok(Self {
            key: Arc::new(CertifiedKey::new(chain, private)),
            expires,
            concerns,
        })
    }
}

/// Reads the certificates of a PEM file, at least one.
pub(super) fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    parse_certificates(path, &read(CERTIFICATES, path)?)
}

fn parse_certificates(path: &Path, file: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem::certificates(file).map_err(|source| TlsError::Pem {
        content: CERTIFICATES,
        path: path.into(),
        source,
    })
}

fn parse_chain<'a>(
    path: &Path,
    chain: &'a [CertificateDer<'_>],
) -> Result<Vec<X509Certificate<'a>>, TlsError> {
    let parsed = chain.iter().enumerate().map(|(index, certificate)| {
        parse_certificate(certificate).map_err(|_| TlsError::BadCertificate {
            path: path.into(),
            position: index + 1,
        })
    });
    parsed.collect()
}

fn concerns(path: &Path, chain: &[X509Certificate<'_>], role: Role) -> Vec<Concern> {
    let mut concerns = Vec::new();
    let now = unix_now();
    for (index, certificate) in chain.iter().enumerate() {
        let (path, position) = (path.to_owned(), index + 1);
        let validity = certificate.validity();
        let (from, until) = (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        );
        if until < now {
            concerns.push(Concern::Expired {
                path,
                position,
                since: timestamp(until),
            });
        } else if from > now {
            concerns.push(Concern::NotYetValid {
                path,
                position,
                until: timestamp(from),
            });
        }
    }
    let issued = |pair: &[X509Certificate<'_>]| pair[0].issuer() == pair[1].subject();
    if let Some(index) = chain.windows(2).position(|pair| !issued(pair)) {
        let (path, position) = (path.to_owned(), index + 2);
        concerns.push(Concern::Order { path, position });
    }
    // The signature of a root is not verified.
    let weak = |it: &X509Certificate<'_>| is_weak(it) && it.issuer() != it.subject();
    if let Some(index) = chain.iter().position(weak) {
        concerns.push(Concern::Signature {
            path: path.into(),
            position: index + 1,
            algorithm: signature_algorithm(&chain[index]),
        });
    }
    if let Some(leaf) = chain.first() {
        let names = leaf.subject_alternative_name().ok().flatten();
        if role == Role::Server && names.is_none() {
            concerns.push(Concern::NoNames { path: path.into() });
        }
        if !is_for(leaf, role) {
            concerns.push(Concern::Usage {
                path: path.into(),
                required: role,
            });
        }
    }
    concerns
}

/// Returns true for signatures with MD5 or SHA-1.
fn is_weak(certificate: &X509Certificate<'_>) -> bool {
    let algorithm = certificate.signature_algorithm.algorithm.to_id_string();
    [
        "1.2.840.113549.1.1.4",
        "1.2.840.113549.1.1.5",
        "1.2.840.10045.4.1",
    ]
    .contains(&&*algorithm)
}

/// Returns true if the extended key usages allow a role, or the certificate has none.
fn is_for(leaf: &X509Certificate<'_>, role: Role) -> bool {
    leaf.extended_key_usage()
        .ok()
        .flatten()
        .is_none_or(|usage| {
            let usage = usage.value;
            usage.any
                || match role {
                    Role::Server => usage.server_auth,
                    Role::Client => usage.client_auth,
                }
        })
}

pub(super) fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.ok()
        .and_then(|now| now.as_secs().try_into().ok())
        .unwrap_or_default()
}

/// Converts Unix seconds. Years of certificates end at 9999, as those of timestamps do.
pub(super) fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}
