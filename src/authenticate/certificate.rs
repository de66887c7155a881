//! Client certificates: user from the subject's CN, groups from its Os, as kube-apiserver reads
//! them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::model::Identity;
use crate::model::identity::AUTHENTICATED;
use crate::trust::DynamicClientCas;

/// The attribute type of a user's uid in a subject (KEP-4601's OID under the CNCF's arc).
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);
/// The extra attribute that tells which credential identified the caller.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// How long a no is kept, in seconds: a certificate that is not good yet, by a clock that is a
/// little behind, must not cost its client the connection.
const NEGATIVE_TTL: u64 = 10;

/// The chain that a client showed. What is made of it is kept for the connection, until the CAs
/// change or it expires.
#[derive(Debug)]
pub struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    caller: Cached<Arc<Identity>>,
    front_proxy: Cached<Arc<str>>,
}

#[derive(Debug)]
struct Cached<T>(Mutex<Option<CachedVerdict<T>>>);

#[derive(Clone, Debug)]
struct CachedVerdict<T> {
    generation: u64,
    /// Unix seconds after which it must be judged again.
    expires: u64,
    verdict: Result<T, String>,
}

impl ClientCertificate {
    /// `chain` has the leaf first. None where it is empty.
    pub fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let chain: Vec<_> = chain
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let (caller, front_proxy) = (Cached(Mutex::new(None)), Cached(Mutex::new(None)));
        (!chain.is_empty()).then_some(Self {
            chain,
            caller,
            front_proxy,
        })
    }

    /// Who the certificate names, where the CAs vouch for it now.
    ///
    /// # Errors
    /// Why it is no good, for the log.
    pub(super) fn identity(&self, cas: &DynamicClientCas) -> Result<Arc<Identity>, String> {
        self.identity_at(unix_now(), cas)
    }

    fn identity_at(&self, now: Duration, cas: &DynamicClientCas) -> Result<Arc<Identity>, String> {
        self.kept(&self.caller, now, cas, |certificate, leaf| {
            identity(certificate.subject(), leaf).map(Arc::new)
        })
    }

    /// The common name of the certificate, where the CAs vouch for it now.
    ///
    /// # Errors
    /// As [`Self::identity`].
    pub(super) fn common_name(&self, cas: &DynamicClientCas) -> Result<Arc<str>, String> {
        self.kept(&self.front_proxy, unix_now(), cas, |certificate, _| {
            Ok(common_name(certificate.subject()).into())
        })
    }

    fn kept<T: Clone>(
        &self,
        kept: &Cached<T>,
        now: Duration,
        cas: &DynamicClientCas,
        read: impl FnOnce(&X509Certificate<'_>, &CertificateDer<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let generation = cas.generation();
        let mut judged = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(judged) = &*judged
            && judged.generation == generation
            && judged.expires >= now.as_secs()
        {
            return judged.verdict.clone();
        }
        let (expires, verdict) = match self.judge(cas, UnixTime::since_unix_epoch(now), read) {
            Ok((told, expires)) => (expires, Ok(told)),
            Err(fault) => (now.as_secs() + NEGATIVE_TTL, Err(fault)),
        };
        *judged = Some(CachedVerdict {
            generation,
            expires,
            verdict: verdict.clone(),
        });
        verdict
    }

    fn judge<T>(
        &self,
        cas: &DynamicClientCas,
        now: UnixTime,
        read: impl FnOnce(&X509Certificate<'_>, &CertificateDer<'_>) -> Result<T, String>,
    ) -> Result<(T, u64), String> {
        let Some((leaf, intermediates)) = self.chain.split_first() else {
            return Err("an empty chain".into());
        };
        let verifier = WebPkiClientVerifier::builder(cas.roots())
            .build()
            .map_err(|error| format!("no CA of client certificates is known ({error})"))?;
        verifier
            .verify_client_cert(leaf, intermediates, now)
            .map_err(|error| format!("the client certificate is no good: {error}"))?;
        let (_, certificate) = X509Certificate::from_der(leaf)
            .map_err(|error| format!("the client certificate cannot be read: {error}"))?;
        let expires = self
            .chain
            .iter()
            .filter_map(|link| not_after(link))
            .filter(|expires| *expires >= now.as_secs());
        Ok((read(&certificate, leaf)?, expires.min().unwrap_or_default()))
    }
}

/// In Unix seconds. An intermediate that has expired already, or that cannot be read, vouches for
/// nobody: it is not among those that made the verdict.
fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    certificate.validity().not_after.timestamp().try_into().ok()
}

fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Of several CNs Go's pkix.Name keeps the last, and so does kube-apiserver.
fn common_name<'a>(subject: &'a X509Name<'_>) -> &'a str {
    subject
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .last()
        .unwrap_or_default()
}

fn identity(subject: &X509Name<'_>, leaf: &CertificateDer<'_>) -> Result<Identity, String> {
    let user = common_name(subject);
    if user.is_empty() {
        return Err("the client certificate has no common name".into());
    }
    let uid = subject
        .iter_by_oid(&UID)
        .find_map(|uid| uid.as_str().ok())
        .unwrap_or_default();
    let organizations = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok());
    let groups = organizations
        .chain([AUTHENTICATED])
        .map(str::to_owned)
        .collect();
    let digest = crate::tls::sha256_hex(leaf, "").to_lowercase();
    let extra = BTreeMap::from([(
        CREDENTIAL_ID.to_owned(),
        vec![format!("X509SHA256={digest}")],
    )]);
    Ok(Identity::new(user, uid, groups, extra))
}

#[cfg(test)]
mod tests {
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
    fn the_subject_names_user_and_groups() {
        let ca = ca();
        let identity = client(&ca, |_| ()).identity(&trusting(&ca)).unwrap();
        assert_eq!(identity.user, "jane");
        assert_eq!(identity.groups, ["devs", "system:authenticated"]);
        assert!(identity.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="));
    }

    #[test]
    fn no_good_certificate_names_anybody() {
        let (trusted, other) = (ca(), ca());
        let cas = trusting(&trusted);
        let cases: [(&str, ClientCertificate); 4] = [
            ("another CA", client(&other, |_| ())),
            (
                "expired",
                client(&trusted, |params| {
                    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
                }),
            ),
            (
                "a server's",
                client(&trusted, |p| {
                    p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                }),
            ),
            (
                "no CN",
                client(&trusted, |params| {
                    params.distinguished_name = rcgen::DistinguishedName::new();
                }),
            ),
        ];
        for (what, certificate) in cases {
            assert!(certificate.identity(&cas).is_err(), "{what}");
        }
        assert!(
            client(&trusted, |_| ())
                .identity(&DynamicClientCas::default())
                .is_err(),
            "no CA known"
        );
    }

    #[test]
    fn a_changed_ca_counts_on_connections_that_are_open() {
        let (old, new) = (ca(), ca());
        let cas = trusting(&old);
        let certificate = client(&old, |_| ());
        assert!(certificate.identity(&cas).is_ok());
        cas.replace(new.pem.as_bytes()).unwrap();
        assert!(certificate.identity(&cas).is_err());
    }

    /// Midnight of a day of January 2040, which rcgen and the clock of the test mean alike.
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
    fn a_certificate_that_becomes_good_is_good_on_a_connection_that_is_open() {
        let ca = ca();
        let (begins, from, _) = day(2);
        let certificate = client(&ca, from);
        let cas = trusting(&ca);
        let at = |seconds: u64| certificate.identity_at(Duration::from_secs(seconds), &cas);
        assert!(at(begins - 5).unwrap_err().contains("no good"));
        assert!(at(begins + 1).is_err(), "a no is kept for a moment");
        assert_eq!(at(begins + 6).unwrap().user, "jane");
    }

    #[test]
    fn a_yes_ends_with_the_first_of_the_chain_that_expires() {
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
        // Another that has expired long ago, and that nothing depends on.
        let expired = client(&root, |params| {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        });
        let chain = [
            &client(&below, |_| ()).chain[0],
            intermediate.der(),
            &expired.chain[0],
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
}
