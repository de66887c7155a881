//! TLS server configuration: certificates from files or self-signed, and client certificates that
//! are requested in the handshake and verified per request.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use super::pair::{Concern, Pair, Role};
use super::x509::{PublicKey, parse_certificate};
use super::{TlsError, self_signed, versions};
use crate::config::{Serving, TlsVersion};
use crate::trust::DynamicClientCas;

/// Number of session tickets sent after a TLS 1.3 handshake: one to resume with and one spare, as
/// rustls' default. Without tickets, a reconnect costs three times as much.
const TICKETS: usize = 2;

/// TLS configuration of the HTTPS port. Shared by the workers, so that a session can be resumed on
/// any of them.
#[derive(Debug)]
pub struct ServerTls {
    current: ArcSwap<ServerConfig>,
    certificate: Arc<CurrentCertificate>,
    client_cas: [DynamicClientCas; 2],
    min_version: TlsVersion,
    ticketer: Arc<dyn ProducesTickets>,
    files: Option<(PathBuf, PathBuf)>,
    /// File with the CA of a self-signed certificate, if it is stored.
    self_signed_ca: Option<PathBuf>,
}

impl ServerTls {
    /// Loads the configured certificate files, or creates a self-signed certificate and stores it if
    /// a directory is configured. The handshake names `client_cas` (of callers and of front
    /// proxies) as acceptable issuers.
    ///
    /// # Errors
    /// [`TlsError`] if a file cannot be used, or key and certificate do not match.
    pub fn new(serving: &Serving, client_cas: [DynamicClientCas; 2]) -> Result<Self, TlsError> {
        Self::load(serving, client_cas, true)
    }

    /// Loads as [`Self::new`] does, without writing a file.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn check(serving: &Serving, client_cas: [DynamicClientCas; 2]) -> Result<Self, TlsError> {
        Self::load(serving, client_cas, false)
    }

    fn load(
        serving: &Serving,
        client_cas: [DynamicClientCas; 2],
        write: bool,
    ) -> Result<Self, TlsError> {
        let files = serving
            .tls_cert_file
            .clone()
            .zip(serving.tls_private_key_file.clone());
        let directory = serving.self_signed_dir.as_deref();
        let pair = match (&files, directory) {
            (Some((certificate, key)), _) => Pair::load(certificate, key, Role::Server)?,
            (None, Some(directory)) => {
                self_signed::load_or_create(directory, serving.secure_listen_address, write)?
            }
            (None, None) => self_signed::create(serving.secure_listen_address)?,
        };
        let certificate = Arc::new(CurrentCertificate(ArcSwap::from_pointee(pair)));
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
            self_signed_ca: directory
                .filter(|_| files.is_none())
                .map(|directory| directory.join(self_signed::CA_FILE)),
            files,
        })
    }

    /// Returns the configuration for the next handshake.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Returns the certificate and key files to watch, if configured.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files
            .clone()
            .map(|(certificate, key)| vec![certificate, key])
            .unwrap_or_default()
    }

    /// Returns the current certificate chain, leaf first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.certificate.0.load().key.cert.clone()
    }

    /// Returns the end of the certificate's validity in Unix seconds.
    pub fn expires(&self) -> i64 {
        self.certificate.0.load().expires
    }

    /// Returns the properties for which clients may reject the certificate.
    pub fn concerns(&self) -> Vec<Concern> {
        self.certificate.0.load().concerns.clone()
    }

    /// Returns the file with the CA of a self-signed certificate, if it is stored.
    pub fn self_signed_ca(&self) -> Option<&Path> {
        self.self_signed_ca.as_deref()
    }

    /// Reloads the certificate files and the client CAs for the next handshakes.
    ///
    /// # Errors
    /// [`TlsError`] if the files are invalid; the old certificate stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        if let Some((certificate, key)) = &self.files {
            let pair = Pair::load(certificate, key, Role::Server)?;
            self.certificate.0.store(Arc::new(pair));
        }
        // Built anew even if only the CAs changed: the verifier holds their names. The ticketer is
        // kept, so that sessions of before can be resumed.
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
    certificate: &Arc<CurrentCertificate>,
    client_cas: &[DynamicClientCas],
    min_version: TlsVersion,
    ticketer: &Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = DeferredClientVerifier {
        acceptable_issuers: client_cas
            .iter()
            .flat_map(|cas| cas.roots().subjects())
            .collect(),
        schemes: provider
            .signature_verification_algorithms
            .supported_schemes(),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(min_version))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::<CurrentCertificate>::clone(certificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(ticketer);
    config.send_tls13_tickets = TICKETS;
    // TLS 1.2 sessions are resumed by tickets too, so the server stores none.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// Returns the SHA-256 of a certificate in upper-case hex digits with `separator` between the
/// bytes; with a colon, the format of `openssl x509 -fingerprint -sha256`.
pub fn sha256_hex(certificate: &CertificateDer<'_>, separator: &str) -> String {
    let digest = digest::digest(&digest::SHA256, certificate);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect::<Vec<_>>()
        .join(separator)
}

/// Certificate for all server names, replaced by a reload.
#[derive(Debug)]
struct CurrentCertificate(ArcSwap<Pair>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }
}

/// Requests a client certificate and verifies only that the client holds its key. The issuer is
/// verified for each request, as in kube-apiserver (`authenticate/certificate.rs`):
///
/// - An unknown issuer gets 401 with a `Status` instead of a failed handshake.
/// - A changed CA applies to open connections and to resumed sessions. A session ticket contains
///   the client's certificate, and rustls does not verify it again when a session is resumed.
///
/// Accepting every certificate here grants nothing: a connection has no identity of its own.
#[derive(Debug)]
struct DeferredClientVerifier {
    /// Subjects of the client CAs, sent to clients that choose among several certificates.
    acceptable_issuers: Vec<DistinguishedName>,
    schemes: Vec<SignatureScheme>,
}

impl DeferredClientVerifier {
    /// Verifies the signature of the handshake with the key of the certificate.
    ///
    /// A certificate that is malformed, or whose key is not supported, passes without a
    /// verification: the client may have a valid token beside it. `authenticate` reads the key with
    /// the same functions and rejects such a certificate as a credential.
    fn verify_possession(
        certificate: &CertificateDer<'_>,
        verify: impl FnOnce(PublicKey<'_>) -> Result<(), rustls::Error>,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let certificate = parse_certificate(certificate).ok();
        if let Some(Ok(key)) = certificate.as_ref().map(PublicKey::from_certificate) {
            verify(key)?;
        }
        Ok(HandshakeSignatureValid::assertion())
    }
}

impl ClientCertVerifier for DeferredClientVerifier {
    // Callers with a bearer token have no certificate.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.acceptable_issuers
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    // Unlike the issuer, the signature must be verified here: it covers the handshake, which is not
    // available later. Without it, anybody could present the public certificate of another user.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::verify_possession(certificate, |key| key.verify_tls12(message, signed))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::verify_possession(certificate, |key| key.verify_tls13(message, signed))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
mod tests;
