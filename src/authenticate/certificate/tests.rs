use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, NameConstraints,
};

use crate::testing;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn ca() -> Ca {
    crate::tls::install_provider();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "ca");
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Ca {
        issuer: Issuer::new(params, key),
        pem,
    }
}

fn client(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> ClientCertificate {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "jane");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "devs");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &ca.issuer).unwrap();
    ClientCertificate::new(&[leaf.der().clone()]).unwrap()
}

fn trusting(ca: &Ca) -> DynamicClientCas {
    let cas = DynamicClientCas::default();
    cas.replace(ca.pem.as_bytes()).unwrap();
    cas
}

#[test]
fn reads_user_and_groups_from_subject() {
    let ca = ca();
    let identity = client(&ca, |_| ()).identity(&trusting(&ca)).unwrap();
    assert_eq!(identity.user, "jane");
    assert_eq!(identity.groups, ["devs", "system:authenticated"]);
    assert!(identity.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="));
}

/// Verifies a certificate of the fixtures against their CAs.
fn fixture(name: &str) -> Result<Arc<Identity>, CertificateError> {
    crate::tls::install_provider();
    let cas = DynamicClientCas::default();
    let bundle = ["ecdsa-ca", "rsa-ca", "constrained-ca"].map(testing::certificate_pem);
    assert_eq!(cas.replace(bundle.join("\n").as_bytes()).unwrap(), 3);
    let leaf = testing::certificate(name);
    ClientCertificate::new(&[leaf]).unwrap().identity(&cas)
}

fn invalid(result: Result<Arc<Identity>, CertificateError>) -> String {
    match result {
        Err(CertificateError::Invalid(invalid)) => invalid.to_string(),
        result => panic!("{result:?}"),
    }
}

#[test]
fn rejects_certificates_that_are_not_valid_for_clients() {
    let (trusted, other) = (ca(), ca());
    let cas = trusting(&trusted);
    let self_signed = rcgen::generate_simple_self_signed(["jane".to_owned()]).unwrap();
    let cases: [(&str, ClientCertificate); 6] = [
        ("it is signed by an unknown CA", {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "other");
            let other = Issuer::new(params, KeyPair::generate().unwrap());
            let key = KeyPair::generate().unwrap();
            let leaf = CertificateParams::default()
                .signed_by(&key, &other)
                .unwrap();
            ClientCertificate::new(&[leaf.der().clone()]).unwrap()
        }),
        (
            "it is signed by an unknown CA",
            ClientCertificate::new(&[self_signed.cert.der().clone()]).unwrap(),
        ),
        (
            "its signature is not from the key of the CA \"CN=ca\"",
            client(&other, |_| ()),
        ),
        (
            "it expired at 2001-01-01T00:00:00Z",
            client(&trusted, |params| {
                params.not_after = rcgen::date_time_ymd(2001, 1, 1);
            }),
        ),
        (
            "its extended key usages do not contain clientAuth",
            client(&trusted, |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
        (
            "it has the unknown critical extension 1.2.3.4",
            client(&trusted, |params| {
                let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                unknown.set_criticality(true);
                params.custom_extensions = vec![unknown];
            }),
        ),
    ];
    for (expected, certificate) in cases {
        let reason = invalid(certificate.identity(&cas));
        assert!(reason.starts_with(expected), "{expected}: {reason}");
    }
}

#[test]
fn applies_name_constraints_of_the_ca() {
    crate::tls::install_provider();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".into())],
        excluded_subtrees: vec![],
    });
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let ca = Ca { issuer, pem };
    let named = |name: &str| {
        client(&ca, |params| {
            let names = CertificateParams::new([name.to_owned()]).unwrap();
            params.subject_alt_names = names.subject_alt_names;
        })
    };
    let cas = trusting(&ca);
    assert_eq!(named("a.example.com").identity(&cas).unwrap().user, "jane");
    assert_eq!(
        invalid(named("a.example.org").identity(&cas)),
        "its names violate the name constraints of its CA"
    );
}

#[test]
fn accepts_certificates_of_ed25519_keys() {
    let ca = ca();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "jane");
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let leaf = params.signed_by(&key, &ca.issuer).unwrap();
    let certificate = ClientCertificate::new(&[leaf.der().clone()]).unwrap();
    assert_eq!(certificate.identity(&trusting(&ca)).unwrap().user, "jane");
}

/// As Go's `x509.Certificate.Verify`, which kube-apiserver uses.
#[test]
fn accepts_version_1_and_ca_certificates_as_kube_apiserver() {
    for name in [
        "version-1",
        "version-1-rsa-ca",
        "ca-true",
        "any-usage",
        "ecdsa-ca",
    ] {
        let identity = fixture(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = if name == "ecdsa-ca" { name } else { "jane" };
        assert_eq!(identity.user, expected, "{name}");
    }
}

#[test]
fn verifies_certificates_that_webpki_does_not_take() {
    for (name, expected) in [
        (
            "version-1-other-ca",
            "it is signed by an unknown CA, \"CN=other-ca\"",
        ),
        ("version-1-expired", "it expired at 2021-01-01T00:00:00Z"),
        (
            "version-1-future",
            "it is not valid before 2119-01-01T00:00:00Z",
        ),
        (
            "version-1-md5",
            "its signature algorithm md5WithRSAEncryption",
        ),
        ("version-1-sha1", "its signature algorithm"),
        ("version-1-constrained", "its CA has name constraints"),
        ("md5", "its signature algorithm md5WithRSAEncryption"),
        ("sha1", "its signature algorithm"),
        ("ca-true-server-auth", "its extended key usages"),
        (
            "ca-true-unknown-extension",
            "it has the unknown critical extension 1.2.3.4",
        ),
        ("ca-true-constrained", "its CA has name constraints"),
    ] {
        let reason = invalid(fixture(name));
        assert!(reason.starts_with(expected), "{name}: {reason}");
    }
}

/// Changes one byte at a time of the part of a certificate that is signed, and of its signature.
#[test]
fn rejects_changed_certificate_of_version_1() {
    crate::tls::install_provider();
    let cas = DynamicClientCas::default();
    cas.replace(testing::certificate_pem("ecdsa-ca").as_bytes())
        .unwrap();
    let original = testing::certificate("version-1");
    let verify = |der: Vec<u8>| {
        ClientCertificate::new(&[der.into()])
            .unwrap()
            .identity(&cas)
    };
    assert!(verify(original.to_vec()).is_ok());
    for index in 0..original.len() {
        let mut changed = original.to_vec();
        changed[index] ^= 1;
        assert!(verify(changed).is_err(), "byte {index}");
    }
    let longer = [&original[..], &[0]].concat();
    assert!(matches!(
        verify(longer),
        Err(CertificateError::Malformed(X509Error::InvalidCertificate))
    ));
}

/// The handshake does not verify these keys, so that they must not identify anybody.
#[test]
fn rejects_certificates_whose_key_the_handshake_cannot_verify() {
    for (name, expected) in [
        ("rsa-1024", "an RSA key of 1024 bits is not supported"),
        ("dsa", "a key of type"),
        ("ed448", "a key of type"),
        ("secp256k1", "a key of type 1.3.132.0.10 is not supported"),
    ] {
        match fixture(name) {
            Err(CertificateError::Key(error)) => {
                assert!(error.to_string().starts_with(expected), "{name}: {error}");
            }
            result => panic!("{name}: {result:?}"),
        }
    }
    let ca = ca();
    for garbage in [&b""[..], b"garbage", &[0x30, 0x80], &[0x30, 3, 1, 1, 1]] {
        let leaf = CertificateDer::from(garbage.to_vec());
        let certificate = ClientCertificate::new(&[leaf]).unwrap();
        assert!(matches!(
            certificate.identity(&trusting(&ca)),
            Err(CertificateError::Malformed(_))
        ));
    }
}

#[test]
fn rejects_certificate_without_common_name_or_client_ca() {
    let ca = ca();
    let unnamed = client(&ca, |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
    });
    assert_eq!(
        unnamed.identity(&trusting(&ca)),
        Err(CertificateError::NoCommonName)
    );
    assert_eq!(
        client(&ca, |_| ()).identity(&DynamicClientCas::default()),
        Err(CertificateError::NoClientCa)
    );
}

#[test]
fn applies_changed_ca_to_open_connections() {
    let (old, new) = (ca(), ca());
    let cas = trusting(&old);
    let certificate = client(&old, |_| ());
    assert!(certificate.identity(&cas).is_ok());
    cas.replace(new.pem.as_bytes()).unwrap();
    assert!(certificate.identity(&cas).is_err());
}

/// Returns midnight of a day in January 2040, in Unix seconds and as changes of the validity.
fn day(
    day: u8,
) -> (
    u64,
    impl Fn(&mut CertificateParams),
    impl Fn(&mut CertificateParams),
) {
    let date = rcgen::date_time_ymd(2040, 1, day);
    let seconds = u64::try_from(date.unix_timestamp()).unwrap();
    (
        seconds,
        move |params| params.not_before = date,
        move |params| params.not_after = date,
    )
}

#[test]
fn accepts_certificate_that_becomes_valid_on_open_connection() {
    let ca = ca();
    let (begins, from, _) = day(2);
    let certificate = client(&ca, from);
    let cas = trusting(&ca);
    let at = |seconds: u64| certificate.identity_at(Duration::from_secs(seconds), &cas);
    assert!(matches!(at(begins - 5), Err(CertificateError::Invalid(_))));
    assert!(at(begins + 1).is_err(), "the failure is cached");
    assert_eq!(at(begins + 6).unwrap().user, "jane");
}

#[test]
fn verdict_expires_with_first_certificate_of_chain() {
    let root = ca();
    let (ends, _, until) = day(2);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "intermediate");
    until(&mut params);
    let key = KeyPair::generate().unwrap();
    let intermediate = params.signed_by(&key, &root.issuer).unwrap();
    let below = Ca {
        issuer: Issuer::new(params, key),
        pem: String::new(),
    };
    // An expired certificate that is not part of the verified path.
    let expired = client(&root, |params| {
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    });
    let chain = [
        &client(&below, |_| ()).leaf,
        intermediate.der(),
        &expired.leaf,
    ]
    .map(Clone::clone);
    let certificate = ClientCertificate::new(&chain).unwrap();
    let cas = trusting(&root);
    let at = |seconds: u64| certificate.identity_at(Duration::from_secs(seconds), &cas);
    assert!(at(ends - 1).is_ok());
    assert_eq!(
        certificate
            .caller
            .0
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .expires,
        ends
    );
    assert!(at(ends + 1).is_err());
}
