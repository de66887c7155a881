use std::time::Duration;

use super::*;

const HEAD: &str = "apiVersion: kube-bastion.dev/v1alpha1\nkind: BastionConfiguration\n";

fn error(document: &str) -> String {
    Config::parse(document).unwrap_err().to_string()
}

#[test]
fn takes_defaults_for_absent_fields() {
    assert_eq!(Config::parse(HEAD).unwrap(), Config::new());
}

#[test]
fn takes_defaults_for_null_sections() {
    let body = "serving:\n  proxyProtocol:\n  trustedProxies:\nadmin: ~\nsource: {kubernetes: , manifests: null}\n\
                authentication: {tokenReview: }\nauthorization:\nreviews:\ntargets:\n\
                upstream:\nrewriting:\nlog:\ndrain:\n";
    assert_eq!(
        Config::parse(&format!("{HEAD}{body}")).unwrap(),
        Config::new()
    );
}

#[test]
fn config_round_trips_through_yaml() {
    let mut config = Config::new();
    config.serving.insecure_listen_address = Some("127.0.0.1:0".parse().unwrap());
    config.upstream.dial_timeout = Duration::from_millis(1500);
    config.serving.tls_cert_file = Some("a.pem".into());
    let networks = ["10.0.0.0/8", "2001:db8::1"].map(|network| network.parse().unwrap());
    config.serving.proxy_protocol.from = networks.into_iter().collect();
    config.serving.trusted_proxies = networks.into_iter().skip(1).collect();
    assert_eq!(Config::parse(&config.to_yaml().unwrap()).unwrap(), config);
}

#[test]
fn rejects_invalid_values_with_line_field_value_and_accepted_form() {
    let cases = [
        (
            "servin: {}\n",
            &["3:1: servin: unknown field", "serving"][..],
        ),
        (
            "serving:\n  secureListenAddress: localhost\n",
            &["4:", "secureListenAddress", "\"localhost\"", "0.0.0.0:8443"],
        ),
        (
            "serving:\n  workers: -1\n",
            &["4:", "workers", "\"-1\"", "whole number"],
        ),
        (
            "serving:\n  tlsMinVersion: VersionTLS10\n",
            &["4:", "VersionTLS10", "VersionTLS12"],
        ),
        (
            "upstream:\n  tlsMinVersion: VersionTLS11\n",
            &["4:", "tlsMinVersion", "VersionTLS11", "VersionTLS12"],
        ),
        (
            "upstream:\n  http2: auto\n",
            &["4:", "http2", "\"auto\"", "true or false"],
        ),
        (
            "upstream:\n  dialTimeout: 30\n",
            &["4:", "dialTimeout", "\"30\"", "30s"],
        ),
        (
            "upstream:\n  maxIdlePerEndpoint: 0\n",
            &["4:", "maxIdlePerEndpoint", "\"0\"", "from 1 to 65535"],
        ),
        (
            "upstream:\n  retry:\n    maxAttempts: 11\n",
            &["5:", "maxAttempts", "\"11\"", "from 1 to 10"],
        ),
        (
            "upstream: {retry: {budgetPercent: 101}}\n",
            &["3:", "budgetPercent", "from 0 to 100"],
        ),
        (
            "serving:\n  workers: 1000000\n",
            &["4:", "workers", "\"1000000\"", "from 0 to 1024"],
        ),
        (
            "serving:\n  maxConnections: 99999999999\n",
            &["4:", "maxConnections", "from 0 to 10000000"],
        ),
        (
            "serving:\n  maxConnectionsPerClient: -1\n",
            &["4:", "maxConnectionsPerClient", "from 0 to 10000000"],
        ),
        (
            "serving:\n  trustedProxies: [10.0.0.0/8, lb.example]\n",
            &[
                "trustedProxies",
                "\"lb.example\" is not a network",
                "10.0.0.0/8",
            ],
        ),
        (
            "serving:\n  trustedProxies: 10.0.0.0/8\n",
            &["4:", "trustedProxies", "not a list"],
        ),
        (
            "serving:\n  proxyProtocol: {from: [10.0.0.5/8]}\n",
            &[
                "proxyProtocol.from",
                "\"10.0.0.5/8\" has bits behind its prefix",
                "use 10.0.0.0/8 for the network, or 10.0.0.5/32",
            ],
        ),
        (
            "serving:\n  proxyProtocol: [10.0.0.0/8]\n",
            &["proxyProtocol", "not a mapping"],
        ),
        (
            "serving:\n  proxyProtocol: {from: [::/129]}\n",
            &["proxyProtocol.from", "\"::/129\" is not a network"],
        ),
        (
            "authorization:\n  cacheSize: 99999999999999\n",
            &["4:", "cacheSize", "\"99999999999999\"", "from 1 to 1000000"],
        ),
        (
            "authentication:\n  tokenReview:\n    cacheSize: 1000001\n",
            &["5:", "cacheSize", "from 1 to 1000000"],
        ),
        (
            "serving:\n  workers:\n",
            &[
                "serving.workers: null",
                "whole number",
                "or leave the field out",
            ],
        ),
        (
            "serving:\n  workers:\n  maxConnections: 1\n",
            &[
                "serving.workers: null",
                "whole number",
                "or leave the field out",
            ],
        ),
        (
            "serving: {secureListenAddress: ~}\n",
            &["3:", "secureListenAddress", "IP:port", "or leave"],
        ),
        (
            "log:\n  access: null\n",
            &["4:", "access", "true or false", "or leave the field out"],
        ),
        (
            "rewriting:\n  maxMemory: 32MB\n",
            &["4:", "maxMemory", "\"32MB\"", "32Mi"],
        ),
        (
            "log:\n  level: inf\n",
            &["4:", "level", "\"inf\"", "info", "trace"],
        ),
        (
            "targets:\n  clusterDomain: .local.\n",
            &["4:", "clusterDomain", "\".local.\"", "cluster.local"],
        ),
        (
            "log:\n  level: loud=much\n",
            &["4:", "level", "loud", "info"],
        ),
        (
            "source:\n  type: etcd\n",
            &["4:9: source.type: \"etcd\" is not a valid value; use kubernetes or manifests"],
        ),
        (
            "drain: {timeout: 0s}\n",
            &["3:18: drain.timeout: \"0s\" is not longer than 0s; use whole"],
        ),
        (
            "drain:\n  timeout: 1s\n  timeout: 2s\n",
            &["5:3: drain: duplicate field \"timeout\"; remove one of them"],
        ),
        (
            "authentication: {anonymous: yes}\n",
            &["3:29: authentication.anonymous: \"yes\" is not a boolean; use true or false"],
        ),
        (
            "serving: 5\n",
            &["3:10: serving: the value is not a mapping of fields"],
        ),
        (
            "---\nfoo: 1\n",
            &["4:1: the file has several YAML documents; use one"],
        ),
        (
            "log: {format: [a]}\n",
            &["3:15: log.format: the value is a list or a mapping; write a single value"],
        ),
        (
            "log: *a\n",
            &["3:6: the YAML alias (*) refers to no anchor"],
        ),
        (
            "targets:\n  kubeletPreferredAddressTypes: [Internal]\n",
            &["4:", "Internal", "InternalIP"],
        ),
    ];
    for (body, parts) in cases {
        let error = error(&format!("{HEAD}{body}"));
        for part in parts {
            assert!(
                error.contains(part),
                "{part:?} is missing for {body:?}:\n{error}"
            );
        }
    }
}

#[test]
fn suggests_fields_and_values() {
    for (body, expected) in [
        (
            "serving: {workes: 1}\n",
            "serving.workes: unknown field; did you mean serving.workers?",
        ),
        (
            "servign: {}\n",
            "servign: unknown field; did you mean serving?",
        ),
        (
            "Serving: {}\n",
            "Serving: unknown field; did you mean serving?",
        ),
        (
            "serving: {tls-cert-file: a}\n",
            "serving.tls-cert-file: unknown field; did you mean serving.tlsCertFile?",
        ),
        (
            "workers: 3\n",
            "workers: unknown field; did you mean serving.workers?",
        ),
        (
            "drain-timeout: 5s\n",
            "drain-timeout: unknown field; did you mean drain.timeout?",
        ),
        (
            "serving: {listenAddress: a}\n",
            "did you mean serving.secureListenAddress or admin.listenAddress?",
        ),
        (
            "upstream: {retry: {maxAttempt: 1}}\n",
            "did you mean upstream.retry.maxAttempts?",
        ),
        (
            "source: {type: manifest}\n",
            "\"manifest\" is not a valid value; did you mean manifests?",
        ),
        (
            "log: {format: JSON}\n",
            "\"JSON\" is not a valid value; did you mean json?",
        ),
        (
            "log: {level: warning}\n",
            "\"warning\" is not a log level; did you mean warn?",
        ),
        (
            "targets: {kubeletPreferredAddressTypes: [internalip]}\n",
            "\"internalip\" is not a valid value; did you mean InternalIP?",
        ),
        (
            "spec: {}\n",
            "spec: unknown field; use apiVersion, kind, serving, ",
        ),
        (
            "source: {type: etcd}\n",
            "\"etcd\" is not a valid value; use kubernetes or manifests",
        ),
    ] {
        let error = error(&format!("{HEAD}{body}"));
        assert!(error.contains(expected), "{body:?}: {error}");
    }
}

/// Every field of every section, with values of a wrong shape: the message names the field, and has
/// no words of the parser.
#[test]
fn every_field_rejects_wrong_shapes_by_its_name() {
    fn leaves(path: &[String], value: &serde_json::Value, found: &mut Vec<Vec<String>>) {
        let Some(fields) = value.as_object() else {
            return found.push(path.to_owned());
        };
        for (name, value) in fields {
            leaves(&[path, std::slice::from_ref(name)].concat(), value, found);
        }
    }
    let mut fields = Vec::new();
    leaves(
        &[],
        &serde_json::to_value(Config::new()).unwrap(),
        &mut fields,
    );
    fields.retain(|path| path.len() > 1);
    assert!(fields.len() > 40, "{fields:?}");
    for path in fields {
        for value in [
            "{a: b}",
            "[[a]]",
            "!x {a: b}",
            "{",
            "&a [*b]",
            "!!binary [a]",
        ] {
            let body = path.iter().rev().fold(value.to_owned(), |inner, name| {
                format!("{{{name}: {inner}}}")
            });
            // Without the outer braces, so that it continues the mapping of the head.
            let document = format!("{HEAD}{}\n", &body[1..body.len() - 1]);
            let error = error(&document);
            let is_syntax = ["{", "&a [*b]", "!!binary [a]"].contains(&value);
            assert!(
                is_syntax || error.contains(&path.join(".")),
                "{document}{error}"
            );
            for word in [
                "Option<",
                "serde",
                "Options",
                "scalar",
                "deserialize",
                "struct",
                "`",
            ] {
                assert!(!error.contains(word), "{word} in {document}{error}");
            }
        }
    }
}

#[test]
fn rejects_documents_that_are_not_a_configuration() {
    for (document, part) in [
        (
            "",
            "1:1: the document is empty or incomplete; the file requires apiVersion: ",
        ),
        (
            "a\n",
            "1:1: the document is not a mapping of fields; the file requires apiVersion: ",
        ),
        (
            "[]\n",
            "1:1: the document is not a mapping of fields; the file requires apiVersion: ",
        ),
        ("{", "not valid YAML: unclosed bracket"),
        ("serving: {\n", "not valid YAML: "),
        (
            "apiversion: x\n",
            "apiversion: unknown field; did you mean apiVersion?",
        ),
        (
            "apiVersion: v1\nkind: Config\n",
            "\"v1\" is not the apiVersion of a configuration file; use kube-bastion.dev/v1alpha1",
        ),
        (
            "apiVersion: kube-bastion.dev/v1alpha1\nkind: Pod\n",
            "\"Pod\" is not the kind of a configuration file; use BastionConfiguration",
        ),
        (
            "kind: BastionConfiguration\nkind: BastionConfiguration\n",
            "2:1: duplicate field \"kind\"; remove one of them",
        ),
        ("null: a\n", "null is not a text"),
    ] {
        let error = error(document);
        assert!(error.contains(part), "{document:?}: {error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("utf-16.yaml");
    std::fs::write(&file, b"a\xff\xfe").unwrap();
    let error = Config::load(&file).unwrap_err().to_string();
    assert!(
        error.ends_with("byte 1 is not UTF-8; save the file as UTF-8 text"),
        "{error}"
    );
}

#[test]
fn rejects_unsupported_version_and_kind() {
    let version = error("apiVersion: kube-bastion.dev/v1\nkind: BastionConfiguration\n");
    assert!(
        version.contains("1:") && version.contains("kube-bastion.dev/v1alpha1"),
        "{version}"
    );
    let kind = error("apiVersion: kube-bastion.dev/v1alpha1\nkind: Pod\n");
    assert!(
        kind.contains("2:") && kind.contains("BastionConfiguration"),
        "{kind}"
    );
}

#[test]
fn names_required_version_and_kind() {
    for document in [
        "",
        "# comment\n",
        "drain: {}\n",
        "kind: BastionConfiguration\n",
    ] {
        let error = error(document);
        assert!(
            error.contains(
                "the file requires apiVersion: kube-bastion.dev/v1alpha1 and kind: \
                 BastionConfiguration"
            ),
            "{error}"
        );
    }
}
