//! Certificates of the control plane, servers and clients.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SigningKey,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::asn1_rs::{Any, Class, FromDer};

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

    /// Issues a client certificate of X.509 version 1, as `openssl x509 -req` of OpenSSL 3.0 does.
    pub fn client_of_version_1(&self, folder: &Path, user: &str, group: &str) -> Result<Pair> {
        let pair = self.client(folder, user, group)?;
        let version_3 = CertificateDer::from_pem_file(&pair.certificate)?;
        let parts = elements(Any::from_der(&version_3)?.1.data)?;
        let [(_, signed), (_, algorithm), _] = parts[..] else {
            bail!("a certificate has three parts");
        };
        let mut fields = elements(Any::from_der(signed)?.1.data)?;
        // Without the version and the extensions, which have the tags 0 and 3.
        fields.retain(|(class, _)| *class == Class::Universal);
        let fields: Vec<_> = fields.iter().map(|(_, field)| *field).collect();
        let signed = encode(0x30, &fields.concat());
        // The signature is a BIT STRING without unused bits.
        let signature = [&[0], &*self.issuer.key().sign(&signed)?].concat();
        let version_1 = [&signed, algorithm, &encode(0x03, &signature)].concat();
        let version_1 = STANDARD.encode(encode(0x30, &version_1));
        let pem = format!("-----BEGIN CERTIFICATE-----\n{version_1}\n-----END CERTIFICATE-----\n");
        std::fs::write(&pair.certificate, pem)?;
        Ok(pair)
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

/// Splits a sequence of DER elements. Returns them with their classes.
fn elements(mut der: &[u8]) -> Result<Vec<(Class, &[u8])>> {
    let mut elements = Vec::new();
    while !der.is_empty() {
        let (rest, any) = Any::from_der(der)?;
        elements.push((any.class(), &der[..der.len() - rest.len()]));
        der = rest;
    }
    Ok(elements)
}

/// Encodes an element of DER, of at most 65,535 bytes.
fn encode(tag: u8, value: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(value.len())
        .expect("a short element")
        .to_be_bytes();
    let length = match (high, low) {
        (0, ..0x80) => vec![low],
        (0, _) => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [&[tag], &*length, value].concat()
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
