//! The serving side: certificates from files or self-signed, client certificates asked for and
//! judged per request.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use super::{TlsError, load_pair};
use crate::config::{Serving, TlsVersion};
use crate::trust::DynamicClientCas;

/// Session tickets sent after a TLS 1.3 handshake: one to resume with and one spare. None triples
/// the cost of reconnects, rustls' default of two is kept.
const TICKETS: usize = 2;

/// The TLS setup of the HTTPS port. The workers share it, and one ticketer with it.
#[derive(Debug)]
pub struct ServerTls {
    current: ArcSwap<ServerConfig>,
    certificate: Arc<Certificate>,
    client_cas: [DynamicClientCas; 2],
    min_version: TlsVersion,
    ticketer: Arc<dyn ProducesTickets>,
    files: Option<(PathBuf, PathBuf)>,
}

impl ServerTls {
    /// Loads the certificate files of the configuration, or makes a self-signed certificate.
    /// Clients are told of the CAs (of callers and of front proxies) that certificates are wanted
    /// from.
    ///
    /// # Errors
    /// Where a file cannot be read, or key and certificate do not match.
    pub fn new(serving: &Serving, client_cas: [DynamicClientCas; 2]) -> Result<Self, TlsError> {
        let files = serving
            .tls_cert_file
            .clone()
            .zip(serving.tls_private_key_file.clone());
        let key = match &files {
            Some((certificate, key)) => load_pair(certificate, key)?,
            None => self_signed()?,
        };
        let certificate = Arc::new(Certificate(ArcSwap::new(key)));
        let ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        let config = server_config(
            &certificate,
            &client_cas,
            serving.tls_min_version,
            &ticketer,
        )?;
        let current = ArcSwap::from_pointee(config);
        Ok(Self {
            current,
            certificate,
            client_cas,
            min_version: serving.tls_min_version,
            ticketer,
            files,
        })
    }

    /// The setup for the next handshake.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// The certificate and key files, where there are any: to be watched.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files
            .clone()
            .map(|(certificate, key)| vec![certificate, key])
            .unwrap_or_default()
    }

    /// The chain that is served now, the leaf first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.certificate.0.load().cert.clone()
    }

    /// Takes changed certificate files and changed client CAs into use for the next handshakes.
    ///
    /// # Errors
    /// Where the files are no good: the old certificate stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        if let Some((certificate, key)) = &self.files {
            self.certificate.0.store(load_pair(certificate, key)?);
        }
        let config = server_config(
            &self.certificate,
            &self.client_cas,
            self.min_version,
            &self.ticketer,
        )?;
        self.current.store(Arc::new(config));
        Ok(())
    }
}

fn server_config(
    certificate: &Arc<Certificate>,
    client_cas: &[DynamicClientCas],
    min_version: TlsVersion,
    ticketer: &Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[_] = match min_version {
        TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let verifier = DeferredClientVerifier {
        hints: client_cas
            .iter()
            .flat_map(|cas| cas.roots().subjects())
            .collect(),
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::<Certificate>::clone(certificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(ticketer);
    config.send_tls13_tickets = TICKETS;
    // With tickets no session need be kept here.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// A self-signed certificate for a first look: no client can verify it, but for its fingerprint.
fn self_signed() -> Result<Arc<CertifiedKey>, TlsError> {
    let names = ["localhost", "kube-bastion", "127.0.0.1", "::1"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(
        vec![made.cert.der().clone()],
        key,
        &provider,
    )?))
}

/// The SHA-256 of a certificate in upper-case hex digits, `separator` between the bytes: with a
/// colon, it is what `openssl x509 -fingerprint -sha256` prints.
pub fn sha256_hex(certificate: &CertificateDer<'_>, separator: &str) -> String {
    let digest = digest::digest(&digest::SHA256, certificate);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect::<Vec<_>>()
        .join(separator)
}

/// The one certificate that is served, whatever name is asked for.
#[derive(Debug)]
struct Certificate(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Asks clients for a certificate and has them prove that they hold its key, no more: which CA it
/// must come from is judged per request, as kube-apiserver does, so that a wrong one is a 401 with
/// words instead of a broken handshake, and a changed CA counts on connections and resumed sessions
/// that are older than the change.
#[derive(Debug)]
struct DeferredClientVerifier {
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for DeferredClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
