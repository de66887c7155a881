//! Certificates of the control plane, servers and clients.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

/// Certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub file: PathBuf,
}

/// Files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Ca {
    pub fn new(folder: &Path, name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let file = folder.join(format!("{name}.crt"));
        std::fs::write(&file, params.self_signed(&key)?.pem())?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            file,
        })
    }

    pub fn server(&self, folder: &Path, name: &str, hosts: &[&str]) -> Result<Pair> {
        let mut params =
            CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(folder, name, &params)
    }

    pub fn client(&self, folder: &Path, user: &str, group: &str) -> Result<Pair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(folder, user, &params)
    }

    /// Issues a server certificate that is valid until the start of a year.
    pub fn server_until(
        &self,
        folder: &Path,
        name: &str,
        hosts: &[&str],
        year: i32,
    ) -> Result<Pair> {
        let mut params =
            CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.issue(folder, name, &params)
    }

    /// Issues a client certificate that is valid until the start of a year.
    pub fn client_until(&self, folder: &Path, user: &str, year: i32) -> Result<Pair> {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.issue(folder, user, &params)
    }

    fn issue(&self, folder: &Path, name: &str, params: &CertificateParams) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let name = name.replace(':', "-");
        let pair = Pair {
            certificate: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
        };
        std::fs::write(
            &pair.certificate,
            params.signed_by(&key, &self.issuer)?.pem(),
        )?;
        std::fs::write(&pair.key, key.serialize_pem())?;
        Ok(pair)
    }
}

/// Certificates that tools other than rcgen issued, and their keys; a name before each.
const FIXTURES: &str = include_str!("../fixtures/client_certificates.pem");

/// Returns a PEM block of the fixtures.
///
/// # Panics
/// Panics if there is none of this name.
pub fn fixture(name: &str) -> &'static str {
    let mut blocks = FIXTURES.split("\n# ");
    let found = blocks.find_map(|block| block.strip_prefix(name)?.strip_prefix('\n'));
    found.unwrap_or_else(|| panic!("no fixture {name}"))
}
