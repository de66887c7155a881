//! CA of a server: the certificate of the server is verified before a kubeconfig names the server,
//! and a CA that the server sends is taken over if its fingerprint is known.

mod error;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::desk::connect::{Connector, Proxies, ProxyEnvironment, Verification};
use crate::desk::context::ServerUrl;
use crate::tls::Fingerprint;
pub use error::AuthorityError;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Length of the lines of PEM (RFC 7468).
const PEM_LINE: usize = 64;

/// Trust anchors for the certificate of a server.
#[derive(Clone, Debug)]
pub enum Trust {
    /// CAs of the system.
    System,
    /// CAs of a file.
    Certificates(Vec<CertificateDer<'static>>),
    /// The CA with this public key, which the server sends.
    Fingerprint(Fingerprint),
}

/// Verifies the certificate of a server for the host of its URL, or for `name`. Returns the CA with
/// the fingerprint as PEM if there is one to verify with.
///
/// # Errors
/// The server cannot be reached, or the certificate is not verified.
pub async fn verify(
    url: &ServerUrl,
    name: Option<&str>,
    trust: &Trust,
) -> Result<Option<String>, AuthorityError> {
    let server = url.authority.clone();
    let host = name.unwrap_or(&url.host);
    let server_name = ServerName::try_from(host.to_owned())
        .map_err(|_| AuthorityError::Name { name: host.into() })?;
    let verifier = Arc::new(Verifier::new(trust)?);
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_no_client_auth();
    let environment = ProxyEnvironment::of_process();
    let proxies = Proxies::from_environment(&environment, Verification::System);
    let connector = Connector::new(&url.host, url.port, None, Arc::new(proxies));
    let stream = connector.open_for_tls().await?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(server_name, stream);
    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(handshake) => handshake.map_err(|source| {
            AuthorityError::of_handshake(&server, host, source, trust, &verifier.seen())
        })?,
        Err(_) => return Err(AuthorityError::Timeout { server }),
    };
    Ok(match trust {
        Trust::Fingerprint(fingerprint) => {
            let seen = verifier.seen();
            fingerprint.find(&seen).map(|certificate| pem(certificate))
        }
        Trust::System | Trust::Certificates(_) => None,
    })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Returns a verifier with these roots.
fn with_roots(
    certificates: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate)?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    Ok(verifier.map_err(|error| rustls::Error::General(error.to_string()))?)
}

/// Verifies certificates as configured, and records them.
#[derive(Debug)]
struct Verifier {
    roots: Roots,
    signatures: WebPkiSupportedAlgorithms,
    seen: Mutex<Vec<CertificateDer<'static>>>,
}

#[derive(Debug)]
enum Roots {
    Known(Arc<dyn ServerCertVerifier>),
    /// The CA with this key, from the chain itself.
    InChain(Fingerprint),
}

impl Verifier {
    fn new(trust: &Trust) -> Result<Self, AuthorityError> {
        let roots = match trust {
            Trust::System => {
                let system = rustls_platform_verifier::Verifier::new(provider());
                Roots::Known(Arc::new(system.map_err(AuthorityError::System)?))
            }
            Trust::Certificates(certificates) => {
                let roots = with_roots(certificates.iter().cloned());
                Roots::Known(roots.map_err(|_| AuthorityError::BadCa)?)
            }
            Trust::Fingerprint(fingerprint) => Roots::InChain(*fingerprint),
        };
        Ok(Self {
            roots,
            signatures: provider().signature_verification_algorithms,
            seen: Mutex::default(),
        })
    }

    /// Returns the certificates that the server sent, its own first.
    fn seen(&self) -> Vec<CertificateDer<'static>> {
        let seen = self.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(intermediates);
        let chain: Vec<_> = chain.map(|it| it.clone().into_owned()).collect();
        (*self.seen.lock().unwrap_or_else(PoisonError::into_inner)).clone_from(&chain);
        let verifier = match &self.roots {
            Roots::Known(verifier) => Arc::clone(verifier),
            Roots::InChain(fingerprint) => {
                let certificate = fingerprint.find(&chain);
                let certificate = certificate.ok_or(CertificateError::UnknownIssuer)?;
                with_roots([certificate.clone()])?
            }
        };
        verifier.verify_server_cert(leaf, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.signatures)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.signatures)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}

/// Encodes a certificate (RFC 7468).
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    let base64 = STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = &*base64;
    while !rest.is_empty() {
        let (line, further) = rest.split_at(rest.len().min(PEM_LINE));
        text.push_str(line);
        text.push('\n');
        rest = further;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
