//! Client certificates: user from the subject's CN, groups from its Os, as kube-apiserver reads them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::model::Identity;
use crate::model::identity::AUTHENTICATED;
use crate::tls::ClientCas;

/// The attribute type of a user's uid in a subject (KEP-4601's OID under the CNCF's arc).
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);
/// The extra attribute that tells which credential identified the caller.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The chain that a client showed. What is made of it is kept for the connection, until the CAs change or it expires.
#[derive(Debug)]
pub struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    caller: Kept<Arc<Identity>>,
    front_proxy: Kept<Arc<str>>,
}

#[derive(Debug)]
struct Kept<T>(Mutex<Option<Judged<T>>>);

#[derive(Clone, Debug)]
struct Judged<T> {
    generation: u64,
    /// Unix seconds after which the certificate is no longer good.
    expires: u64,
    verdict: Result<T, String>,
}

impl ClientCertificate {
    /// `chain` has the leaf first. None where it is empty.
    pub fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let (caller, front_proxy) = (Kept(Mutex::new(None)), Kept(Mutex::new(None)));
        (!chain.is_empty()).then_some(Self { chain, caller, front_proxy })
    }

    /// Who the certificate names, where the CAs vouch for it now.
    ///
    /// # Errors
    /// Why it is no good, for the log.
    pub(super) fn identity(&self, cas: &ClientCas) -> Result<Arc<Identity>, String> {
        self.kept(&self.caller, cas, |certificate, leaf| identity(certificate.subject(), leaf).map(Arc::new))
    }

    /// The common name of the certificate, where the CAs vouch for it now.
    ///
    /// # Errors
    /// As [`Self::identity`].
    pub(super) fn common_name(&self, cas: &ClientCas) -> Result<Arc<str>, String> {
        self.kept(&self.front_proxy, cas, |certificate, _| Ok(common_name(certificate.subject()).into()))
    }

    fn kept<T: Clone>(
        &self,
        kept: &Kept<T>,
        cas: &ClientCas,
        read: impl FnOnce(&X509Certificate<'_>, &CertificateDer<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let (now, generation) = (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), cas.generation());
        let mut judged = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(judged) = &*judged
            && judged.generation == generation
            && judged.expires >= now.as_secs()
        {
            return judged.verdict.clone();
        }
        let (expires, verdict) = match self.judge(cas, UnixTime::since_unix_epoch(now), read) {
            Ok((told, expires)) => (expires, Ok(told)),
            Err(fault) => (u64::MAX, Err(fault)),
        };
        *judged = Some(Judged { generation, expires, verdict: verdict.clone() });
        verdict
    }

    fn judge<T>(
        &self,
        cas: &ClientCas,
        now: UnixTime,
        read: impl FnOnce(&X509Certificate<'_>, &CertificateDer<'_>) -> Result<T, String>,
    ) -> Result<(T, u64), String> {
        let Some((leaf, intermediates)) = self.chain.split_first() else { return Err("an empty chain".into()) };
        let verifier = WebPkiClientVerifier::builder(cas.roots())
            .build()
            .map_err(|error| format!("no CA of client certificates is known ({error})"))?;
        verifier
            .verify_client_cert(leaf, intermediates, now)
            .map_err(|error| format!("the client certificate is no good: {error}"))?;
        let (_, certificate) = X509Certificate::from_der(leaf)
            .map_err(|error| format!("the client certificate cannot be read: {error}"))?;
        let expires = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
        Ok((read(&certificate, leaf)?, expires))
    }
}

/// Of several CNs Go's pkix.Name keeps the last, and so does kube-apiserver.
fn common_name<'a>(subject: &'a X509Name<'_>) -> &'a str {
    subject.iter_common_name().filter_map(|name| name.as_str().ok()).last().unwrap_or_default()
}

fn identity(subject: &X509Name<'_>, leaf: &CertificateDer<'_>) -> Result<Identity, String> {
    let user = common_name(subject);
    if user.is_empty() {
        return Err("the client certificate has no common name".into());
    }
    let uid = subject.iter_by_oid(&UID).find_map(|uid| uid.as_str().ok()).unwrap_or_default();
    let organizations = subject.iter_organization().filter_map(|name| name.as_str().ok());
    let groups = organizations.chain([AUTHENTICATED]).map(str::to_owned).collect();
    let digest = crate::tls::sha256_hex(leaf, "").to_lowercase();
    let extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={digest}")])]);
    Ok(Identity::new(user, uid, groups, extra))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

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
        Ca { issuer: Issuer::new(params, key), pem }
    }

    fn client(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> ClientCertificate {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "jane");
        params.distinguished_name.push(DnType::OrganizationName, "devs");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &ca.issuer).unwrap();
        ClientCertificate::new(&[leaf.der().clone()]).unwrap()
    }

    fn trusting(ca: &Ca) -> ClientCas {
        let cas = ClientCas::default();
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
            ("expired", client(&trusted, |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1))),
            ("a server's", client(&trusted, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
            ("no CN", client(&trusted, |params| params.distinguished_name = rcgen::DistinguishedName::new())),
        ];
        for (what, certificate) in cases {
            assert!(certificate.identity(&cas).is_err(), "{what}");
        }
        assert!(client(&trusted, |_| ()).identity(&ClientCas::default()).is_err(), "no CA known");
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
}
