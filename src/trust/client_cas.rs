//! CAs that client certificates are verified against, replaced at run time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use tokio::sync::Notify;

use crate::model::pem::{self, PemError};

/// Reason why a CA bundle is rejected.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("the CA bundle cannot be read")]
    Pem(#[from] PemError),
    #[error("the certificates of the CA bundle are damaged or not X.509")]
    Unusable,
}

/// Current CAs that client certificates are verified against. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct DynamicClientCas(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    roots: ArcSwap<RootCertStore>,
    generation: AtomicU64,
    changed: Notify,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            roots: ArcSwap::from_pointee(RootCertStore::empty()),
            generation: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }
}

impl DynamicClientCas {
    /// Replaces the CAs by those of a PEM bundle; unusable certificates in it are skipped. Returns
    /// the number of CAs in use.
    ///
    /// # Errors
    /// If the text is not PEM or contains no CA: the CAs stay unchanged, as in kube-apiserver. A
    /// file that is being written may be empty for a moment.
    pub fn replace(&self, bundle: &[u8]) -> Result<usize, CaError> {
        let certificates = pem::certificates(bundle)?;
        let mut roots = RootCertStore::empty();
        let (used, _) = roots.add_parsable_certificates(certificates);
        if used == 0 {
            return Err(CaError::Unusable);
        }
        let unchanged = {
            let before = self.0.roots.load();
            before.roots == roots.roots
        };
        // An unchanged bundle keeps the generation, so that cached verdicts stay valid.
        if !unchanged {
            // The CAs are stored first: a reader that sees the new generation sees the new CAs.
            self.0.roots.store(Arc::new(roots));
            self.0.generation.fetch_add(1, Ordering::Release);
            self.0.changed.notify_one();
        }
        Ok(used)
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        self.0.roots.load_full()
    }

    /// Waits for the next change. Supports one waiter; a change between two calls completes the
    /// second one immediately.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Returns a number that grows with every change, stored beside cached verdicts.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_old_cas_if_bundle_is_invalid() {
        crate::tls::install_provider();
        let cas = DynamicClientCas::default();
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        assert_eq!(cas.replace(ca.cert.pem().as_bytes()).unwrap(), 1);
        let generation = cas.generation();
        assert_eq!(cas.replace(ca.cert.pem().as_bytes()).unwrap(), 1);
        assert_eq!(
            cas.generation(),
            generation,
            "the same bundle is not a change"
        );
        assert!(
            cas.replace(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
                .is_err()
        );
        let truncated = &ca.cert.pem().as_bytes()[..100].to_owned();
        assert!(matches!(
            cas.replace(truncated),
            Err(CaError::Pem(PemError::Incomplete))
        ));
        let not_x509 = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(cas.replace(not_x509), Err(CaError::Unusable)));
        assert!(
            matches!(cas.replace(b""), Err(CaError::Pem(PemError::Empty(_)))),
            "an empty file is rejected"
        );
        assert_eq!(cas.roots().len(), 1);
    }
}
