//! Starts that fail.

use super::*;

#[test]
fn serve_without_a_cluster_names_the_alternatives() {
    assert_contains(
        &failure(&["serve"]),
        &[
            "no --kubeconfig is set, nor $KUBECONFIG",
            "~/.kube/config does not exist",
            "--kubeconfig=FILE",
            "source.type: manifests",
        ],
    );
    assert_contains(
        &failure(&["serve", "--kubeconfig=/nonexistent"]),
        &["cannot read the kubeconfig \"/nonexistent\" (--kubeconfig,"],
    );
}

#[test]
fn names_a_port_that_is_in_use() {
    let directory = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let stderr = failure(&[
        "serve",
        "--manifests-dir",
        &directory.path().display().to_string(),
        "--secure-listen-address",
        &address,
    ]);
    assert_contains(
        &stderr,
        &[
            &address,
            "serving.secureListenAddress, --secure-listen-address",
            "choose another port",
            "in use",
        ],
    );
    assert_contains(
        &failure(&["demo", "--secure-listen-address", &address]),
        &[&address, "--secure-listen-address", "choose another port"],
    );
}

#[test]
fn rejects_mismatched_certificate_and_key() {
    kube_bastion::tls::install_provider();
    let directory = tempfile::tempdir().expect("a directory");
    let made =
        || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (one, other) = (made(), made());
    let certificate = write(directory.path(), "tls.crt", &one.cert.pem());
    let key = write(
        directory.path(),
        "tls.key",
        &other.signing_key.serialize_pem(),
    );
    let with = |certificate: &str, key: &str| {
        let (certificate, key) = (
            format!("--tls-cert-file={certificate}"),
            format!("--tls-private-key-file={key}"),
        );
        failure(&[
            "serve",
            "--manifests-dir",
            &directory.path().display().to_string(),
            &certificate,
            &key,
        ])
    };
    assert_contains(
        &with(&certificate, &key),
        &["does not match the certificate", &certificate, &key],
    );
    assert_contains(
        &with("/nonexistent", &key),
        &["cannot read certificates from \"/nonexistent\""],
    );
    let empty = write(directory.path(), "empty.crt", "nothing\n");
    assert_contains(&with(&empty, &key), &["contains no certificate", &empty]);
    assert_contains(&with(&certificate, &empty), &["a private key", &empty]);
}

/// The message of a failed start has the root cause exactly once: the chain of causes neither drops
/// nor repeats it.
#[test]
fn prints_the_cause_of_a_failed_start_once() {
    kube_bastion::tls::install_provider();
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| write(directory.path(), name, text);
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests).expect("a directory");
    let manifests = format!("--manifests-dir={}", manifests.display());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let certificate = write("tls.crt", &made.cert.pem());
    let other =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = write("tls.key", &other.signing_key.serialize_pem());
    let no_base64 = write(
        "ca.crt",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    );
    let no_yaml = write("no-yaml", "a: [\n");
    let kubeconfig = |user: &str| {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        )
    };
    let no_key = write(
        "no-key",
        &kubeconfig("client-certificate: /nonexistent, client-key: /nonexistent"),
    );
    let good = write("kubeconfig", &kubeconfig("token: t"));
    let tokens = write("tokens", "alone\n");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = format!(
        "--secure-listen-address={}",
        taken.local_addr().expect("bound")
    );

    let tls = |certificate: &str, key: &str| {
        [
            format!("--tls-cert-file={certificate}"),
            format!("--tls-private-key-file={key}"),
            manifests.clone(),
        ]
        .to_vec()
    };
    let with = |flag: &str, file: &str| [format!("--{flag}={file}"), manifests.clone()].to_vec();
    let alone = |flag: &str, file: &str| [format!("--{flag}={file}")].to_vec();
    let absent = "No such file or directory";
    let cases = [
        (vec![], "this is not a pod with a service account"),
        (alone("config", "/nonexistent"), absent),
        (alone("kubeconfig", "/nonexistent"), absent),
        (alone("kubeconfig", &no_yaml), "not YAML: unclosed bracket"),
        (alone("kubeconfig", &no_key), absent),
        (
            [alone("kubeconfig", &good), alone("context", "other")].concat(),
            "\"other\" (--context, source.kubernetes.context) is not in the kubeconfig",
        ),
        (alone("manifests-dir", "/nonexistent"), absent),
        (alone("manifests-dir", "/nonexistent"), "--manifests-dir"),
        (with("token-auth-file", "/nonexistent"), absent),
        (with("token-auth-file", &tokens), "line 1"),
        (with("token-auth-file", &tokens), "--token-auth-file"),
        (tls("/nonexistent", &key), absent),
        (tls("/nonexistent", &key), "serving.tlsCertFile"),
        (tls(&certificate, "/nonexistent"), absent),
        (tls(&certificate, &key), "does not match the certificate"),
        (tls(&certificate, &certificate), "may be swapped"),
        (with("client-ca-file", "/nonexistent"), absent),
        (with("client-ca-file", &no_base64), "base64"),
        (
            with("kubelet-certificate-authority", "/nonexistent"),
            absent,
        ),
        (with("kubelet-certificate-authority", &no_base64), "base64"),
        (vec![taken, manifests.clone()], "in use"),
    ];
    let mut wrong = Vec::new();
    for (line, cause) in cases {
        // `check --load` finds the same, except for ports.
        let commands: &[&[&str]] = if cause == "in use" {
            &[&["serve"]]
        } else {
            &[&["serve"], &["check", "--load"]]
        };
        for command in commands {
            let line: Vec<&str> = command
                .iter()
                .copied()
                .chain(line.iter().map(String::as_str))
                .collect();
            let stderr = failure(&line);
            if stderr.matches(cause).count() != 1 {
                wrong.push(format!("{line:?} should print {cause:?} once:\n{stderr}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rejects_malformed_manifests_at_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = write(
        directory.path(),
        "pod.yaml",
        "kind: Pod\nmetadata: {name: p}\nstatus: {podIPs: [{ip: x}]}\n",
    );
    let stderr = failure(&[
        "serve",
        "--manifests-dir",
        &directory.path().display().to_string(),
    ]);
    assert_contains(&stderr, &[&file, "Pod \"p\"", "malformed"]);
}
