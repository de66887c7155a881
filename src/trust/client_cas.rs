//! The CAs that client certificates are verified against, replaced while the bastion runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Notify;

/// Why a bundle of CAs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("it is no PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("it holds no certificate that can be used: PEM with BEGIN CERTIFICATE is wanted")]
    None,
}

/// The CAs that client certificates are verified against, as they are now. Clones share the state.
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
    /// Replaces the CAs by those of a PEM bundle; certificates in it that cannot be used are
    /// skipped. Returns how many are in force.
    ///
    /// # Errors
    /// Where the text is not PEM or holds no CA: the CAs stay as they were, as with kube-apiserver.
    /// A file that is being written is empty for a moment.
    pub fn replace(&self, pem: &[u8]) -> Result<usize, CaError> {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
        let mut roots = RootCertStore::empty();
        let (used, _) = roots.add_parsable_certificates(certificates);
        if used == 0 {
            return Err(CaError::None);
        }
        let unchanged = {
            let before = self.0.roots.load();
            before.roots == roots.roots
        };
        if !unchanged {
            self.0.roots.store(Arc::new(roots));
            self.0.generation.fetch_add(1, Ordering::Release);
            self.0.changed.notify_one();
        }
        Ok(used)
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        self.0.roots.load_full()
    }

    /// Waits for the next change. For one waiter; a change that comes while it does not wait is
    /// found at its next call.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Grows with every change: who keeps a verdict keeps the generation beside it.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_is_no_pem_keeps_the_old_cas() {
        crate::tls::install_provider();
        let cas = DynamicClientCas::default();
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        assert_eq!(cas.replace(ca.cert.pem().as_bytes()).unwrap(), 1);
        let generation = cas.generation();
        assert_eq!(cas.replace(ca.cert.pem().as_bytes()).unwrap(), 1);
        assert_eq!(cas.generation(), generation, "the same bundle is no change");
        assert!(
            cas.replace(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
                .is_err()
        );
        assert!(
            matches!(cas.replace(b""), Err(CaError::None)),
            "a file that is being written"
        );
        assert_eq!(cas.roots().len(), 1);
    }
}
