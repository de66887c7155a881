//! The client sides: targets, whose certificates are not verified (CONFORMANCE C51), and kubelets
//! (C52).

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{TlsError, load_certificates, load_pair};
use crate::config::Targets;
use crate::file_watch::FileWatch;
use crate::model::error_chain;

/// TLS setups towards targets, shared by the workers.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// Towards pods, services and the other ports of nodes.
    pub target: Arc<AlpnConfigs>,
    pub kubelet: Arc<KubeletTls>,
}

/// One setup with two offers (ALPN, RFC 7301).
#[derive(Clone, Debug)]
pub struct AlpnConfigs {
    /// HTTP/2, and HTTP/1.1 where the target does not have it (CONFORMANCE C53).
    pub any: Arc<ClientConfig>,
    /// HTTP/1.1 alone, for upgrades (C84).
    pub http1: Arc<ClientConfig>,
}

impl AlpnConfigs {
    fn new(config: &ClientConfig) -> Self {
        let offering = |protocols: &[&str]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols
                .iter()
                .map(|protocol| protocol.as_bytes().to_vec())
                .collect();
            Arc::new(config)
        };
        Self {
            any: offering(&["h2", "http/1.1"]),
            http1: offering(&["http/1.1"]),
        }
    }
}

/// TLS towards kubelets, and whether the bastion may show its own token there.
#[derive(Debug)]
pub struct KubeletTls {
    /// Whether kubelets are shown the bastion's own token: the operator opted in, the kubelet's
    /// certificate is verified, and no client certificate makes it needless.
    pub shows_token: bool,
    files: KubeletFiles,
    offers: ArcSwap<AlpnConfigs>,
}

#[derive(Clone, Debug)]
struct KubeletFiles {
    authority: Option<PathBuf>,
    /// Certificate and key.
    pair: Option<(PathBuf, PathBuf)>,
}

impl ClientTls {
    /// # Errors
    /// Where a file of the configuration cannot be read, or key and certificate do not match.
    pub fn new(targets: &Targets) -> Result<Self, TlsError> {
        let pair = targets
            .kubelet_client_certificate
            .clone()
            .zip(targets.kubelet_client_key.clone());
        let files = KubeletFiles {
            authority: targets.kubelet_certificate_authority.clone(),
            pair,
        };
        let (verified, certificate) = (files.authority.is_some(), files.pair.is_some());
        if verified && !certificate && !targets.kubelet_service_account_token {
            // Without a CA nobody expects kubelets to be reached: most bastions serve pods and
            // services alone.
            tracing::warn!(
                "kubelets are verified and get no credentials, so they answer 401: set \
                 targets.kubeletClientCertificate, or targets.kubeletServiceAccountToken where its risk is acceptable"
            );
        }
        Ok(Self {
            target: Arc::new(AlpnConfigs::new(&unverified()?.with_no_client_auth())),
            kubelet: Arc::new(KubeletTls {
                shows_token: verified && !certificate && targets.kubelet_service_account_token,
                offers: ArcSwap::from_pointee(files.load()?),
                files,
            }),
        })
    }
}

impl KubeletTls {
    /// The setup for the next handshake.
    pub fn offers(&self) -> Arc<AlpnConfigs> {
        self.offers.load_full()
    }

    /// Takes changed files into use for the next handshakes, for ever. What is no good changes
    /// nothing and is logged.
    pub async fn watch_files(self: Arc<Self>) {
        let KubeletFiles { authority, pair } = self.files.clone();
        let pair = pair.map(|(certificate, key)| [certificate, key]);
        let files: Vec<_> = authority
            .into_iter()
            .chain(pair.into_iter().flatten())
            .collect();
        if files.is_empty() {
            // Nothing to follow; a task that returned would count as one that broke.
            return std::future::pending().await;
        }
        let mut files = FileWatch::new(files);
        loop {
            files.changed().await;
            match self.files.load() {
                Ok(offers) => {
                    self.offers.store(Arc::new(offers));
                    tracing::info!(
                        "the CA or the client certificate for kubelets changed and is in use"
                    );
                }
                Err(error) => tracing::error!(
                    error = error_chain(&error),
                    "the CA or the client certificate for kubelets changed and cannot be used; the old one stays"
                ),
            }
        }
    }
}

impl KubeletFiles {
    fn load(&self) -> Result<AlpnConfigs, TlsError> {
        let builder = match &self.authority {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in load_certificates(path)? {
                    roots.add(certificate).map_err(|source| TlsError::BadCa {
                        path: path.clone(),
                        source,
                    })?;
                }
                builder()?.with_root_certificates(roots)
            }
            None => unverified()?,
        };
        Ok(AlpnConfigs::new(&match &self.pair {
            Some((certificate, key)) => {
                let pair = load_pair(certificate, key)?;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                    (*pair).clone(),
                )))
            }
            None => builder.with_no_client_auth(),
        }))
    }
}

type WantsClientCert = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

fn unverified() -> Result<WantsClientCert, rustls::Error> {
    Ok(builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny)))
}

/// Accepts whatever a target shows, as the apiserver's proxy does: targets are dialled by addresses
/// that no certificate names (kubernetes#119625).
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

    // The signature would prove that the target holds the key of a certificate that says nothing.
    // Old self-signed certificates (X.509 version 1) that webpki cannot read are served for it.
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
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
