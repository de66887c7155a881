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
    let body = "serving:\nadmin: ~\nsource: {kubernetes: , manifests: null}\n\
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
    assert_eq!(Config::parse(&config.to_yaml()).unwrap(), config);
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
            &["3:15: log.format: the value is not a scalar"],
        ),
        ("log: *a\n", &["3:6: alias references unknown anchor"]),
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
