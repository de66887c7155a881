//! Errors of the verification of a server, with their remedies.

use std::io;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error};

use super::Trust;
use crate::desk::connect::ConnectError;
use crate::tls::{Fingerprint, alternative_names, parse_certificate};

/// Command that prints the fingerprint of a CA, on a host that has the file.
const OPENSSL: &str = "openssl x509 -in ca.crt -noout -pubkey | openssl pkey -pubin -outform DER | \
                       openssl dgst -sha256";

/// Reason why a server is not verified.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{name:?} is not a host name or an IP address; correct --server or --tls-server-name")]
    Name { name: String },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(
        "{server} does not complete a TLS handshake within 10 seconds; check --server, and that no \
         firewall drops the connection"
    )]
    Timeout { server: String },
    #[error("{server} does not speak TLS; check the port of --server")]
    NotTls { server: String },
    #[error(
        "the certificate of {server} is not from a CA of this system; {}", compare(seen.as_ref())
    )]
    UnknownToSystem {
        server: String,
        /// That of the CA that the server sends.
        seen: Option<Fingerprint>,
    },
    #[error(
        "the certificate of {server} is not from a CA in the file of --certificate-authority; use \
         the CA of this server"
    )]
    UnknownToFile { server: String },
    #[error(
        "{server} sends no CA with the fingerprint {expected}, {}; the server may be another one, \
         so compare the fingerprint again where the CA is stored ({OPENSSL})",
        sent(seen.as_ref())
    )]
    OtherFingerprint {
        server: String,
        expected: Fingerprint,
        seen: Option<Fingerprint>,
    },
    #[error(
        "the certificate of {server} is not valid for {host:?}, {}; use one of its names in \
         --server or --tls-server-name",
        valid_for(names)
    )]
    OtherName {
        server: String,
        host: String,
        /// Names and addresses in the certificate.
        names: Vec<String>,
    },
    #[error(
        "the certificate of {server} is expired or not valid yet; renew it, or correct the clock of \
         this machine"
    )]
    Expired { server: String },
    #[error("the certificate of {server} cannot be verified")]
    Certificate { server: String, source: io::Error },
    #[error("the TLS handshake with {server} failed; check --server")]
    Handshake { server: String, source: io::Error },
    #[error("the file of --certificate-authority has a certificate that is not X.509")]
    BadCa,
    #[error(
        "the CAs of this system cannot be loaded; set --certificate-authority or --fingerprint"
    )]
    System(#[source] Error),
    #[error("TLS cannot be set up")]
    Setup(#[from] Error),
}

impl AuthorityError {
    /// Returns the error for a failed handshake. `seen` are the certificates of the server.
    pub(super) fn of_handshake(
        server: &str,
        host: &str,
        source: io::Error,
        trust: &Trust,
        seen: &[CertificateDer<'_>],
    ) -> Self {
        let server = server.to_owned();
        let error = source.get_ref().and_then(|error| error.downcast_ref());
        let authority = || Fingerprint::of_ca(seen);
        match error {
            Some(Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => match trust {
                Trust::System => Self::UnknownToSystem {
                    server,
                    seen: authority(),
                },
                Trust::Certificates(_) => Self::UnknownToFile { server },
                Trust::Fingerprint(expected) => Self::OtherFingerprint {
                    server,
                    expected: *expected,
                    seen: authority(),
                },
            },
            Some(Error::InvalidCertificate(
                CertificateError::NotValidForNameContext { .. } | CertificateError::NotValidForName,
            )) => Self::OtherName {
                server,
                host: host.to_owned(),
                names: names(seen.first()),
            },
            Some(Error::InvalidCertificate(
                CertificateError::ExpiredContext { .. }
                | CertificateError::Expired
                | CertificateError::NotValidYetContext { .. }
                | CertificateError::NotValidYet,
            )) => Self::Expired { server },
            Some(Error::InvalidCertificate(_)) => Self::Certificate { server, source },
            Some(Error::InvalidMessage(_)) => Self::NotTls { server },
            _ => Self::Handshake { server, source },
        }
    }
}

fn names(certificate: Option<&CertificateDer<'_>>) -> Vec<String> {
    let certificate = certificate.map(parse_certificate).and_then(Result::ok);
    certificate
        .as_ref()
        .map(alternative_names)
        .unwrap_or_default()
}

fn compare(seen: Option<&Fingerprint>) -> String {
    match seen {
        Some(seen) => format!(
            "if {seen} is the fingerprint of its CA where the CA is stored ({OPENSSL}), add \
             --fingerprint {seen}, else set --certificate-authority to the file with its CA"
        ),
        None => "it sends no CA, so set --certificate-authority to the file with its CA".to_owned(),
    }
}

fn sent(seen: Option<&Fingerprint>) -> String {
    match seen {
        Some(seen) => format!("but one with {seen}"),
        None => "nor another one".to_owned(),
    }
}

fn valid_for(names: &[String]) -> String {
    if names.is_empty() {
        "and has no names".to_owned()
    } else {
        format!("but for {}", names.join(", "))
    }
}
