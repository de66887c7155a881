//! TLS to API servers and proxies.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

use super::own_root::OwnRootVerifier;
use crate::config::TlsVersion;
use crate::desk::credentials::Credentials;
use crate::model::pem::{self, PemError};
use crate::tls::{WantsClientCert, client_builder, unverified_client_builder};

/// CA certificates in PEM.
#[derive(Clone, Debug)]
pub struct CaBundle {
    pub pem: Vec<u8>,
    /// Path of the file or name of the field, for errors.
    pub origin: String,
}

/// Verification of a server's certificate.
#[derive(Clone, Debug)]
pub enum Verification {
    Authority(CaBundle),
    /// The CAs of the system.
    System,
    AuthorityOrSystem(CaBundle),
    /// Any certificate is accepted.
    None,
}

/// Reason why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("the CA {origin} cannot be used")]
    Authority { origin: String, source: PemError },
    #[error("the CA {origin} has no certificate that can be used: all are damaged or not X.509")]
    Certificate { origin: String },
    #[error(
        "the CA certificates of the system cannot be used; set --certificate-authority=FILE to the \
         CA of the server"
    )]
    System(#[source] rustls::Error),
    #[error("{name:?} is not a server name for TLS; set --tls-server-name=NAME")]
    ServerName { name: String },
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// TLS configuration of the connections to a server.
#[derive(Debug)]
pub struct ServerTls {
    /// `None` accepts any certificate.
    verifier: Option<Arc<dyn ServerCertVerifier>>,
    /// Replaces the host of the server.
    name: Option<ServerName<'static>>,
    /// Their client certificate is used.
    credentials: Option<Arc<Credentials>>,
    /// Of the newest client certificate, so that no session of an older one is resumed.
    configs: Mutex<Option<Configs>>,
}

#[derive(Clone, Debug)]
struct Configs {
    generation: u32,
    /// HTTP/2 and HTTP/1.1.
    any: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl ServerTls {
    /// Creates a configuration that verifies certificates for `name`, or the host if it is `None`.
    ///
    /// # Errors
    /// The CA or the name is malformed.
    pub fn new(
        verification: &Verification,
        name: Option<&str>,
        credentials: Option<Arc<Credentials>>,
    ) -> Result<Self, TlsSetupError> {
        Ok(Self {
            verifier: verification.verifier()?,
            name: name.map(parse_name).transpose()?,
            credentials,
            configs: Mutex::new(None),
        })
    }

    /// Returns the same configuration for another name.
    pub(in crate::desk) fn with_name(&self, name: &str) -> Result<Self, TlsSetupError> {
        Ok(Self {
            verifier: self.verifier.clone(),
            name: Some(parse_name(name)?),
            credentials: self.credentials.clone(),
            configs: Mutex::new(None),
        })
    }

    /// Returns true if the name differs from the host of the server.
    pub(in crate::desk) fn has_name(&self) -> bool {
        self.name.is_some()
    }

    /// Returns the name that is sent and that the certificate has to be valid for.
    pub(super) fn server_name(&self, host: &str) -> Result<ServerName<'static>, TlsSetupError> {
        self.name.clone().map_or_else(|| parse_name(host), Ok)
    }

    /// Returns the configuration of the next handshake, with the current client certificate.
    pub(super) fn config(&self, http2: bool) -> Result<Arc<ClientConfig>, TlsSetupError> {
        let (generation, certificate) = match &self.credentials {
            Some(credentials) => credentials.certificate(),
            None => (0, None),
        };
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match &*configs {
            Some(configs) if configs.generation == generation => configs.clone(),
            _ => {
                let new = self.build(generation, certificate)?;
                configs.insert(new).clone()
            }
        };
        Ok(if http2 { current.any } else { current.http1 })
    }

    fn build(
        &self,
        generation: u32,
        certificate: Option<Arc<CertifiedKey>>,
    ) -> Result<Configs, TlsSetupError> {
        let builder: WantsClientCert = match &self.verifier {
            Some(verifier) => client_builder(TlsVersion::Tls12)?
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(verifier)),
            None => unverified_client_builder(TlsVersion::Tls12)?,
        };
        let config = match certificate {
            Some(certificate) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)))
            }
            None => builder.with_no_client_auth(),
        };
        let with_alpn = |protocols: &[&str]| {
            let mut config = config.clone();
            let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
            config.alpn_protocols = protocols.collect();
            Arc::new(config)
        };
        Ok(Configs {
            generation,
            any: with_alpn(&["h2", "http/1.1"]),
            http1: with_alpn(&["http/1.1"]),
        })
    }
}

impl Verification {
    fn verifier(&self) -> Result<Option<Arc<dyn ServerCertVerifier>>, TlsSetupError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Some(match self {
            Self::None => return Ok(None),
            Self::System => Arc::new(Verifier::new(provider).map_err(TlsSetupError::System)?),
            Self::AuthorityOrSystem(bundle) => {
                let certificates = bundle.certificates()?;
                let verifier = Verifier::new_with_extra_roots(certificates, provider);
                Arc::new(verifier.map_err(|_| bundle.malformed())?)
            }
            Self::Authority(bundle) => {
                let mut roots = RootCertStore::empty();
                let trusted = bundle.certificates()?;
                for certificate in &trusted {
                    let added = roots.add(certificate.clone());
                    added.map_err(|_| bundle.malformed())?;
                }
                let builder =
                    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
                let chains = builder.build().map_err(|_| bundle.malformed())?;
                Arc::new(OwnRootVerifier { trusted, chains })
            }
        }))
    }
}

impl CaBundle {
    /// Returns the certificates. As in Go, those that cannot be parsed are skipped.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
        let parsed = pem::certificates(&self.pem);
        let mut certificates = parsed.map_err(|source| TlsSetupError::Authority {
            origin: self.origin.clone(),
            source,
        })?;
        let is_usable = |certificate: &CertificateDer<'static>| {
            RootCertStore::empty().add(certificate.clone()).is_ok()
        };
        certificates.retain(is_usable);
        if certificates.is_empty() {
            return Err(self.malformed());
        }
        Ok(certificates)
    }

    fn malformed(&self) -> TlsSetupError {
        TlsSetupError::Certificate {
            origin: self.origin.clone(),
        }
    }
}

fn parse_name(name: &str) -> Result<ServerName<'static>, TlsSetupError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsSetupError::ServerName {
        name: name.to_owned(),
    })
}
