//! Expiry of the certificates in use.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Ends of validity in Unix seconds, by certificate. A certificate that is not in use is absent.
#[derive(Clone, Debug, Default)]
pub struct CertificateExpiry(Family<[(&'static str, &'static str); 1], Gauge<i64, AtomicI64>>);

impl CertificateExpiry {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let expiry = Self::default();
        registry.register_with_unit(
            "certificate_expiration_timestamp",
            "Unix time at which a certificate in use expires, by certificate",
            Unit::Seconds,
            expiry.0.clone(),
        );
        expiry
    }

    /// Records the certificate of the HTTPS port.
    pub fn serving(&self, expires: i64) {
        self.set("serving", expires);
    }

    /// Records the client certificate for kubelets.
    pub fn kubelet_client(&self, expires: i64) {
        self.set("kubelet-client", expires);
    }

    /// Records the client certificate for the API server.
    pub fn api_client(&self, expires: i64) {
        self.set("api-client", expires);
    }

    fn set(&self, certificate: &'static str, expires: i64) {
        let labels = [("certificate", certificate)];
        self.0.get_or_create(&labels).set(expires);
    }
}
