//! Errors of TLS handshakes with endpoints, with their likely cause.

use std::fmt;
use std::io;

use rustls::{AlertDescription, Error, PeerIncompatible, PeerMisbehaved};

use crate::config::TlsVersion;

/// Remedy where the endpoint serves plain HTTP.
const PLAIN_HTTP: &str =
    "use http: in the id of the URL, or correct appProtocol of the service port";

/// Failed TLS handshake. The message has the likely cause before the error of the library.
#[derive(Debug, thiserror::Error)]
pub struct TlsFailure {
    source: io::Error,
    /// Minimum version of the configuration.
    min_version: TlsVersion,
}

impl TlsFailure {
    pub(super) fn new(source: io::Error, min_version: TlsVersion) -> Self {
        Self {
            source,
            min_version,
        }
    }

    fn tls_error(&self) -> Option<&Error> {
        self.source.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unsupported = match self.min_version {
            TlsVersion::Tls12 => {
                "the endpoint offers no TLS version or cipher suite that kube-bastion supports \
                 (TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305, TLS 1.3)"
            }
            TlsVersion::Tls13 => {
                "the endpoint does not offer TLS 1.3, which upstream.tlsMinVersion requires"
            }
        };
        match self.tls_error().and_then(Cause::from_error) {
            Some(Cause::HandshakeFailure) => {
                write!(f, "{unsupported}, or requires a client certificate: ")?;
            }
            Some(Cause::Unsupported) => write!(f, "{unsupported}: ")?,
            Some(Cause::ClientCertificate) => {
                f.write_str("the endpoint requires a client certificate that it trusts: ")?;
            }
            Some(Cause::NotTls) => {
                write!(
                    f,
                    "the endpoint does not speak TLS on this port; {PLAIN_HTTP}: "
                )?;
            }
            Some(Cause::NoHttp1) => f.write_str("the endpoint does not offer HTTP/1.1: ")?,
            None if self.source.kind() == io::ErrorKind::UnexpectedEof => write!(
                f,
                "the endpoint closed the connection during the handshake; if it serves plain HTTP \
                 on this port, {PLAIN_HTTP}: "
            )?,
            None => {}
        }
        self.source.fmt(f)
    }
}

/// Likely cause of a failed handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The alert `handshake_failure`. OpenSSL sends it also if TLS 1.2 lacks a client certificate.
    HandshakeFailure,
    /// No common version, cipher suite, group or signature scheme.
    Unsupported,
    ClientCertificate,
    /// The endpoint responded with something else than a TLS record.
    NotTls,
    /// No common protocol of ALPN.
    NoHttp1,
}

impl Cause {
    fn from_error(error: &Error) -> Option<Self> {
        match error {
            Error::AlertReceived(AlertDescription::HandshakeFailure) => {
                Some(Self::HandshakeFailure)
            }
            Error::AlertReceived(
                AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity,
            )
            | Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::NoCipherSuitesInCommon
                | PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::NoSignatureSchemesInCommon
                | PeerIncompatible::NullCompressionRequired,
            )
            // Old implementations select from their own list.
            | Error::PeerMisbehaved(
                PeerMisbehaved::SelectedUnofferedCipherSuite
                | PeerMisbehaved::SelectedUnofferedKxGroup
                | PeerMisbehaved::SelectedUnusableCipherSuiteForVersion,
            ) => Some(Self::Unsupported),
            Error::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied,
            ) => Some(Self::ClientCertificate),
            Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Some(Self::NoHttp1),
            Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Some(Self::NotTls),
            _ => None,
        }
    }
}

/// Returns true if the endpoint rejected the server name of the handshake.
pub(super) fn rejects_server_name(failure: &TlsFailure) -> bool {
    matches!(
        failure.tls_error(),
        Some(Error::AlertReceived(AlertDescription::UnrecognisedName))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(error: Error, min_version: TlsVersion) -> String {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        TlsFailure::new(error, min_version).to_string()
    }

    #[test]
    fn names_likely_cause_of_failed_handshake() {
        let suites = "no TLS version or cipher suite that kube-bastion supports (TLS 1.2 with \
                      ECDHE and AES-GCM or ChaCha20-Poly1305, TLS 1.3)";
        for (error, expected) in [
            (
                Error::AlertReceived(AlertDescription::HandshakeFailure),
                format!("{suites}, or requires a client certificate: "),
            ),
            (
                Error::AlertReceived(AlertDescription::ProtocolVersion),
                format!("{suites}: "),
            ),
            (
                PeerIncompatible::ServerDoesNotSupportTls12Or13.into(),
                format!("{suites}: "),
            ),
            (
                PeerMisbehaved::SelectedUnofferedCipherSuite.into(),
                format!("{suites}: "),
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                "the endpoint requires a client certificate that it trusts: ".to_owned(),
            ),
            (
                Error::AlertReceived(AlertDescription::NoApplicationProtocol),
                "the endpoint does not offer HTTP/1.1: ".to_owned(),
            ),
            (
                rustls::InvalidMessage::InvalidContentType.into(),
                format!("the endpoint does not speak TLS on this port; {PLAIN_HTTP}: "),
            ),
        ] {
            let library = error.to_string();
            let message = message(error, TlsVersion::Tls12);
            assert!(
                message.contains(&expected) && message.ends_with(&library),
                "{message}"
            );
        }
        let other = Error::AlertReceived(AlertDescription::InternalError);
        assert_eq!(message(other.clone(), TlsVersion::Tls12), other.to_string());
    }

    #[test]
    fn names_plain_http_as_a_cause_if_the_endpoint_closes() {
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
        let message = TlsFailure::new(error, TlsVersion::Tls12).to_string();
        assert!(
            message.contains("if it serves plain HTTP on this port, use http: in the id"),
            "{message}"
        );
        assert!(message.ends_with(": tls handshake eof"), "{message}");
    }

    #[test]
    fn names_setting_that_excludes_tls_12() {
        let error = Error::AlertReceived(AlertDescription::ProtocolVersion);
        let message = message(error, TlsVersion::Tls13);
        assert!(
            message.starts_with(
                "the endpoint does not offer TLS 1.3, which upstream.tlsMinVersion requires: "
            ),
            "{message}"
        );
    }
}
