//! Certificates and private keys in PEM (RFC 7468), with errors that say what a file has instead.

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Expected content of a PEM file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Certificate,
    PrivateKey,
}

/// Reason why a file does not have the expected content. A phrase about the file, with a remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("it is empty; expected PEM with BEGIN {0}")]
    Empty(&'static str),
    #[error(
        "it is binary, not PEM; convert DER with openssl {0} -inform der, or PKCS#12 with openssl \
         pkcs12"
    )]
    Binary(&'static str),
    #[error("it is UTF-16 text; save it as ASCII")]
    Utf16,
    #[error("it contains no {0}; expected PEM with BEGIN {1}")]
    NoBlock(&'static str, &'static str),
    #[error("it contains no certificate but a private key; certificate and key may be swapped")]
    KeyForCertificate,
    #[error("it contains no private key but a certificate; certificate and key may be swapped")]
    CertificateForKey,
    #[error(
        "it contains a certificate signing request, not a certificate; use the certificate that \
         the CA issued for the request"
    )]
    Request,
    #[error("it contains PKCS#7, not PEM certificates; convert it with openssl pkcs7 -print_certs")]
    Pkcs7,
    #[error(
        "the private key is encrypted and cannot be read without its passphrase; decrypt it with \
         openssl pkey -in FILE -out NEW_FILE"
    )]
    EncryptedKey,
    #[error(
        "the private key is in the format of OpenSSH; convert it with ssh-keygen -p -m PKCS8 -f FILE"
    )]
    OpensshKey,
    #[error("it contains {found:?} blocks and no {content}; expected BEGIN {expected}")]
    OtherBlocks {
        /// Labels of the blocks, separated by commas.
        found: String,
        content: &'static str,
        expected: &'static str,
    },
    #[error("the PEM file is damaged or incomplete: a BEGIN or END line is missing or malformed")]
    Incomplete,
    #[error("the PEM file is damaged: a block is not valid base64")]
    Base64,
    #[error(
        "two PEM blocks share a line, so that the second one would be ignored; write each on its own lines"
    )]
    SharedLine,
}

impl Content {
    /// Returns the name for messages, the label of the block, and the command of openssl for it.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Certificate => ("certificate", "CERTIFICATE", "x509"),
            Self::PrivateKey => ("private key", "PRIVATE KEY", "pkey"),
        }
    }
}

/// Parses all certificates of a PEM file, at least one.
///
/// # Errors
/// [`PemError`] if there is none, or the file is damaged.
pub fn certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let file = without_byte_order_mark(file);
    if memchr::memmem::find(file, b"----------BEGIN ").is_some() {
        return Err(PemError::SharedLine);
    }
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file).collect();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(missing(file, Content::Certificate)),
        Err(error) => Err(damaged(&error, file, Content::Certificate)),
    }
}

/// Parses the first private key of a PEM file.
///
/// # Errors
/// [`PemError`] if there is none, it is encrypted, or the file is damaged.
pub fn private_key(file: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    let file = without_byte_order_mark(file);
    PrivateKeyDer::from_pem_slice(file).map_err(|error| match error {
        pem::Error::NoItemsFound => missing(file, Content::PrivateKey),
        error => damaged(&error, file, Content::PrivateKey),
    })
}

/// Removes the mark that editors on Windows write. With it, the first block would be skipped.
fn without_byte_order_mark(file: &[u8]) -> &[u8] {
    file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file)
}

/// Names the error of a file with a malformed block.
fn damaged(error: &pem::Error, file: &[u8], content: Content) -> PemError {
    if content == Content::PrivateKey && is_encrypted(file) {
        return PemError::EncryptedKey;
    }
    match error {
        pem::Error::Base64Decode(_) => PemError::Base64,
        // Their messages print the lines of the file as lists of bytes.
        _ => PemError::Incomplete,
    }
}

/// Names what a file without the expected block has instead.
fn missing(file: &[u8], content: Content) -> PemError {
    let (name, expected, command) = content.words();
    if file.trim_ascii().is_empty() {
        return PemError::Empty(expected);
    }
    if file.starts_with(b"\xff\xfe") || file.starts_with(b"\xfe\xff") {
        return PemError::Utf16;
    }
    let labels = labels(file);
    let has = |part: &str| labels.iter().any(|label| label.contains(part));
    match content {
        // A key is an element of SEQUENCE as a certificate is, whose first byte is 0x30.
        _ if labels.is_empty() && is_binary(file) => PemError::Binary(command),
        _ if labels.is_empty() => PemError::NoBlock(name, expected),
        Content::PrivateKey if is_encrypted(file) => PemError::EncryptedKey,
        Content::PrivateKey if has("OPENSSH PRIVATE KEY") => PemError::OpensshKey,
        Content::PrivateKey if has("CERTIFICATE") && !has("REQUEST") => PemError::CertificateForKey,
        Content::Certificate if has("PRIVATE KEY") => PemError::KeyForCertificate,
        Content::Certificate if has("CERTIFICATE REQUEST") => PemError::Request,
        Content::Certificate if has("PKCS7") => PemError::Pkcs7,
        Content::Certificate | Content::PrivateKey => PemError::OtherBlocks {
            found: labels.join(", "),
            content: name,
            expected,
        },
    }
}

/// Returns true for the two encrypted forms: PKCS#8, and the one of PEM itself (RFC 1421).
fn is_encrypted(file: &[u8]) -> bool {
    let has = |text: &[u8]| memchr::memmem::find(file, text).is_some();
    has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED")
}

/// Returns true for a DER element, or text with NUL bytes.
fn is_binary(file: &[u8]) -> bool {
    file.starts_with(&[0x30]) && file.get(1).is_some_and(|byte| *byte >= 0x80)
        || memchr::memchr(0, file).is_some()
}

/// Returns the distinct labels of the blocks, at most eight, in printable ASCII.
fn labels(file: &[u8]) -> Vec<String> {
    const MAX_LABELS: usize = 8;
    let mut labels = Vec::new();
    for line in file.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let label = line
            .strip_prefix(b"-----BEGIN ")
            .and_then(|rest| rest.trim_ascii_end().strip_suffix(b"-----"))
            .map(|label| label.escape_ascii().to_string());
        match label {
            Some(label) if !labels.contains(&label) && labels.len() < MAX_LABELS => {
                labels.push(label);
            }
            _ => {}
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(label: &str) -> String {
        format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n")
    }

    #[test]
    fn reads_certificates_and_key_of_a_combined_file() {
        let file = format!(
            "\u{feff}{}text\n{}{}",
            block("CERTIFICATE"),
            block("PRIVATE KEY"),
            block("CERTIFICATE").replace('\n', "\r\n")
        );
        assert_eq!(certificates(file.as_bytes()).unwrap().len(), 2);
        assert!(private_key(file.as_bytes()).is_ok());
    }

    #[test]
    fn says_what_a_file_has_instead_of_certificates() {
        let utf16: Vec<u8> = [0xff, 0xfe]
            .into_iter()
            .chain(block("CERTIFICATE").bytes().flat_map(|byte| [byte, 0]))
            .collect();
        let cases: [(Vec<u8>, &str); 14] = [
            (vec![], "it is empty"),
            (b" \n".to_vec(), "it is empty"),
            (b"nothing\n".to_vec(), "it contains no certificate"),
            (vec![0x30, 0x82, 1, 2], "openssl x509 -inform der"),
            (utf16, "UTF-16"),
            (block("PRIVATE KEY").into(), "may be swapped"),
            (block("EC PRIVATE KEY").into(), "may be swapped"),
            (block("CERTIFICATE REQUEST").into(), "signing request"),
            (block("NEW CERTIFICATE REQUEST").into(), "signing request"),
            (block("PKCS7").into(), "PKCS#7"),
            (
                block("TRUSTED CERTIFICATE").into(),
                "\"TRUSTED CERTIFICATE\"",
            ),
            (
                b"-----BEGIN CERTIFICATE-----\nMAA=\n".to_vec(),
                "incomplete",
            ),
            (block("CERTIFICATE").replace("MAA=", "!").into(), "base64"),
            (
                block("CERTIFICATE").trim_end().repeat(2).into(),
                "share a line",
            ),
        ];
        for (file, part) in cases {
            let error = certificates(&file).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn says_what_a_file_has_instead_of_a_private_key() {
        let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\
                      DEK-Info: AES-256-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n";
        let cases: [(String, &str); 9] = [
            (String::new(), "it is empty"),
            ("nothing\n".into(), "it contains no private key"),
            (block("ENCRYPTED PRIVATE KEY"), "is encrypted"),
            (legacy.into(), "is encrypted"),
            (block("CERTIFICATE"), "may be swapped"),
            (block("OPENSSH PRIVATE KEY"), "ssh-keygen"),
            (block("PUBLIC KEY"), "\"PUBLIC KEY\""),
            (
                [block("DSA PARAMETERS"), block("DSA PRIVATE KEY")].concat(),
                "\"DSA PARAMETERS, DSA PRIVATE KEY\"",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMAA=\n".into(), "incomplete"),
        ];
        for (file, part) in cases {
            let error = private_key(file.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
        let der = private_key(&[0x30, 0x82, 1, 2]).unwrap_err().to_string();
        assert!(der.contains("openssl pkey -inform der"), "{der}");
    }
}
