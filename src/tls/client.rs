//! The client sides: targets, whose certificates are not verified (CONFORMANCE C51), and kubelets (C52).

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{TlsError, load_certificates, load_pair};
use crate::config::Targets;

/// TLS setups towards targets, shared by the workers.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// Towards pods, services and the other ports of nodes.
    pub target: Offers,
    pub kubelet: KubeletTls,
}

/// One setup with two offers (ALPN, RFC 7301).
#[derive(Clone, Debug)]
pub struct Offers {
    /// HTTP/2, and HTTP/1.1 where the target does not have it (CONFORMANCE C53).
    pub any: Arc<ClientConfig>,
    /// HTTP/1.1 alone, for upgrades (C84).
    pub http1: Arc<ClientConfig>,
}

impl Offers {
    fn new(config: &ClientConfig) -> Self {
        let offering = |protocols: &[&str]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
            Arc::new(config)
        };
        Self { any: offering(&["h2", "http/1.1"]), http1: offering(&["http/1.1"]) }
    }
}

/// TLS towards kubelets, and whether the bastion may show its own token there.
#[derive(Clone, Debug)]
pub struct KubeletTls {
    pub offers: Offers,
    /// The kubelet's certificate is verified. A token is shown to nobody else.
    pub verified: bool,
    /// A client certificate is shown, so that no token is needed.
    pub certificate: bool,
}

impl ClientTls {
    /// # Errors
    /// Where a file of the configuration cannot be read, or key and certificate do not match.
    pub fn new(targets: &Targets) -> Result<Self, TlsError> {
        let Targets {
            kubelet_certificate_authority: ca,
            kubelet_client_certificate: certificate,
            kubelet_client_key: key,
            ..
        } = targets;
        let kubelet = kubelet_config(ca.as_deref(), certificate.as_deref().zip(key.as_deref()))?;
        Ok(Self {
            target: Offers::new(&unverified()?.with_no_client_auth()),
            kubelet: KubeletTls {
                offers: Offers::new(&kubelet),
                verified: ca.is_some(),
                certificate: certificate.is_some(),
            },
        })
    }
}

type WantsClientCert = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

fn unverified() -> Result<WantsClientCert, rustls::Error> {
    Ok(builder()?.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny)))
}

fn kubelet_config(ca: Option<&Path>, pair: Option<(&Path, &Path)>) -> Result<ClientConfig, TlsError> {
    let builder = match ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in load_certificates(path)? {
                roots.add(certificate).map_err(|source| TlsError::BadCa { path: path.into(), source })?;
            }
            builder()?.with_root_certificates(roots)
        }
        None => unverified()?,
    };
    Ok(match pair {
        Some((certificate, key)) => {
            let pair = load_pair(certificate, key)?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from((*pair).clone())))
        }
        None => builder.with_no_client_auth(),
    })
}

/// Accepts whatever a target shows, as the apiserver's proxy does: targets are dialled by addresses that no
/// certificate names (kubernetes#119625).
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

    // The signature would prove that the target holds the key of a certificate that says nothing. Old self-signed
    // certificates (X.509 version 1) that webpki cannot read are served for it.
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
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
