//! Failures to connect, with cause and remedy.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use super::proxy::ProxyError;
use super::tls::TlsSetupError;

/// Reason why no connection to a server could be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot find the host of the server {server}; check --server and the name servers")]
    Lookup { server: String, source: io::Error },
    #[error("the server {server} refused the connection; check that it runs, and --server")]
    Refused { server: String },
    #[error(
        "the server {server} did not accept a connection in time; check the network, and --server"
    )]
    Timeout { server: String },
    #[error("cannot connect to the server {server}")]
    Connect { server: String, source: io::Error },
    #[error("cannot connect to the server {server} through the proxy {proxy}")]
    Proxy {
        server: String,
        /// Without its credentials.
        proxy: String,
        source: ProxyError,
    },
    #[error("the server {server} did not complete the TLS handshake in time")]
    HandshakeTimeout { server: String },
    #[error(
        "the certificate of {server} is not trusted: certificate signed by unknown authority; set \
         --certificate-authority=FILE (or certificate-authority of the cluster) to the CA of the \
         server"
    )]
    UnknownAuthority { server: String },
    #[error(
        "the certificate of {server} is not valid for the name {expected}{}; use one of its names, \
         or set --tls-server-name=NAME",
        presented_names(presented)
    )]
    Name {
        server: String,
        expected: String,
        presented: Vec<String>,
    },
    #[error("the certificate of {server} has expired; renew it, or correct the clock")]
    Expired { server: String },
    #[error("the certificate of {server} is not valid yet; correct the clock")]
    NotYetValid { server: String },
    #[error("the server {server} does not speak TLS; use http:// for plain HTTP")]
    NotTls { server: String },
    #[error("the server {server} rejects the client certificate; check the user of the kubeconfig")]
    ClientCertificate { server: String },
    #[error("the TLS handshake with the server {server} failed")]
    Handshake { server: String, source: io::Error },
    #[error(transparent)]
    Setup(#[from] TlsSetupError),
}

impl ConnectError {
    /// Names the cause of a failed lookup or TCP connection.
    pub(super) fn of_tcp(server: &str, source: io::Error) -> Self {
        let server = server.to_owned();
        match source.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused { server },
            io::ErrorKind::TimedOut => Self::Timeout { server },
            // Errors of the resolver have no number of the system.
            _ if source.raw_os_error().is_none() => Self::Lookup { server, source },
            _ => Self::Connect { server, source },
        }
    }

    /// Names the cause of a failed TLS handshake.
    pub(super) fn of_handshake(server: &str, source: io::Error) -> Self {
        let server = server.to_owned();
        let error = source.get_ref().and_then(|error| error.downcast_ref());
        let Some(error) = error else {
            return Self::Handshake { server, source };
        };
        match error {
            // A bad signature is that of another CA of the same name; those of kubeadm are all named
            // kubernetes.
            Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => Self::UnknownAuthority { server },
            Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                expected,
                presented,
            }) => Self::Name {
                server,
                expected: expected.to_str().into_owned(),
                presented: presented.clone(),
            },
            Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => Self::Expired { server },
            Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => Self::NotYetValid { server },
            Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
                Self::NotTls { server }
            }
            Error::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied,
            ) => Self::ClientCertificate { server },
            _ => Self::Handshake { server, source },
        }
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Refused { .. } => io::ErrorKind::ConnectionRefused,
            Self::Timeout { .. } | Self::HandshakeTimeout { .. } => io::ErrorKind::TimedOut,
            Self::Lookup { .. } => io::ErrorKind::NotFound,
            Self::Connect { source, .. } => source.kind(),
            Self::Proxy { .. } => io::ErrorKind::ConnectionAborted,
            Self::Setup(_) => io::ErrorKind::Other,
            Self::UnknownAuthority { .. }
            | Self::Name { .. }
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::NotTls { .. }
            | Self::ClientCertificate { .. }
            | Self::Handshake { .. } => io::ErrorKind::InvalidData,
        }
    }
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        Self::new(error.kind(), error)
    }
}

fn presented_names(presented: &[String]) -> String {
    if presented.is_empty() {
        ", and has no names".to_owned()
    } else {
        format!("; it is valid for {}", presented.join(", "))
    }
}
