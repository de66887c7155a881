//! Reasons why a client certificate is not valid.

use jiff::Timestamp;
use rustls::Error;
use rustls::pki_types::UnixTime;
use x509_parser::prelude::X509Certificate;

use crate::tls::{SignatureError, signature_algorithm};

/// Reason why a client certificate is not valid. A phrase about the certificate, whose content its
/// holder knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("it expired at {0}")]
    Expired(Timestamp),
    #[error("it is not valid before {0}")]
    NotYetValid(Timestamp),
    #[error("it is signed by an unknown CA, {0:?}")]
    UnknownIssuer(Box<str>),
    #[error("its signature is not from the key of the CA {0:?}")]
    Signature(Box<str>),
    #[error("its signature algorithm {0} is not accepted")]
    Algorithm(Box<str>),
    #[error("its extended key usages do not contain clientAuth")]
    Usage,
    #[error("it has the unknown critical extension {0}")]
    CriticalExtension(Box<str>),
    #[error("it has an extension that X.509 version {0} does not have")]
    ExtensionOfVersion(u32),
    #[error("its CA has name constraints, which require a certificate of version 3 for clients")]
    NameConstraints,
    #[error("its names violate the name constraints of its CA")]
    NameConstraintViolation,
    #[error("its encoding is not DER as X.509 requires")]
    Encoding,
    /// Another error of the verification.
    #[error("its verification failed with {0}")]
    Other(Box<str>),
}

impl Invalid {
    /// Describes an error of the verification by rustls.
    pub(super) fn new(error: &Error, certificate: &X509Certificate<'_>) -> Self {
        use rustls::CertificateError as Rejected;
        let Error::InvalidCertificate(rejected) = error else {
            return Self::Other(error.to_string().into());
        };
        match rejected {
            Rejected::ExpiredContext { not_after, .. } => Self::Expired(timestamp(*not_after)),
            Rejected::NotValidYetContext { not_before, .. } => {
                Self::NotYetValid(timestamp(*not_before))
            }
            Rejected::UnknownIssuer => Self::UnknownIssuer(issuer(certificate)),
            Rejected::BadSignature => Self::Signature(issuer(certificate)),
            Rejected::UnsupportedSignatureAlgorithmContext { .. } => {
                Self::Algorithm(signature_algorithm(certificate))
            }
            Rejected::InvalidPurpose | Rejected::InvalidPurposeContext { .. } => Self::Usage,
            Rejected::BadEncoding => Self::Encoding,
            // Errors of webpki without a counterpart in rustls, by their names.
            Rejected::Other(other) => match &*other.to_string() {
                "UnsupportedCriticalExtension" => {
                    Self::CriticalExtension(critical_extension(certificate))
                }
                "NameConstraintViolation" => Self::NameConstraintViolation,
                name => Self::Other(name.into()),
            },
            rejected => Self::Other(rejected.to_string().into()),
        }
    }

    /// Describes a signature that an issuer did not make.
    pub(super) fn from_signature(error: SignatureError, certificate: &X509Certificate<'_>) -> Self {
        match error {
            SignatureError::Invalid => Self::Signature(issuer(certificate)),
            SignatureError::Algorithm(name) => Self::Algorithm(name),
            SignatureError::Malformed => Self::Encoding,
        }
    }
}

pub(super) fn issuer(certificate: &X509Certificate<'_>) -> Box<str> {
    let name = certificate.issuer().to_string();
    name.chars().take(super::MAX_NAME).collect()
}

/// Returns the number of the first critical extension that the parser does not know.
fn critical_extension(certificate: &X509Certificate<'_>) -> Box<str> {
    let mut unknown = certificate
        .iter_extensions()
        .filter(|it| it.critical && it.parsed_extension().unsupported());
    unknown
        .next()
        .map_or_else(|| "of its chain".into(), |it| it.oid.to_id_string().into())
}

fn timestamp(time: UnixTime) -> Timestamp {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}
