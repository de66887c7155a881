//! Fingerprints of public keys, in the format of kubeadm's `discovery-token-ca-cert-hash`.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;

use super::x509::parse_certificate;

const PREFIX: &str = "sha256:";

/// SHA-256 of the public key (SPKI, RFC 5280) of a CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; digest::SHA256_OUTPUT_LEN]);

/// Text that is not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a fingerprint of a public key; use sha256: and 64 hex digits")]
pub struct InvalidFingerprint(String);

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidFingerprint(text.to_owned());
        let digits = text.strip_prefix(PREFIX).ok_or_else(invalid)?.as_bytes();
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        if digits.len() != 2 * bytes.len() {
            return Err(invalid());
        }
        for (byte, digits) in bytes.iter_mut().zip(digits.chunks(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            let value = digit(digits[0]).zip(digit(digits[1]));
            let (high, low) = value.ok_or_else(invalid)?;
            *byte = u8::try_from(high * 16 + low).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Fingerprint {
    /// Returns the fingerprint of a certificate's key. `None` if the certificate is malformed.
    pub fn new(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = parse_certificate(certificate).ok()?;
        let digest = digest::digest(&digest::SHA256, certificate.public_key().raw);
        Some(Self(digest.as_ref().try_into().ok()?))
    }

    /// Returns the fingerprint of the last certificate of a chain that may sign others.
    pub fn of_ca(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let ca = chain.iter().rev().find(|certificate| is_ca(certificate));
        ca.and_then(Self::new)
    }

    /// Returns the certificate of this key that may sign others.
    pub fn find<'a>(
        &self,
        chain: &'a [CertificateDer<'static>],
    ) -> Option<&'a CertificateDer<'static>> {
        let mut authorities = chain.iter().filter(|certificate| is_ca(certificate));
        authorities.find(|certificate| Self::new(certificate).as_ref() == Some(self))
    }
}

/// Returns true for certificates that may sign others.
fn is_ca(certificate: &CertificateDer<'_>) -> bool {
    parse_certificate(certificate).is_ok_and(|certificate| certificate.is_ca())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn parses_and_formats_fingerprints() {
        let digits = "0123456789abcdef".repeat(4);
        for text in [
            format!("sha256:{digits}"),
            format!("sha256:{}", digits.to_uppercase()),
        ] {
            let fingerprint: Fingerprint = text.parse().unwrap();
            assert_eq!(fingerprint.to_string(), format!("sha256:{digits}"));
        }
        for text in [
            "",
            "sha256:",
            "sha256:00",
            &digits,
            &format!("sha1:{digits}"),
            &format!("sha256:{digits}0"),
            &format!("sha256:{}g", &digits[1..]),
            &format!("sha256:{}é", &digits[2..]),
        ] {
            let error = text.parse::<Fingerprint>().unwrap_err().to_string();
            assert!(error.contains("64 hex digits"), "{text:?}: {error}");
        }
    }

    /// The commands that errors and the documentation name.
    #[test]
    fn equals_the_digest_of_openssl() {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.crt");
        std::fs::write(&path, pair.cert.pem()).unwrap();
        let program = format!(
            "openssl x509 -in {} -noout -pubkey | openssl pkey -pubin -outform DER | \
             openssl dgst -sha256 -hex",
            path.display()
        );
        let output = Command::new("sh").args(["-c", &program]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let digest = text.trim().rsplit(' ').next().unwrap();
        let fingerprint = Fingerprint::new(pair.cert.der()).unwrap();
        assert_eq!(fingerprint.to_string(), format!("sha256:{digest}"));
    }
}
