//! TLS client configuration for targets, whose certificates are not verified (CONFORMANCE C51), and
//! for kubelets (C52).

mod address;
mod api_server;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::pair::{Concern, Pair, Role, load_certificates};
use super::{TlsError, versions};
use crate::config::{Targets, TlsVersion};
use crate::file_watch::FileWatch;
use crate::model::error_chain;
use address::{AddressSessions, AddressVerifier};
pub use api_server::ApiServerTls;

/// Maximum number of TLS 1.3 tickets that are kept to resume sessions, up to eight for an endpoint.
/// The default of rustls.
const MAX_TICKETS: usize = 256;

/// TLS configuration for targets, shared by the workers.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// For pods, services and the other ports of nodes.
    pub target: Arc<EndpointTls>,
    pub kubelet: Arc<KubeletTls>,
    pub min_version: TlsVersion,
}

/// One configuration with two lists of ALPN protocols (RFC 7301).
#[derive(Debug)]
pub struct EndpointTls {
    /// HTTP/2 and HTTP/1.1 (CONFORMANCE C53).
    any: Arc<ClientConfig>,
    /// HTTP/1.1 only, for upgrades (C84) and endpoints that require it.
    http1: Arc<ClientConfig>,
    sessions: Arc<ClientSessionMemoryCache>,
    /// Verifier of the certificates. `None` if they are not verified.
    verifier: Option<Arc<WebPkiServerVerifier>>,
}

impl EndpointTls {
    fn new(mut config: ClientConfig, verifier: Option<Arc<WebPkiServerVerifier>>) -> Self {
        let sessions = Arc::new(ClientSessionMemoryCache::new(MAX_TICKETS));
        config.resumption = Resumption::store(Arc::clone(&sessions) as _);
        let with_alpn = |protocols: &[&str]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols
                .iter()
                .map(|protocol| protocol.as_bytes().to_vec())
                .collect();
            Arc::new(config)
        };
        Self {
            any: with_alpn(&["h2", "http/1.1"]),
            http1: with_alpn(&["http/1.1"]),
            sessions,
            verifier,
        }
    }

    /// Returns the configuration of a handshake with an address, and the name to connect to, which
    /// is sent (SNI) unless it is an address. Certificates are verified for the address, whatever
    /// name is sent.
    pub fn config(
        &self,
        http2: bool,
        name: Option<DnsName<'static>>,
        address: IpAddr,
    ) -> (Arc<ClientConfig>, ServerName<'static>) {
        let config = if http2 { &self.any } else { &self.http1 };
        let Some(name) = name else {
            return (Arc::clone(config), ServerName::IpAddress(address.into()));
        };
        // rustls verifies a certificate for the name that it sends, and resumes a session with any
        // endpoint of that name. Both must depend on the address.
        let mut config = ClientConfig::clone(config);
        match &self.verifier {
            None => {
                let sessions = AddressSessions::new(Arc::clone(&self.sessions), &name, address);
                config.resumption = Resumption::store(Arc::new(sessions));
            }
            Some(verifier) => {
                // Sessions are bound to a verifier, which is a new one for each connection.
                config.resumption = Resumption::disabled();
                let verifier = AddressVerifier::new(Arc::clone(verifier), address);
                config
                    .dangerous()
                    .set_certificate_verifier(Arc::new(verifier));
            }
        }
        (Arc::new(config), ServerName::DnsName(name))
    }
}

/// TLS configuration for kubelets, reloaded when its files change.
#[derive(Debug)]
pub struct KubeletTls {
    /// Sends the bastion's own token to kubelets. True if the operator opted in, the kubelet's
    /// certificate is verified, and no client certificate is configured.
    pub sends_token: bool,
    files: KubeletFiles,
    current: ArcSwap<KubeletSetup>,
}

#[derive(Debug)]
struct KubeletSetup {
    tls: Arc<EndpointTls>,
    /// Client certificate, if configured.
    pair: Option<Pair>,
}

#[derive(Clone, Debug)]
struct KubeletFiles {
    authority: Option<PathBuf>,
    /// Client certificate and its key.
    pair: Option<(PathBuf, PathBuf)>,
    min_version: TlsVersion,
}

impl ClientTls {
    /// Loads the configured files.
    ///
    /// # Errors
    /// [`TlsError`] if a file cannot be read, or key and certificate do not match.
    pub fn new(targets: &Targets, min_version: TlsVersion) -> Result<Self, TlsError> {
        let pair = targets
            .kubelet_client_certificate
            .clone()
            .zip(targets.kubelet_client_key.clone());
        let files = KubeletFiles {
            authority: targets.kubelet_certificate_authority.clone(),
            pair,
            min_version,
        };
        let (verified, certificate) = (files.authority.is_some(), files.pair.is_some());
        if verified && !certificate && !targets.kubelet_service_account_token {
            // No warning without a CA: most deployments serve only pods and services.
            tracing::warn!(
                "kubelets are verified but receive no credentials, so they respond with 401: set \
                 targets.kubeletClientCertificate, or targets.kubeletServiceAccountToken if its risk is acceptable"
            );
        }
        let target = unverified(min_version)?.with_no_client_auth();
        Ok(Self {
            target: Arc::new(EndpointTls::new(target, None)),
            kubelet: Arc::new(KubeletTls {
                // An unverified kubelet could be an impostor that uses the token. A client
                // certificate discloses nothing, so it takes precedence.
                sends_token: verified && !certificate && targets.kubelet_service_account_token,
                current: ArcSwap::from_pointee(files.load()?),
                files,
            }),
            min_version,
        })
    }
}

impl KubeletTls {
    /// Returns the configuration for the next handshake.
    pub fn current(&self) -> Arc<EndpointTls> {
        Arc::clone(&self.current.load().tls)
    }

    /// Returns the end of the client certificate's validity in Unix seconds, if one is configured.
    pub fn expires(&self) -> Option<i64> {
        self.current.load().pair.as_ref().map(|pair| pair.expires)
    }

    /// Returns the properties for which kubelets may reject the client certificate.
    pub fn concerns(&self) -> Vec<Concern> {
        let current = self.current.load();
        current
            .pair
            .as_ref()
            .map(|pair| pair.concerns.clone())
            .unwrap_or_default()
    }

    /// Reloads changed files for the next handshakes and calls `reloaded`; never returns. Invalid
    /// files are logged, and the old configuration stays.
    pub async fn watch_files(self: Arc<Self>, reloaded: impl Fn(&Self)) {
        let KubeletFiles {
            authority, pair, ..
        } = self.files.clone();
        let pair = pair.map(|(certificate, key)| [certificate, key]);
        let files: Vec<_> = authority
            .into_iter()
            .chain(pair.into_iter().flatten())
            .collect();
        if files.is_empty() {
            // The supervisor treats a task that returns as failed.
            return std::future::pending().await;
        }
        let mut files = FileWatch::new(files);
        loop {
            files.changed().await;
            match self.files.load() {
                Ok(setup) => {
                    // The new configuration has an empty session cache, so sessions that were
                    // verified with the old CA are not resumed.
                    self.current.store(Arc::new(setup));
                    tracing::info!("reloaded the CA and the client certificate for kubelets");
                    reloaded(&self);
                }
                Err(error) => tracing::error!(
                    error = error_chain(&error),
                    "cannot use the changed CA or client certificate for kubelets; keeping the old ones"
                ),
            }
        }
    }
}

impl KubeletFiles {
    fn load(&self) -> Result<KubeletSetup, TlsError> {
        let verifier = match &self.authority {
            Some(path) => {
                let roots = load_roots(path)?;
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|_| TlsError::BadCa { path: path.clone() })?;
                Some(verifier)
            }
            None => None,
        };
        let builder = match &verifier {
            Some(verifier) => builder(self.min_version)?.with_webpki_verifier(Arc::clone(verifier)),
            None => unverified(self.min_version)?,
        };
        let pair = self
            .pair
            .as_ref()
            .map(|(certificate, key)| Pair::load(certificate, key, Role::Client))
            .transpose()?;
        let config = match &pair {
            Some(pair) => {
                let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&pair.key));
                builder.with_client_cert_resolver(Arc::new(resolver))
            }
            None => builder.with_no_client_auth(),
        };
        Ok(KubeletSetup {
            tls: Arc::new(EndpointTls::new(config, verifier)),
            pair,
        })
    }
}

/// Loads the CAs of a file.
fn load_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in load_certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|_| TlsError::BadCa { path: path.into() })?;
    }
    Ok(roots)
}

/// Builder of a client configuration that lacks only the client certificate.
pub type WantsClientCert = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

/// Returns a builder of client configurations.
///
/// # Errors
/// The provider does not support the versions.
pub fn builder(
    min_version: TlsVersion,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    // Explicit, because rustls has no default provider if features enable two.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_protocol_versions(versions(min_version))
}

/// Returns a builder of client configurations that accept any certificate.
///
/// # Errors
/// As [`builder`].
pub fn unverified(min_version: TlsVersion) -> Result<WantsClientCert, rustls::Error> {
    Ok(builder(min_version)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny)))
}

/// Accepts any certificate of a target, as kube-apiserver's proxy does: targets are dialed by
/// addresses that their certificates do not contain (kubernetes#119625).
#[derive(Debug)]
struct AcceptAny;

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // The signature would prove possession of the key of an unverified certificate, which means
    // nothing. Skipping it also supports X.509 version 1 certificates, which webpki cannot parse.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes();
        // No signature is verified, so those that cannot be verified are accepted, too: targets
        // with an Ed448 key, and old ones that sign with SHA-1.
        schemes.extend([
            SignatureScheme::ED448,
            SignatureScheme::RSA_PKCS1_SHA1,
            SignatureScheme::ECDSA_SHA1_Legacy,
        ]);
        schemes
    }
}
