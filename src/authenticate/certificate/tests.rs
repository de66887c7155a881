use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

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

#[test]
fn rejects_certificates_that_are_not_valid_for_clients() {
    let (trusted, other) = (ca(), ca());
    let cas = trusting(&trusted);
    let cases: [(&str, ClientCertificate); 3] = [
        ("another CA", client(&other, |_| ())),
        (
            "expired",
            client(&trusted, |params| {
                params.not_after = rcgen::date_time_ymd(2001, 1, 1);
            }),
        ),
        (
            "server certificate",
            client(&trusted, |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
    ];
    for (case, certificate) in cases {
        assert!(
            matches!(
                certificate.identity(&cas),
                Err(CertificateError::Invalid(_))
            ),
            "{case}"
        );
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
