//! Certificates and keys that cannot be used, or that peers may reject.

use std::path::Path;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tempfile::TempDir;

use super::{Running, assert_contains, failure, run, wait_for_event, write};

const FIXTURES: &str = include_str!("../fixtures/client_certificates.pem");

fn fixture(name: &str) -> &'static str {
    let mut blocks = FIXTURES.split("\n# ");
    let found = blocks.find_map(|block| block.strip_prefix(name)?.strip_prefix('\n'));
    found.unwrap_or_else(|| panic!("no fixture {name}"))
}

/// A certificate and its key in PEM.
fn pair(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    change(&mut params);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

fn block(label: &str) -> String {
    format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n")
}

/// A leaf, its intermediate and the key of the leaf in PEM.
fn chain() -> [String; 3] {
    let (key, ca_key) = (KeyPair::generate(), KeyPair::generate());
    let (key, ca_key) = (key.expect("a key"), ca_key.expect("a key"));
    let mut ca = CertificateParams::default();
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "intermediate");
    let intermediate = ca.self_signed(&ca_key).expect("a certificate");
    let leaf = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let leaf = leaf
        .signed_by(&key, &Issuer::new(ca, ca_key))
        .expect("a certificate");
    [leaf.pem(), intermediate.pem(), key.serialize_pem()]
}

/// Directory with the two files and their flags.
struct Files {
    directory: TempDir,
    certificate: String,
    key: String,
}

impl Files {
    fn new(certificate: &[u8], key: &[u8]) -> Self {
        kube_bastion::tls::install_provider();
        let directory = tempfile::tempdir().expect("a directory");
        let put = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).expect("the directory is writable");
            path.display().to_string()
        };
        std::fs::create_dir(directory.path().join("manifests")).expect("a directory");
        Self {
            certificate: put("tls.crt", certificate),
            key: put("tls.key", key),
            directory,
        }
    }

    /// Returns arguments with the files as the pair of two flags.
    fn arguments(&self, command: &[&str], [certificate, key]: [&str; 2]) -> Vec<String> {
        let manifests = self.directory.path().join("manifests");
        let flags = [
            format!("--manifests-dir={}", manifests.display()),
            format!("--{certificate}={}", self.certificate),
            format!("--{key}={}", self.key),
        ];
        command
            .iter()
            .map(ToString::to_string)
            .chain(flags)
            .collect()
    }
}

impl Files {
    /// Writes a kubeconfig whose user has the files as client certificate.
    fn kubeconfig(&self) -> String {
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
             users: [{{name: u, user: {{client-certificate: {}, client-key: {}}}}}]\n",
            self.certificate, self.key
        );
        write(self.directory.path(), "kubeconfig", &kubeconfig)
    }
}

const SERVING: [&str; 2] = ["tls-cert-file", "tls-private-key-file"];
const KUBELETS: [&str; 2] = ["kubelet-client-certificate", "kubelet-client-key"];

#[test]
fn names_file_fault_and_remedy_of_certificates_that_cannot_be_used() {
    let (certificate, key) = pair(|_| ());
    let [leaf, intermediate, leaf_key] = chain();
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\
                  DEK-Info: AES-256-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n";
    let bytes = |text: &str| text.as_bytes().to_vec();
    let der = vec![0x30, 0x82, 1, 0, 0];
    let cases: [(Vec<u8>, Vec<u8>, [&str; 3]); 15] = [
        (
            bytes(fixture("version-1")),
            bytes(fixture("client.key")),
            ["tls.crt", "X.509 version 1", "issue it as version 3"],
        ),
        (
            bytes(fixture("rsa-1024")),
            bytes(fixture("rsa-1024.key")),
            [
                "tls.key",
                "an RSA key of 1024 bits",
                "use 2048 to 8192 bits",
            ],
        ),
        (
            bytes(fixture("secp256k1")),
            bytes(fixture("secp256k1.key")),
            ["tls.key", "type 1.3.132.0.10", "use RSA, ECDSA"],
        ),
        (
            bytes(fixture("dsa")),
            bytes(fixture("dsa.key")),
            ["tls.key", "a key of type", "use RSA, ECDSA"],
        ),
        (
            bytes(&certificate),
            bytes(&block("ENCRYPTED PRIVATE KEY")),
            ["tls.key", "is encrypted", "openssl pkey -in"],
        ),
        (
            bytes(&certificate),
            bytes(legacy),
            ["tls.key", "is encrypted", "openssl pkey -in"],
        ),
        (
            bytes(&certificate),
            bytes(&leaf_key),
            [
                "tls.key",
                "does not match the certificate",
                "use the key that",
            ],
        ),
        (
            bytes(&key),
            bytes(&certificate),
            ["tls.crt", "a private key", "may be swapped"],
        ),
        (
            bytes(&certificate),
            bytes(&certificate),
            [
                "tls.key",
                "no private key but a certificate",
                "may be swapped",
            ],
        ),
        (
            der.clone(),
            bytes(&key),
            ["tls.crt", "it is binary", "-inform der"],
        ),
        (
            bytes(&certificate),
            der,
            ["tls.key", "it is binary", "-inform der"],
        ),
        (
            vec![],
            bytes(&key),
            ["tls.crt", "it is empty", "BEGIN CERTIFICATE"],
        ),
        (
            bytes(&block("CERTIFICATE REQUEST")),
            bytes(&key),
            [
                "tls.crt",
                "signing request",
                "use the certificate that the CA",
            ],
        ),
        (
            bytes(&[&*intermediate, &leaf].concat()),
            bytes(&leaf_key),
            [
                "tls.crt",
                "matches certificate 2",
                "write the certificate of the key first",
            ],
        ),
        (
            bytes(&[leaf, block("CERTIFICATE")].concat()),
            bytes(&leaf_key),
            ["tls.crt", "certificate 2 of", "is damaged or not X.509"],
        ),
    ];
    for (certificate, key, parts) in cases {
        let files = Files::new(&certificate, &key);
        for (command, flags, setting) in [
            (&["serve"][..], SERVING, "serving.tlsCertFile"),
            (
                &["check", "--load"],
                KUBELETS,
                "targets.kubeletClientCertificate",
            ),
        ] {
            let arguments = files.arguments(command, flags);
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            let stderr = failure(&arguments);
            assert_contains(&stderr, &[&parts[..], &[setting]].concat());
        }
    }
}

/// Certificates that peers may reject, and the warning for each.
#[test]
fn warns_of_certificates_that_peers_may_reject() {
    let usage = |usage| {
        move |params: &mut CertificateParams| {
            params.extended_key_usages = vec![usage];
        }
    };
    let [leaf, _, leaf_key] = chain();
    let root = pair(|_| ()).0;
    let sha1 = (fixture("sha1").to_owned(), fixture("client.key").to_owned());
    let cases = [
        (
            pair(|params| params.subject_alt_names.clear()),
            SERVING,
            "has no subjectAltName",
        ),
        (
            pair(usage(ExtendedKeyUsagePurpose::ClientAuth)),
            SERVING,
            "without serverAuth",
        ),
        (
            pair(usage(ExtendedKeyUsagePurpose::ServerAuth)),
            KUBELETS,
            "without clientAuth",
        ),
        (sha1, KUBELETS, "certificate 1 of"),
        (
            ([&*leaf, &*root].concat(), leaf_key),
            SERVING,
            "certificate 2 of",
        ),
    ];
    for ((certificate, key), flags, warning) in cases {
        let files = Files::new(certificate.as_bytes(), key.as_bytes());
        let arguments = files.arguments(&["check", "--load"], flags);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let output = run(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        assert_contains(&stderr, &["WARN", warning, &files.certificate]);
    }
    let (certificate, key) = pair(|_| ());
    let files = Files::new(certificate.as_bytes(), key.as_bytes());
    let arguments = files.arguments(&["check", "--load"], SERVING);
    let output = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!String::from_utf8_lossy(&output.stderr).contains(&files.certificate));
}

/// `serve` uses such a certificate with a warning; for `check --load` it is an error.
#[test]
fn reports_certificates_outside_their_validity() {
    let expired = pair(|params| params.not_after = rcgen::date_time_ymd(2001, 2, 3));
    let future = pair(|params| params.not_before = rcgen::date_time_ymd(2199, 2, 3));
    for ((certificate, key), fault) in [
        (expired, "expired at 2001-02-03T00:00:00Z"),
        (future, "is not valid before 2199-02-03T00:00:00Z"),
    ] {
        let files = Files::new(certificate.as_bytes(), key.as_bytes());
        for flags in [SERVING, KUBELETS] {
            let arguments = files.arguments(&["check", "--load"], flags);
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            assert_contains(&failure(&arguments), &[fault, &files.certificate]);
        }
        let [certificate, key] = SERVING;
        let mut running = Running::start(&[
            &format!("--{certificate}={}", files.certificate),
            &format!("--{key}={}", files.key),
        ]);
        let events = running.events();
        assert_contains(
            &wait_for_event(&events, fault),
            &["WARN", &files.certificate],
        );
        wait_for_event(&events, "serving");
    }
}

/// The client certificate of the kubeconfig is for the API server.
#[test]
fn reports_faults_of_the_client_certificate_of_the_kubeconfig() {
    let (certificate, key) = pair(|_| ());
    for ((certificate, key), parts) in [
        (
            pair(|params| params.not_after = rcgen::date_time_ymd(2001, 2, 3)),
            ["tls.crt", "expired at 2001-02-03T00:00:00Z"],
        ),
        (
            (fixture("version-1").into(), fixture("client.key").into()),
            ["tls.crt", "X.509 version 1"],
        ),
        (
            (fixture("rsa-1024").into(), fixture("rsa-1024.key").into()),
            ["tls.key", "an RSA key of 1024 bits"],
        ),
        (
            (certificate.clone(), block("ENCRYPTED PRIVATE KEY")),
            ["tls.key", "is encrypted"],
        ),
        ((key, certificate), ["tls.crt", "may be swapped"]),
    ] {
        let files = Files::new(certificate.as_bytes(), key.as_bytes());
        let kubeconfig = files.kubeconfig();
        let stderr = failure(&["check", "--load", "--kubeconfig", &kubeconfig]);
        assert_contains(&stderr, &parts);
    }
}

#[test]
fn check_writes_no_self_signed_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    let manifests = format!("--manifests-dir={}", directory.path().display());
    let target = directory.path().join("tls");
    let flag = format!("--self-signed-dir={}", target.display());
    let output = run(&["check", "--load", &manifests, &flag]);
    assert!(output.status.success(), "{output:?}");
    assert!(!Path::new(&target).exists());
    std::fs::create_dir(&target).expect("a directory");
    let own = write(&target, "tls.crt", &pair(|_| ()).0);
    assert_contains(
        &failure(&["check", "--load", &manifests, &flag]),
        &[&own, "serving.selfSignedDir", "choose another directory"],
    );
}
