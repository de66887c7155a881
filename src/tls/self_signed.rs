//! Serving certificate for trials, signed by a CA that exists for it alone.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::X509Certificate;

use super::TlsError;
use super::pair::{Concern, Pair, Role, load_certificates, unix_now};
use super::x509::{alternative_names, parse_certificate, verify_signature};

/// Name of the file with the CA of a self-signed certificate.
pub(super) const CA_FILE: &str = "ca.crt";
/// Organization of subject and issuer.
const ORGANIZATION: &str = "kube-bastion";
/// Common name of the CA, which tells certificates of this module from others.
const CA_NAME: &str = "kube-bastion self-signed CA";
/// Validity of a year; some clients reject more than 398 days.
const VALIDITY: Duration = Duration::from_hours(365 * 24);
/// Time between the start of the validity and now, for clients whose clock is slow.
const CLOCK_SKEW: Duration = Duration::from_hours(1);
/// Remaining validity below which a stored certificate is replaced, in seconds: 30 days.
const RENEWAL_SECONDS: i64 = 30 * 24 * 60 * 60;
/// Maximum length of a common name in characters (RFC 5280 appendix A.1).
const MAX_COMMON_NAME: usize = 64;
const CERTIFICATE_MODE: u32 = 0o644;
const KEY_MODE: u32 = 0o600;

/// Reason why a self-signed certificate cannot be created or stored.
#[derive(Debug, thiserror::Error)]
pub enum SelfSignedError {
    #[error("cannot generate the certificate")]
    Generate(#[from] rcgen::Error),
    #[error("cannot write {path:?} (serving.selfSignedDir)")]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{path:?} (serving.selfSignedDir) is not from a self-signed certificate of kube-bastion and \
         is not overwritten; choose another directory, or set serving.tlsCertFile"
    )]
    Foreign { path: PathBuf },
}

/// Returns a new certificate, valid for this host and the address that the bastion listens on.
pub(super) fn create(listen: SocketAddr) -> Result<Pair, TlsError> {
    Generated::new(&Names::new(listen))?.pair(Path::new("self-signed"))
}

/// Returns the certificate that is stored in a directory. If it is missing, expires within 30 days
/// or lacks a name, creates a new one and, with `write`, stores it.
///
/// # Errors
/// A directory that cannot be written, or has files of another origin under these names.
pub(super) fn load_or_create(
    directory: &Path,
    listen: SocketAddr,
    write: bool,
) -> Result<Pair, TlsError> {
    let files = Files::new(directory);
    let names = Names::new(listen);
    files.require_own()?;
    if let Some(pair) = files.load(&names) {
        return Ok(pair);
    }
    let generated = Generated::new(&names)?;
    if write {
        files.write(&generated)?;
    }
    generated.pair(&files.certificate)
}

/// Names of the host for the certificate.
struct Names {
    common_name: String,
    /// DNS names and IP addresses.
    alternative: Vec<String>,
}

impl Names {
    fn new(listen: SocketAddr) -> Self {
        let host = nix::unistd::gethostname().ok();
        let host = host.and_then(|name| name.into_string().ok());
        let is_dns = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let host = host.filter(|name| !name.is_empty() && name.chars().all(is_dns));
        let mut common_name = format!("kube-bastion-{}", host.as_deref().unwrap_or("localhost"));
        common_name.truncate(MAX_COMMON_NAME);
        let mut alternative = ["localhost", "kube-bastion", "127.0.0.1", "::1"]
            .map(str::to_owned)
            .to_vec();
        let addresses = addresses(listen.ip().to_canonical());
        let further = host
            .into_iter()
            .chain(addresses.iter().map(ToString::to_string));
        for name in further {
            if !alternative.contains(&name) {
                alternative.push(name);
            }
        }
        Self {
            common_name,
            alternative,
        }
    }

    /// Returns true if a certificate is valid for all names.
    fn are_in(&self, certificate: &X509Certificate<'_>) -> bool {
        let names = alternative_names(certificate);
        self.alternative.iter().all(|name| names.contains(name))
    }
}

/// Returns the address that clients use: the one listened on, or instead of all addresses those of
/// the default routes.
fn addresses(listen: IpAddr) -> Vec<IpAddr> {
    if !listen.is_unspecified() {
        return vec![listen];
    }
    // Addresses for documentation (RFC 5737, RFC 3849). Connecting a UDP socket selects the source
    // address and sends nothing.
    let v4 = source_address(
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::new(192, 0, 2, 1).into(),
    );
    let v6 = source_address(
        Ipv6Addr::UNSPECIFIED.into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    );
    v4.into_iter()
        .chain(v6.filter(|_| listen.is_ipv6()))
        .collect()
}

fn source_address(any: IpAddr, destination: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((destination, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// New certificate and its CA. The key of the CA is dropped, so that the CA can issue nothing else.
struct Generated {
    ca: rcgen::Certificate,
    leaf: rcgen::Certificate,
    key: KeyPair,
}

impl Generated {
    fn new(names: &Names) -> Result<Self, SelfSignedError> {
        let mut ca = params(CA_NAME);
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_key = KeyPair::generate()?;
        let ca_certificate = ca.self_signed(&ca_key)?;

        let mut leaf = params(&names.common_name);
        leaf.subject_alt_names =
            CertificateParams::new(names.alternative.clone())?.subject_alt_names;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Tells CAs of this name apart, which have different keys.
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?;
        Ok(Self {
            ca: ca_certificate,
            leaf,
            key,
        })
    }

    /// Returns the chain with its CA, so that clients can read the CA from the handshake.
    fn pair(&self, path: &Path) -> Result<Pair, TlsError> {
        let chain = [&self.leaf, &self.ca].map(|it| it.der().clone());
        let key = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        Pair::new(path, chain.to_vec(), path, &key, Role::Server)
    }
}

fn params(common_name: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + VALIDITY).into();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, ORGANIZATION);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

/// Files of a directory.
struct Files {
    directory: PathBuf,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(directory: &Path) -> Self {
        Self {
            directory: directory.into(),
            ca: directory.join(CA_FILE),
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
        }
    }

    /// Checks that existing files may be replaced.
    fn require_own(&self) -> Result<(), SelfSignedError> {
        let has_own = |path: &Path| {
            let certificates = load_certificates(path).unwrap_or_default();
            let issuer = |it: &CertificateDer<'_>| Some(is_own(&parse_certificate(it).ok()?));
            certificates.first().and_then(issuer) == Some(true)
        };
        for path in [&self.ca, &self.certificate] {
            if path.exists() && !has_own(path) {
                return Err(SelfSignedError::Foreign { path: path.clone() });
            }
        }
        // The key is written last, so it is never alone.
        if self.key.exists() && !self.certificate.exists() {
            let path = self.key.clone();
            return Err(SelfSignedError::Foreign { path });
        }
        Ok(())
    }

    /// Loads the stored certificate if it can be used for the names, and its CA issued it.
    fn load(&self, names: &Names) -> Option<Pair> {
        let pair = Pair::load(&self.certificate, &self.key, Role::Server).ok()?;
        let remaining = pair.expires - unix_now();
        if remaining < RENEWAL_SECONDS || pair.concerns.iter().any(Concern::is_outside_validity) {
            return None;
        }
        let leaf = parse_certificate(pair.key.cert.first()?).ok()?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(load_certificates(&self.ca).ok()?);
        let issued = verify_signature(&leaf, roots.roots.first()?).is_ok();
        (issued && names.are_in(&leaf)).then_some(pair)
    }

    fn write(&self, generated: &Generated) -> Result<(), SelfSignedError> {
        fs::create_dir_all(&self.directory).map_err(|source| SelfSignedError::Write {
            path: self.directory.clone(),
            source,
        })?;
        let chain = format!("{}{}", generated.leaf.pem(), generated.ca.pem());
        self.replace(&self.ca, &generated.ca.pem(), CERTIFICATE_MODE)?;
        self.replace(&self.certificate, &chain, CERTIFICATE_MODE)?;
        self.replace(&self.key, &generated.key.serialize_pem(), KEY_MODE)
    }

    /// Replaces a file in one step, so that readers never see a part of it, nor its key with
    /// another mode.
    fn replace(&self, path: &Path, text: &str, mode: u32) -> Result<(), SelfSignedError> {
        let write = || {
            let mut file = tempfile::Builder::new()
                .permissions(fs::Permissions::from_mode(mode))
                .tempfile_in(&self.directory)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            // The umask may have removed bits.
            file.as_file()
                .set_permissions(fs::Permissions::from_mode(mode))?;
            file.persist(path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|source| SelfSignedError::Write {
            path: path.into(),
            source,
        })
    }
}

/// Returns true for certificates that [`Generated`] creates, by their issuer.
fn is_own(certificate: &X509Certificate<'_>) -> bool {
    let issuer = certificate.issuer();
    let has = |value: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>, expected: &str| {
        value.and_then(|value| value.as_str().ok()) == Some(expected)
    };
    has(issuer.iter_common_name().next(), CA_NAME)
        && has(issuer.iter_organization().next(), ORGANIZATION)
}

#[cfg(test)]
mod tests;
