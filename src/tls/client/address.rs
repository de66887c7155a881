//! Parts of a handshake that depend on the address of an endpoint instead of the name that is sent
//! to it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
    WebPkiServerVerifier,
};
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, NamedGroup, SignatureScheme};

/// Verifies that a certificate is valid for an address.
#[derive(Debug)]
pub(super) struct AddressVerifier {
    verifier: Arc<WebPkiServerVerifier>,
    address: ServerName<'static>,
}

impl AddressVerifier {
    pub fn new(verifier: Arc<WebPkiServerVerifier>, address: IpAddr) -> Self {
        Self {
            verifier,
            address: ServerName::IpAddress(address.into()),
        }
    }
}

impl ServerCertVerifier for AddressVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier.verify_server_cert(
            end_entity,
            intermediates,
            &self.address,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Sessions with one endpoint. The endpoints of a service have the same name, and none can resume
/// the session of another.
pub(super) struct AddressSessions {
    sessions: Arc<ClientSessionMemoryCache>,
    /// Key in the cache instead of the name: it has no other type of key.
    key: ServerName<'static>,
}

impl AddressSessions {
    pub fn new(
        sessions: Arc<ClientSessionMemoryCache>,
        name: &DnsName<'_>,
        address: IpAddr,
    ) -> Self {
        // A session must be resumed with the name of its first handshake (RFC 8446 section 4.6.1),
        // so the key contains both.
        let label = format!("ip{address}x").replace([':', '.'], "-");
        let key = ServerName::try_from(format!("{label}.{}", name.as_ref()));
        Self {
            sessions,
            key: key.unwrap_or(ServerName::IpAddress(address.into())),
        }
    }
}

impl fmt::Debug for AddressSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AddressSessions").field(&self.key).finish()
    }
}

impl ClientSessionStore for AddressSessions {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.sessions.set_kx_hint(self.key.clone(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.kx_hint(&self.key)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.sessions.set_tls12_session(self.key.clone(), session);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions.tls12_session(&self.key)
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.sessions.remove_tls12_session(&self.key);
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.sessions.insert_tls13_ticket(self.key.clone(), ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.sessions.take_tls13_ticket(&self.key)
    }
}
