//! Client certificates: user from the subject's CN, groups from its Os, as in kube-apiserver.

mod direct;
mod invalid;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::error::X509Error;
use x509_parser::prelude::{X509Certificate, X509Name};

pub use invalid::Invalid;

use crate::model::Identity;
use crate::model::identity::AUTHENTICATED;
use crate::telemetry::LogLimit;
use crate::tls::{KeyError, PublicKey, parse_certificate};
use crate::trust::DynamicClientCas;

/// Attribute type of a user's uid in a subject (KEP-4601, OID under the CNCF's arc).
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);
/// Key of the extra attribute that names the credential of the caller.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Time to cache a failed verification. Short, so that a certificate that is not valid yet because
/// of clock skew does not fail for the rest of its connection.
const NEGATIVE_TTL_SECONDS: u64 = 10;
/// Events about rejected certificates, of which each connection may cause one.
static REJECTED: LogLimit = LogLimit::new(60);
/// Maximum length of a subject or issuer in an event, in characters.
const MAX_NAME: usize = 256;

/// Reason why a client certificate does not identify a caller.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CertificateError {
    #[error("no client CA is configured or published by the cluster")]
    NoClientCa,
    #[error("the client certificate is not valid: {0}")]
    Invalid(#[from] Invalid),
    #[error("the client certificate is malformed: {0}")]
    Malformed(#[from] X509Error),
    /// The handshake could not prove that the client holds the key.
    #[error("the key of the client certificate cannot be used: {0}")]
    Key(#[from] KeyError),
    #[error("the client certificate has no common name")]
    NoCommonName,
}

/// Certificate chain of a client. Verification results are cached for the connection, until the CAs
/// change or a certificate of the chain expires.
#[derive(Debug)]
pub struct ClientCertificate {
    leaf: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    caller: Cached<Arc<Identity>>,
    front_proxy: Cached<Arc<str>>,
    /// True once a rejection was logged, so that a connection has one event.
    reported: AtomicBool,
}

#[derive(Debug)]
struct Cached<T>(Mutex<Option<CachedVerdict<T>>>);

#[derive(Clone, Debug)]
struct CachedVerdict<T> {
    /// Generation of the CAs that the chain was verified against.
    generation: u64,
    /// Unix seconds after which the chain is verified again.
    expires: u64,
    verdict: Result<T, CertificateError>,
}

impl ClientCertificate {
    /// Takes a chain with the leaf first. Returns `None` if it is empty.
    pub fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let mut chain = chain
            .iter()
            .map(|certificate| certificate.clone().into_owned());
        Some(Self {
            leaf: chain.next()?,
            intermediates: chain.collect(),
            caller: Cached(Mutex::new(None)),
            front_proxy: Cached(Mutex::new(None)),
            reported: AtomicBool::new(false),
        })
    }

    /// Returns the identity in the certificate, verified against the current CAs.
    ///
    /// # Errors
    /// [`CertificateError`], for the log.
    pub(super) fn identity(
        &self,
        cas: &DynamicClientCas,
    ) -> Result<Arc<Identity>, CertificateError> {
        let identity = self.identity_at(unix_now(), cas);
        if let Err(error) = &identity
            && !self.reported.swap(true, Ordering::Relaxed)
        {
            self.report(error);
        }
        identity
    }

    /// Logs a rejection. The client may have another credential, so its request may succeed.
    fn report(&self, error: &CertificateError) {
        let certificate = parse_certificate(&self.leaf).ok();
        let name = |name: &X509Name<'_>| name.to_string().chars().take(MAX_NAME).collect();
        let names = certificate.map(|it| (name(it.subject()), name(it.issuer())));
        let (subject, issuer): (String, String) = names.unwrap_or_default();
        if REJECTED.permits() {
            tracing::info!(%error, subject, issuer, "client certificate rejected");
        } else {
            tracing::debug!(%error, subject, issuer, "client certificate rejected");
        }
    }

    fn identity_at(
        &self,
        now: Duration,
        cas: &DynamicClientCas,
    ) -> Result<Arc<Identity>, CertificateError> {
        self.verify_cached(&self.caller, now, cas, |certificate, leaf| {
            identity(certificate.subject(), leaf).map(Arc::new)
        })
    }

    /// Returns the common name of the certificate, verified against the current CAs.
    ///
    /// # Errors
    /// As [`Self::identity`].
    pub(super) fn common_name(&self, cas: &DynamicClientCas) -> Result<Arc<str>, CertificateError> {
        self.verify_cached(&self.front_proxy, unix_now(), cas, |certificate, _| {
            Ok(common_name(certificate.subject()).into())
        })
    }

    fn verify_cached<T: Clone>(
        &self,
        cache: &Cached<T>,
        now: Duration,
        cas: &DynamicClientCas,
        read: impl FnOnce(&X509Certificate<'_>, &CertificateDer<'_>) -> Result<T, CertificateError>,
    ) -> Result<T, CertificateError> {
        // Read before the CAs: if they are replaced in between, the verdict is stored under the old
        // generation and the next request verifies again. The other order could keep a verdict of
        // the old CAs under the new generation.
        let generation = cas.generation();
        // The lock is held during verification, so that concurrent HTTP/2 streams of a connection
        // verify the chain once.
        let mut cached = cache.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = &*cached
            && cached.generation == generation
            && cached.expires >= now.as_secs()
        {
            return cached.verdict.clone();
        }
        let (expires, verdict) = match self.verify(cas, UnixTime::since_unix_epoch(now), read) {
            Ok((value, expires)) => (expires, Ok(value)),
            Err(error) => (now.as_secs() + NEGATIVE_TTL_SECONDS, Err(error)),
        };
        *cached = Some(CachedVerdict {
            generation,
            expires,
            verdict: verdict.clone(),
        });
        verdict
    }

    /// Verifies the chain and reads its leaf. Returns also the expiry in Unix seconds.
    fn verify<T>(
        &self,
        cas: &DynamicClientCas,
        now: UnixTime,
        read: impl FnOnce(&X509Certificate<'_>, &CertificateDer<'_>) -> Result<T, CertificateError>,
    ) -> Result<(T, u64), CertificateError> {
        let roots = cas.roots();
        if roots.is_empty() {
            return Err(CertificateError::NoClientCa);
        }
        let certificate = parse_certificate(&self.leaf)?;
        // The handshake does not verify the possession of a key that cannot be used
        // (`tls/server.rs`), so that such a certificate must not identify anybody.
        PublicKey::from_certificate(&certificate)?;
        if direct::applies_to(&certificate) {
            direct::verify(&certificate, &roots, now)?;
        } else {
            // The builder fails only without a root; no CRLs are configured.
            let verifier = WebPkiClientVerifier::builder(roots)
                .build()
                .map_err(|_| CertificateError::NoClientCa)?;
            verifier
                .verify_client_cert(&self.leaf, &self.intermediates, now)
                .map_err(|error| Invalid::new(&error, &certificate))?;
        }
        // Certificates that have expired already are ignored: rustls found a valid path without
        // them, so they must not end the verdict.
        let expires = std::iter::once(&self.leaf)
            .chain(&self.intermediates)
            .filter_map(not_after)
            .filter(|expires| *expires >= now.as_secs());
        Ok((
            read(&certificate, &self.leaf)?,
            expires.min().unwrap_or_default(),
        ))
    }
}

/// Returns the end of a certificate's validity in Unix seconds, or `None` if it cannot be parsed.
/// Such an intermediate cannot be part of the verified path.
fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    let certificate = parse_certificate(certificate).ok()?;
    certificate.validity().not_after.timestamp().try_into().ok()
}

fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Returns the last CN of a subject, which Go's `pkix.Name` and so kube-apiserver use.
fn common_name<'a>(subject: &'a X509Name<'_>) -> &'a str {
    subject
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .last()
        .unwrap_or_default()
}

fn identity(
    subject: &X509Name<'_>,
    leaf: &CertificateDer<'_>,
) -> Result<Identity, CertificateError> {
    let user = common_name(subject);
    if user.is_empty() {
        return Err(CertificateError::NoCommonName);
    }
    let uid = subject
        .iter_by_oid(&UID)
        .find_map(|uid| uid.as_str().ok())
        .unwrap_or_default();
    let organizations = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok());
    let groups = organizations
        // kube-apiserver adds this group to every user that it authenticates.
        .chain([AUTHENTICATED])
        .map(str::to_owned)
        .collect();
    // Lowercase hex over the DER of the certificate, as kube-apiserver formats it.
    let digest = crate::tls::sha256_hex(leaf, "").to_lowercase();
    let extra = BTreeMap::from([(
        CREDENTIAL_ID.to_owned(),
        vec![format!("X509SHA256={digest}")],
    )]);
    Ok(Identity::new(user, uid, groups, extra))
}

#[cfg(test)]
mod tests;
