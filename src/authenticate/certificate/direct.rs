//! Client certificates that kube-apiserver accepts and webpki does not take as such: X.509 version 1
//! or 2, a CA certificate, and the extended key usage `anyExtendedKeyUsage`. Common tools create
//! them, such as `openssl x509 -req` and `openssl req -x509 -CA`.
//!
//! They are accepted if a client CA signed them itself, without intermediates. Name constraints are
//! not evaluated here, so that a CA that has any is rejected.

use rustls::RootCertStore;
use rustls::pki_types::UnixTime;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{X509Certificate, X509Version};

use super::invalid::{Invalid, issuer};
use crate::tls::{der_value, verify_signature};

/// Returns true for certificates that this module verifies.
pub(super) fn applies_to(certificate: &X509Certificate<'_>) -> bool {
    let any_usage = || {
        let usage = certificate.extended_key_usage().ok().flatten();
        usage.is_some_and(|usage| usage.value.any && !usage.value.client_auth)
    };
    certificate.version() != X509Version::V3 || certificate.is_ca() || any_usage()
}

/// Verifies that one of the CAs issued a certificate for clients, and that it is valid now.
pub(super) fn verify(
    certificate: &X509Certificate<'_>,
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), Invalid> {
    check_validity(certificate, now)?;
    check_extensions(certificate)?;
    let name = der_value(certificate.issuer().as_raw()).ok_or(Invalid::Encoding)?;
    let mut invalid = Invalid::UnknownIssuer(issuer(certificate));
    // CAs of one name exist beside each other while one replaces the other.
    for root in roots.roots.iter().filter(|root| *root.subject == *name) {
        match verify_signature(certificate, root) {
            Ok(()) if root.name_constraints.is_none() => return Ok(()),
            Ok(()) => invalid = Invalid::NameConstraints,
            Err(error) => invalid = Invalid::from_signature(error, certificate),
        }
    }
    Err(invalid)
}

fn check_validity(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Invalid> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    let (from, until) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let at = |seconds| jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
    if now > until {
        Err(Invalid::Expired(at(until)))
    } else if now < from {
        Err(Invalid::NotYetValid(at(from)))
    } else {
        Ok(())
    }
}

/// Checks that no extension forbids the use by clients (RFC 5280 section 4.2).
fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), Invalid> {
    let version = certificate.version();
    if version != X509Version::V3 && !certificate.extensions().is_empty() {
        return Err(Invalid::ExtensionOfVersion(version.0 + 1));
    }
    certificate
        .extensions_map()
        .map_err(|_| Invalid::Encoding)?;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::ExtendedKeyUsage(usage) if usage.any || usage.client_auth => {}
            ParsedExtension::ExtendedKeyUsage(_) => return Err(Invalid::Usage),
            // They restrict what the certificate signs, which is nothing here.
            ParsedExtension::BasicConstraints(_) | ParsedExtension::KeyUsage(_) => {}
            ParsedExtension::NameConstraints(_) => {}
            ParsedExtension::SubjectAlternativeName(_) => {}
            ParsedExtension::ParseError { .. } => return Err(Invalid::Encoding),
            _ if extension.critical => {
                let name = extension.oid.to_id_string();
                return Err(Invalid::CriticalExtension(name.into()));
            }
            _ => {}
        }
    }
    Ok(())
}
