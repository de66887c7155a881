//! Input and output of plugins, and their failures.

use std::path::PathBuf;

use super::*;
use crate::desk::connect::CaBundle;
use crate::desk::credentials::ClusterInfo;
use crate::kubeconfig::ClusterEntry;

/// Returns `exec` that runs a shell script.
fn shell(script: &str) -> ExecPlugin {
    ExecPlugin {
        command: "sh".into(),
        args: vec!["-c".into(), script.into()],
        api_version: V1.into(),
        interactive_mode: Some(InteractiveMode::Never),
        ..ExecPlugin::default()
    }
}

fn login() -> Login {
    Login {
        name: "jane".into(),
        ..Login::default()
    }
}

fn plugin(exec: &ExecPlugin) -> Plugin {
    Plugin::new(&login(), exec).unwrap()
}

async fn run(exec: &ExecPlugin) -> Result<Obtained, String> {
    plugin(exec).run().await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn passes_cluster_arguments_and_environment_to_the_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("input");
    let script = format!(
        "printf '%s|%s|' \"$A\" \"$1\" > {file}; printf %s \"$KUBERNETES_EXEC_INFO\" >> {file}; \
         if read line; then echo stdin >> {file}; fi; \
         echo '{{\"kind\": \"ExecCredential\", \"apiVersion\": \"{V1}\", \"status\": {{\"token\": \"t\"}}}}'",
        file = file.display()
    );
    let mut exec = shell(&script);
    exec.args.extend(["plugin".into(), "argument".into()]);
    exec.env.push(EnvironmentVariable {
        name: "A".into(),
        value: Secret::from("value".to_owned()),
    });
    exec.provide_cluster_info = true;
    let mut login = login();
    login.cluster = ClusterInfo {
        server: "https://192.0.2.1:6443".into(),
        authority: Some(CaBundle {
            pem: b"PEM".to_vec(),
            origin: String::new(),
        }),
        settings: ClusterEntry {
            tls_server_name: Some("api".into()),
            insecure_skip_tls_verify: true,
            proxy_url: Some("http://proxy:1".into()),
            disable_compression: true,
            ..ClusterEntry::default()
        },
        config: Some(json!({"audience": "x", "nested": {"a": [1]}})),
    };
    let plugin = Plugin::new(&login, &exec).unwrap();
    let obtained = plugin.run().await.unwrap();
    assert_eq!(obtained.authorization.unwrap(), "Bearer t");
    let input = std::fs::read_to_string(&file).unwrap();
    let info = input.strip_prefix("value|argument|").unwrap();
    let info: Value = serde_json::from_str(info).unwrap();
    let expected = json!({
        "kind": "ExecCredential",
        "apiVersion": V1,
        "spec": {
            "interactive": false,
            "cluster": {
                "server": "https://192.0.2.1:6443",
                "tls-server-name": "api",
                "insecure-skip-tls-verify": true,
                "certificate-authority-data": "UEVN",
                "proxy-url": "http://proxy:1",
                "disable-compression": true,
                "config": {"audience": "x", "nested": {"a": [1]}},
            },
        },
    });
    assert_eq!(info, expected);
    exec.provide_cluster_info = false;
    let info = Plugin::new(&login, &exec).unwrap().input(true);
    assert_eq!(info["spec"], json!({"interactive": true}));
}

#[test]
fn decodes_tokens_certificates_and_expiry() {
    let plugin = plugin(&shell(""));
    let decode = |status: Value| {
        let credential = json!({"kind": "ExecCredential", "apiVersion": V1, "status": status});
        plugin.decode(credential.to_string().as_bytes())
    };
    let obtained = decode(json!({"token": "t", "expirationTimestamp": "2027-01-15T08:00:00Z"}));
    let obtained = obtained.unwrap();
    let since_epoch = obtained
        .expires
        .unwrap()
        .duration_since(SystemTime::UNIX_EPOCH);
    assert_eq!(since_epoch.unwrap().as_secs(), 1_800_000_000);
    assert!(obtained.authorization.unwrap().is_sensitive());
    let (chain, key) = pair();
    let status = json!({"clientCertificateData": chain, "clientKeyData": key});
    let obtained = decode(status).unwrap();
    assert!(obtained.certificate.is_some() && obtained.authorization.is_none());
    let (other, _) = pair();
    for (status, part) in [
        (json!({}), "neither a token nor a certificate and key"),
        (
            json!({"token": ""}),
            "neither a token nor a certificate and key",
        ),
        (json!({"clientCertificateData": chain}), "not both"),
        (json!({"clientKeyData": key, "token": "t0k3n"}), "not both"),
        (
            json!({"token": "t0k3n", "expirationTimestamp": "soon"}),
            "not RFC 3339",
        ),
        (json!({"token": "t0k3n\u{1b}"}), "a header cannot have"),
        (
            json!({"clientCertificateData": other, "clientKeyData": key}),
            "the client certificate of the user \"jane\" cannot be used",
        ),
        (Value::Null, "an ExecCredential without status"),
    ] {
        let error = decode(status).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(!error.contains("t0k3n"), "{error}");
    }
    for (output, part) in [
        ("", "no ExecCredential in JSON"),
        ("t0k3n", "no ExecCredential in JSON"),
        (r#"{"kind": "Status", "apiVersion": "v1"}"#, "another kind"),
        (
            r#"{"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1beta1", "status": {"token": "t0k3n"}}"#,
            "is configured to use API version client.authentication.k8s.io/v1 and returned version \
             \"client.authentication.k8s.io/v1beta1\"",
        ),
    ] {
        let error = plugin.decode(output.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(!error.contains("t0k3n"), "{error}");
    }
}

/// Returns a self-signed certificate and its key in PEM.
fn pair() -> (String, String) {
    crate::tls::install_provider();
    let pair = rcgen::generate_simple_self_signed(["jane".to_owned()]).unwrap();
    (pair.cert.pem(), pair.signing_key.serialize_pem())
}

#[tokio::test]
async fn reports_failed_and_missing_plugins() {
    let failed = run(&shell("echo t0k3n; exit 3")).await.unwrap_err();
    assert_eq!(
        failed,
        "exec: executable sh failed with exit code 3; log in again, or run it"
    );
    let killed = run(&shell("kill -9 $$")).await.unwrap_err();
    assert_eq!(killed, "exec: executable sh was ended by a signal");
    let large = run(&shell("head -c 2000000 /dev/zero")).await.unwrap_err();
    assert!(large.contains("more than 1 MiB"), "{large}");
    let mut missing = shell("");
    missing.command = "kube-bastion-no-such-plugin".into();
    missing.install_hint = "Run \u{1b}[1mmake\u{7}\ninstall".into();
    let missing = run(&missing).await.unwrap_err();
    let expected = "exec: executable kube-bastion-no-such-plugin not found; install the \
                    credential plugin of the user \"jane\"\n\nRun \u{fffd}[1mmake\u{fffd}\ninstall";
    assert_eq!(missing, expected);
}

#[tokio::test]
async fn ends_a_plugin_that_hangs() {
    let mut plugin = plugin(&shell("exec sleep 600"));
    plugin.timeout = Duration::from_millis(50);
    let error = plugin.run().await.unwrap_err().to_string();
    assert!(error.contains("did not finish within"), "{error}");
}

#[tokio::test]
async fn uses_standard_input_by_mode() {
    // The plugin prints the input that it gets as its token.
    let script = "case $KUBERNETES_EXEC_INFO in *'\"interactive\":true'*) t=yes;; *) t=no;; esac; \
                  echo \"{\\\"kind\\\": \\\"ExecCredential\\\", \\\"apiVersion\\\": \
                  \\\"client.authentication.k8s.io/v1\\\", \\\"status\\\": {\\\"token\\\": \\\"$t\\\"}}\"";
    for (mode, is_terminal, expected) in [
        (InteractiveMode::Never, true, Some("Bearer no")),
        (InteractiveMode::IfAvailable, true, Some("Bearer yes")),
        (InteractiveMode::IfAvailable, false, Some("Bearer no")),
        (InteractiveMode::Always, true, Some("Bearer yes")),
        (InteractiveMode::Always, false, None),
    ] {
        let mut exec = shell(script);
        exec.interactive_mode = Some(mode);
        let mut plugin = plugin(&exec);
        plugin.stdin_is_terminal = if is_terminal { || true } else { || false };
        match (plugin.run().await, expected) {
            (Ok(obtained), Some(token)) => assert_eq!(obtained.authorization.unwrap(), token),
            (Err(error), None) => {
                let error = error.to_string();
                assert!(
                    error.contains("standard input is not a terminal"),
                    "{error}"
                );
            }
            (result, _) => panic!("{mode:?}: {result:?}"),
        }
    }
}

#[test]
fn checks_fields_as_client_go_does() {
    type Change = fn(&mut ExecPlugin);
    let with = |change: Change| {
        let mut exec = shell("");
        change(&mut exec);
        let plugin = Plugin::new(&login(), &exec);
        plugin
            .map(|plugin| plugin.mode)
            .map_err(|error| error.to_string())
    };
    let cases: [(Change, &str); 5] = [
        (|exec| exec.command.clear(), "has no command"),
        (|exec| exec.api_version.clear(), "has no apiVersion"),
        (
            |exec| exec.api_version = "client.authentication.k8s.io/v1alpha1".into(),
            "v1alpha1",
        ),
        (
            |exec| exec.interactive_mode = None,
            "has no interactiveMode, which v1 requires",
        ),
        (
            |exec| exec.env.push(EnvironmentVariable::default()),
            "name of a variable in env",
        ),
    ];
    for (change, part) in cases {
        let error = with(change).unwrap_err();
        assert!(
            error.contains(part) && error.contains("\"jane\""),
            "{error}"
        );
    }
    let beta = with(|exec| {
        exec.api_version = V1BETA1.into();
        exec.interactive_mode = None;
    });
    assert_eq!(beta, Ok(InteractiveMode::IfAvailable));
}
