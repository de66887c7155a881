//! Server certificates that are themselves in the CA file.
//!
//! webpki accepts no CA certificate as that of a server. Go does, and self-signed certificates made
//! by `openssl req -x509` are CA certificates.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Verifier that accepts a trusted certificate as that of a server, if it is valid for its name now.
#[derive(Debug)]
pub(super) struct OwnRootVerifier {
    pub trusted: Vec<CertificateDer<'static>>,
    pub chains: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for OwnRootVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.trusted.iter().any(|trusted| trusted == end_entity) {
            return self.chains.verify_server_cert(
                end_entity,
                intermediates,
                name,
                ocsp_response,
                now,
            );
        }
        let (_, certificate) = X509Certificate::from_der(end_entity)
            .map_err(|_| Error::from(CertificateError::BadEncoding))?;
        let validity = certificate.validity();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < validity.not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > validity.not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let chains = &self.chains;
        chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let chains = &self.chains;
        chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
    use rustls::RootCertStore;

    fn certificate(until: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["api.example".into()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn verify(
        trusted: &CertificateDer<'static>,
        presented: &CertificateDer<'static>,
        name: &str,
    ) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = OwnRootVerifier {
            trusted: vec![trusted.clone()],
            chains: chains.build().unwrap(),
        };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier
            .verify_server_cert(presented, &[], &name, &[], UnixTime::now())
            .map(drop)
    }

    #[test]
    fn trusted_certificate_is_accepted_for_its_name_while_it_is_valid() {
        let own = certificate(2090);
        assert_eq!(verify(&own, &own, "api.example"), Ok(()));
        assert!(verify(&own, &own, "other.example").is_err());
        let expired = certificate(2021);
        let error = verify(&expired, &expired, "api.example");
        assert_eq!(error, Err(CertificateError::Expired.into()));
        assert!(verify(&own, &certificate(2090), "api.example").is_err());
    }
}
