//! Handshakes in memory, without sockets.

use std::path::Path;
use std::sync::Mutex;

use rcgen::{CertificateParams, CertifiedKey as Generated, DnType, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Error, HandshakeKind, RootCertStore,
    ServerConnection, SupportedProtocolVersion,
};

use super::*;
use crate::testing;

const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn server(min_version: TlsVersion, client_cas: [DynamicClientCas; 2]) -> ServerTls {
    let serving = Serving {
        tls_min_version: min_version,
        ..Serving::default()
    };
    ServerTls::new(&serving, client_cas).unwrap()
}

fn generate(name: &str) -> Generated<KeyPair> {
    rcgen::generate_simple_self_signed([name.to_owned()]).unwrap()
}

/// Certificate of a client, with a key that may be another's.
#[derive(Debug)]
struct Client {
    certificate: Option<Arc<CertifiedKey>>,
    /// Issuers that the server named, one list for each request of a certificate.
    issuers: Mutex<Vec<Vec<Vec<u8>>>>,
}

impl Client {
    fn anonymous() -> Arc<Self> {
        Arc::new(Self {
            certificate: None,
            issuers: Mutex::default(),
        })
    }

    fn with(certificate: &Generated<KeyPair>, key: &KeyPair) -> Arc<Self> {
        Self::presenting(certificate.cert.der().clone(), key)
    }

    fn presenting(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<Self> {
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        Arc::new(Self {
            certificate: Some(Arc::new(CertifiedKey::new(vec![certificate], key))),
            issuers: Mutex::default(),
        })
    }

    /// Configuration that trusts the server's current certificate.
    fn config(
        self: &Arc<Self>,
        server: &ServerTls,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in server.chain() {
            roots.add(certificate).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

impl ResolvesClientCert for Client {
    fn resolve(&self, issuers: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let issuers = issuers.iter().map(|issuer| issuer.to_vec()).collect();
        self.issuers.lock().unwrap().push(issuers);
        self.certificate.clone()
    }

    fn has_certs(&self) -> bool {
        self.certificate.is_some()
    }
}

/// Handshakes until neither side has anything to send, which includes session tickets.
fn connect(server: &ServerTls, client: &Arc<ClientConfig>) -> Result<ServerConnection, Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(server.config()).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).unwrap();
        }
        let mut received = &sent[..];
        while !received.is_empty() {
            server.read_tls(&mut received).unwrap();
            server.process_new_packets()?;
        }
        let mut sent = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut sent).unwrap();
        }
        let mut received = &sent[..];
        while !received.is_empty() {
            client.read_tls(&mut received).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(server)
}

fn write_pair(folder: &Path, pair: &Generated<KeyPair>) -> Serving {
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    Serving {
        tls_cert_file: Some(certificate),
        tls_private_key_file: Some(key),
        ..Serving::default()
    }
}

#[test]
fn negotiates_http2_before_http1() {
    crate::tls::install_provider();
    let server = server(TlsVersion::Tls12, Default::default());
    for (offered, selected) in [
        (&["http/1.1", "h2"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let client = Client::anonymous().config(&server, TLS13, offered);
        let connection = connect(&server, &client).unwrap();
        assert_eq!(connection.alpn_protocol(), selected, "{offered:?}");
    }
}

#[test]
fn rejects_versions_below_the_minimum() {
    crate::tls::install_provider();
    for (min_version, accepted) in [(TlsVersion::Tls12, true), (TlsVersion::Tls13, false)] {
        let server = server(min_version, Default::default());
        let client = Client::anonymous().config(&server, TLS12, &[]);
        assert_eq!(connect(&server, &client).is_ok(), accepted);
        let client = Client::anonymous().config(&server, TLS13, &[]);
        assert!(connect(&server, &client).is_ok());
    }
}

#[test]
fn accepts_clients_without_certificate_or_with_unknown_issuer() {
    crate::tls::install_provider();
    let server = server(TlsVersion::Tls12, Default::default());
    let pair = generate("jane");
    for versions in [TLS12, TLS13] {
        let anonymous = Client::anonymous().config(&server, versions, &[]);
        let connection = connect(&server, &anonymous).unwrap();
        assert!(connection.peer_certificates().is_none());

        let client = Client::with(&pair, &pair.signing_key).config(&server, versions, &[]);
        let connection = connect(&server, &client).unwrap();
        let presented = connection.peer_certificates().unwrap();
        assert_eq!(presented, [pair.cert.der().clone()]);
    }
}

#[test]
fn rejects_client_certificate_without_its_key() {
    crate::tls::install_provider();
    let server = server(TlsVersion::Tls12, Default::default());
    let (victim, attacker) = (generate("jane"), generate("mallory"));
    for versions in [TLS12, TLS13] {
        let client = Client::with(&victim, &attacker.signing_key).config(&server, versions, &[]);
        assert_eq!(
            connect(&server, &client).unwrap_err(),
            Error::InvalidCertificate(CertificateError::BadSignature)
        );
    }
}

/// Certificates that webpki does not parse or accept: their signature is verified nevertheless.
#[test]
fn requires_key_of_certificates_of_every_version() {
    crate::tls::install_provider();
    let server = server(TlsVersion::Tls12, Default::default());
    let own = KeyPair::from_pem(testing::certificate_pem("client.key")).unwrap();
    let other = KeyPair::generate().unwrap();
    for name in [
        "version-1",
        "version-1-other-ca",
        "version-1-md5",
        "ca-true",
        "any-usage",
    ] {
        for versions in [TLS12, TLS13] {
            let present = |key| {
                let client = Client::presenting(testing::certificate(name), key);
                connect(&server, &client.config(&server, versions, &[]))
            };
            let connection = present(&own).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(
                connection.peer_certificates().unwrap(),
                [testing::certificate(name)]
            );
            assert_eq!(
                present(&other).unwrap_err(),
                Error::InvalidCertificate(CertificateError::BadSignature),
                "{name}"
            );
        }
    }
}

/// `authenticate` rejects them as credentials.
#[test]
fn completes_handshake_with_certificates_that_cannot_be_verified() {
    crate::tls::install_provider();
    let server = server(TlsVersion::Tls12, Default::default());
    let key = KeyPair::generate().unwrap();
    let fixtures = ["rsa-1024", "dsa", "ed448", "secp256k1"].map(testing::certificate);
    let garbage = [&b"garbage"[..], &[0x30, 0x80]].map(|der| der.to_vec().into());
    for certificate in fixtures.into_iter().chain(garbage) {
        for versions in [TLS12, TLS13] {
            let client = Client::presenting(certificate.clone(), &key);
            let connection = connect(&server, &client.config(&server, versions, &[])).unwrap();
            assert_eq!(
                connection.peer_certificates().unwrap(),
                std::slice::from_ref(&certificate)
            );
        }
    }
}

/// Each type of key that TLS 1.2 and 1.3 sign with.
#[test]
fn verifies_signatures_of_all_supported_keys() {
    crate::tls::install_provider();
    let server = server(TlsVersion::Tls12, Default::default());
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let generate = || KeyPair::generate_for(algorithm).unwrap();
        let (own, other) = (generate(), generate());
        let certificate = CertificateParams::default().self_signed(&own).unwrap();
        for versions in [TLS12, TLS13] {
            let present = |key| {
                let client = Client::presenting(certificate.der().clone(), key);
                connect(&server, &client.config(&server, versions, &[]))
            };
            assert!(present(&own).is_ok(), "{algorithm:?}");
            assert!(present(&other).is_err(), "{algorithm:?}");
        }
    }
}

#[test]
fn names_current_client_cas_as_acceptable_issuers() {
    crate::tls::install_provider();
    let cas: [DynamicClientCas; 2] = Default::default();
    let server = server(TlsVersion::Tls12, cas.clone());
    let client = Client::anonymous();
    let config = client.config(&server, TLS13, &[]);
    connect(&server, &config).unwrap();
    assert!(client.issuers.lock().unwrap()[0].is_empty());

    for (cas, name) in cas.iter().zip(["callers", "front proxies"]) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let ca = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        cas.replace(ca.pem().as_bytes()).unwrap();
    }
    server.reload().unwrap();
    // A new client, because a resumed session requests no certificate.
    let client = Client::anonymous();
    connect(&server, &client.config(&server, TLS13, &[])).unwrap();
    let issuers = client.issuers.lock().unwrap();
    let names = |issuer: &Vec<u8>| String::from_utf8_lossy(issuer).into_owned();
    let issuers: Vec<_> = issuers[0].iter().map(names).collect();
    assert_eq!(issuers.len(), 2, "{issuers:?}");
    assert!(issuers[0].contains("callers") && issuers[1].contains("front proxies"));
}

#[test]
fn resumes_session_with_client_certificate_after_reload() {
    crate::tls::install_provider();
    let server = server(TlsVersion::Tls12, Default::default());
    let pair = generate("jane");
    for versions in [TLS12, TLS13] {
        let client = Client::with(&pair, &pair.signing_key).config(&server, versions, &[]);
        let first = connect(&server, &client).unwrap();
        assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));
        server.reload().unwrap();
        let second = connect(&server, &client).unwrap();
        assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed));
        // The request stage verifies this certificate, so a resumed session must have it too.
        let presented = second.peer_certificates().unwrap();
        assert_eq!(presented, [pair.cert.der().clone()]);
    }
}

#[test]
fn reload_replaces_certificate_and_keeps_it_if_new_files_are_invalid() {
    crate::tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (generate("localhost"), generate("localhost"));
    let serving = write_pair(folder.path(), &old);
    let server = ServerTls::new(&serving, Default::default()).unwrap();
    assert_eq!(server.chain(), [old.cert.der().clone()]);
    assert_eq!(server.files().len(), 2);

    // The certificate is replaced before its key.
    let certificate = serving.tls_cert_file.clone().unwrap();
    std::fs::write(&certificate, new.cert.pem()).unwrap();
    assert!(matches!(server.reload(), Err(TlsError::Mismatch { .. })));
    assert_eq!(server.chain(), [old.cert.der().clone()]);
    std::fs::write(&certificate, "").unwrap();
    assert!(matches!(server.reload(), Err(TlsError::Pem { .. })));

    write_pair(folder.path(), &new);
    server.reload().unwrap();
    assert_eq!(server.chain(), [new.cert.der().clone()]);
    let client = Client::anonymous().config(&server, TLS13, &[]);
    connect(&server, &client).unwrap();
}

#[test]
fn creates_self_signed_certificate_for_localhost_without_files() {
    crate::tls::install_provider();
    let server = server(TlsVersion::Tls12, Default::default());
    assert!(server.files().is_empty());
    let client = Client::anonymous().config(&server, TLS13, &[]);
    connect(&server, &client).unwrap();
}

#[test]
fn formats_fingerprint_like_openssl() {
    let certificate = CertificateDer::from(b"abc".to_vec());
    assert_eq!(
        sha256_hex(&certificate, ":"),
        "BA:78:16:BF:8F:01:CF:EA:41:41:40:DE:5D:AE:22:23:B0:03:61:A3:96:17:7A:9C:B4:10:FF:61:F2:00:15:AD"
    );
}
