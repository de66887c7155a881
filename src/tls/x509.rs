//! Keys and signatures of certificates that webpki does not parse, such as those of X.509 version
//! 1. The signature algorithms are those of rustls.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, TrustAnchor};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved};
use x509_parser::asn1_rs::{Any, Oid, oid};
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::nom;
use x509_parser::objects::{oid_registry, oid2sn};
use x509_parser::prelude::{FromDer, X509Certificate};

const RSA_ENCRYPTION: Oid<'static> = oid!(1.2.840.113549.1.1.1);
const EC_PUBLIC_KEY: Oid<'static> = oid!(1.2.840.10045.2.1);
/// P-256, P-384 and P-521.
const CURVES: [Oid<'static>; 3] = [
    oid!(1.2.840.10045.3.1.7),
    oid!(1.3.132.0.34),
    oid!(1.3.132.0.35),
];
const ED25519: Oid<'static> = oid!(1.3.101.112);

/// Sizes of RSA keys that the cryptography library accepts, in bits.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

/// Reason why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("an RSA key of {0} bits is not supported; use 2048 to 8192 bits")]
    RsaSize(usize),
    #[error(
        "a key of type {0} is not supported; use RSA, ECDSA with P-256, P-384 or P-521, or Ed25519"
    )]
    Type(Box<str>),
    #[error("the key is damaged")]
    Damaged,
}

/// Reason why a certificate is not signed by an issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignatureError {
    /// The issuer has another key, or the certificate was changed.
    Invalid,
    /// Name of the algorithm, which is not supported.
    Algorithm(Box<str>),
    Malformed,
}

/// Parses a certificate without verifying it. Rejects bytes behind it.
///
/// # Errors
/// The error of the parser.
pub fn parse_certificate<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, X509Error> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(nom::Err::Incomplete(_)) => Err(X509Error::InvalidCertificate),
        Err(nom::Err::Error(error) | nom::Err::Failure(error)) => Err(error),
    }
}

/// Returns the DNS names and IP addresses that a certificate is valid for.
pub fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => Some(ip_address(bytes)?.to_string()),
            _ => None,
        })
        .collect()
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Public key of a certificate, of a type and size that can verify signatures.
#[derive(Clone, Copy, Debug)]
pub struct PublicKey<'a> {
    /// The `SubjectPublicKeyInfo` in DER.
    info: &'a [u8],
    parts: KeyParts<'a>,
}

#[derive(Clone, Copy, Debug)]
struct KeyParts<'a> {
    /// Value of the algorithm identifier: an object identifier and parameters.
    algorithm: &'a [u8],
    key: &'a [u8],
}

impl<'a> PublicKey<'a> {
    /// Returns the key of a certificate. The result depends on the certificate only.
    ///
    /// # Errors
    /// [`KeyError`] if no signature can be verified with the key.
    pub fn from_certificate(certificate: &X509Certificate<'a>) -> Result<Self, KeyError> {
        let info = certificate.tbs_certificate.subject_pki.raw;
        let parts = value(info).and_then(KeyParts::from_info);
        let parts = parts.ok_or(KeyError::Damaged)?;
        let supported = algorithms().all.iter();
        if !supported
            .map(|it| it.public_key_alg_id())
            .any(|id| *id == *parts.algorithm)
        {
            return Err(KeyError::Type(key_type(parts.algorithm)));
        }
        let (oid, _) = algorithm_parts(parts.algorithm).ok_or(KeyError::Damaged)?;
        if oid == RSA_ENCRYPTION {
            check_rsa_size(value(parts.key).and_then(element))?;
        }
        Ok(Self { info, parts })
    }

    /// Verifies the signature of a TLS 1.2 handshake.
    ///
    /// # Errors
    /// An unsupported scheme, or a signature of another key.
    pub fn verify_tls12(
        &self,
        message: &[u8],
        signed: &DigitallySignedStruct,
    ) -> Result<(), Error> {
        let mut mapping = algorithms().mapping.iter();
        let (_, candidates) = mapping
            .find(|(scheme, _)| *scheme == signed.scheme)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        // A scheme of TLS 1.2 does not fix the curve, so it has an algorithm for each.
        let verified = candidates
            .iter()
            .filter(|candidate| *candidate.public_key_alg_id() == *self.parts.algorithm)
            .any(|candidate| {
                let verified =
                    candidate.verify_signature(self.parts.key, message, signed.signature());
                verified.is_ok()
            });
        if verified {
            Ok(())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }

    /// Verifies the signature of a TLS 1.3 handshake.
    ///
    /// # Errors
    /// As [`Self::verify_tls12`].
    pub fn verify_tls13(
        &self,
        message: &[u8],
        signed: &DigitallySignedStruct,
    ) -> Result<(), Error> {
        let info = SubjectPublicKeyInfoDer::from(self.info);
        verify_tls13_signature_with_raw_key(message, &info, signed, algorithms()).map(|_| ())
    }
}

impl<'a> KeyParts<'a> {
    /// Reads the value of a `SubjectPublicKeyInfo`.
    fn from_info(info: &'a [u8]) -> Option<Self> {
        let algorithm = element(info)?;
        let key = element(algorithm.rest)?;
        // The first byte of a BIT STRING is the number of unused bits.
        let key = key
            .rest
            .is_empty()
            .then_some(key.value)?
            .strip_prefix(&[0])?;
        Some(Self {
            algorithm: algorithm.value,
            key,
        })
    }
}

/// Verifies that a certificate is signed with the key of an issuer. Compares no names.
///
/// # Errors
/// [`SignatureError`].
pub fn verify_signature(
    certificate: &X509Certificate<'_>,
    issuer: &TrustAnchor<'_>,
) -> Result<(), SignatureError> {
    let malformed = || SignatureError::Malformed;
    let tbs = value(certificate.as_raw())
        .and_then(element)
        .ok_or_else(malformed)?;
    let algorithm = element(tbs.rest).ok_or_else(malformed)?;
    let signature = element(algorithm.rest).ok_or_else(malformed)?;
    let signature_bytes = signature.value.strip_prefix(&[0]).ok_or_else(malformed)?;
    let stated = &certificate.tbs_certificate.signature;
    if !signature.rest.is_empty() || *stated != certificate.signature_algorithm {
        return Err(malformed());
    }
    let issuer = KeyParts::from_info(&issuer.subject_public_key_info).ok_or_else(malformed)?;
    let algorithms = algorithms();
    let mut of_signature = algorithms
        .all
        .iter()
        .filter(|it| *it.signature_alg_id() == *algorithm.value)
        .peekable();
    if of_signature.peek().is_none() {
        return Err(SignatureError::Algorithm(signature_algorithm(certificate)));
    }
    let verified = of_signature
        .filter(|it| *it.public_key_alg_id() == *issuer.algorithm)
        .any(|it| {
            it.verify_signature(issuer.key, tbs.whole, signature_bytes)
                .is_ok()
        });
    if verified {
        Ok(())
    } else {
        Err(SignatureError::Invalid)
    }
}

/// Returns the name of the algorithm that a certificate is signed with.
pub fn signature_algorithm(certificate: &X509Certificate<'_>) -> Box<str> {
    name(&certificate.signature_algorithm.algorithm)
}

/// Returns the reason why the cryptography library does not accept a private key.
pub(super) fn private_key_error(key: &PrivateKeyDer<'_>) -> KeyError {
    let error = match key {
        PrivateKeyDer::Pkcs1(key) => rsa_error(key.secret_pkcs1_der()),
        PrivateKeyDer::Sec1(key) => sec1_error(key.secret_sec1_der()),
        PrivateKeyDer::Pkcs8(key) => pkcs8_error(key.secret_pkcs8_der()),
        _ => None,
    };
    error.unwrap_or(KeyError::Damaged)
}

/// `RSAPrivateKey ::= SEQUENCE { version, modulus, … }` (RFC 8017 appendix A.1.2).
fn rsa_error(key: &[u8]) -> Option<KeyError> {
    let version = element(value(key)?)?;
    check_rsa_size(element(version.rest)).err()
}

/// `ECPrivateKey ::= SEQUENCE { version, privateKey, parameters [0], … }` (RFC 5915).
fn sec1_error(key: &[u8]) -> Option<KeyError> {
    let version = element(value(key)?)?;
    let parameters = element(element(version.rest)?.rest)?;
    let (_, curve) = Oid::from_der(parameters.value).ok()?;
    (!CURVES.contains(&curve)).then(|| KeyError::Type(name(&curve)))
}

/// `PrivateKeyInfo ::= SEQUENCE { version, algorithm, privateKey, … }` (RFC 5958).
fn pkcs8_error(key: &[u8]) -> Option<KeyError> {
    let algorithm = element(element(value(key)?)?.rest)?;
    let (oid, _) = algorithm_parts(algorithm.value)?;
    if oid == RSA_ENCRYPTION {
        return rsa_error(element(algorithm.rest)?.value);
    }
    let supported = match algorithm_parts(algorithm.value)? {
        (oid, Some(curve)) if oid == EC_PUBLIC_KEY => CURVES.contains(&curve),
        (oid, _) => oid == ED25519,
    };
    (!supported).then(|| KeyError::Type(key_type(algorithm.value)))
}

/// Checks the size of a modulus.
fn check_rsa_size(modulus: Option<Element<'_>>) -> Result<(), KeyError> {
    let modulus = modulus.ok_or(KeyError::Damaged)?.value;
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let significant = &modulus[zeros..];
    let first = significant.first().ok_or(KeyError::Damaged)?;
    let bits = significant.len() * 8 - first.leading_zeros() as usize;
    if RSA_BITS.contains(&bits) {
        Ok(())
    } else {
        Err(KeyError::RsaSize(bits))
    }
}

/// Splits the value of an algorithm identifier; the second part is that of elliptic curves.
fn algorithm_parts(value: &[u8]) -> Option<(Oid<'_>, Option<Oid<'_>>)> {
    let (rest, oid) = Oid::from_der(value).ok()?;
    let parameters = Oid::from_der(rest).ok();
    Some((oid, parameters.map(|(_, curve)| curve)))
}

/// Names the type of a key: the curve, if it has one.
fn key_type(algorithm: &[u8]) -> Box<str> {
    match algorithm_parts(algorithm) {
        Some((_, Some(curve))) => name(&curve),
        Some((oid, None)) => name(&oid),
        None => "unknown".into(),
    }
}

/// Returns the short name of an object identifier, or its number.
fn name(oid: &Oid<'_>) -> Box<str> {
    match oid2sn(oid, oid_registry()) {
        Ok(name) if !name.is_empty() => name.into(),
        _ => oid.to_id_string().into(),
    }
}

/// Algorithms that rustls verifies signatures with.
fn algorithms() -> &'static WebPkiSupportedAlgorithms {
    static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(|| {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
    });
    &ALGORITHMS
}

/// One element of DER.
#[derive(Clone, Copy, Debug)]
struct Element<'a> {
    /// Tag, length and value.
    whole: &'a [u8],
    value: &'a [u8],
    /// Bytes behind the element.
    rest: &'a [u8],
}

fn element(der: &[u8]) -> Option<Element<'_>> {
    let (rest, any) = Any::from_der(der).ok()?;
    Some(Element {
        whole: &der[..der.len() - rest.len()],
        value: any.data,
        rest,
    })
}

/// Returns the value of an element without bytes behind it.
pub fn value(der: &[u8]) -> Option<&[u8]> {
    element(der)
        .filter(|it| it.rest.is_empty())
        .map(|it| it.value)
}
