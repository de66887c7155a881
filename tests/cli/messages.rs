//! Messages about arguments, environment variables and paths.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use super::{HEAD, Running, assert_contains, assert_plain, command, wait_for_event, write};

/// Values of environment variables are not on the command line, so errors name the variable.
#[test]
fn names_the_environment_variable_of_an_invalid_value() {
    for (variable, value, parts) in [
        (
            "KUBE_BASTION_WORKERS",
            "many",
            &["--workers", "\"many\""][..],
        ),
        ("KUBE_BASTION_WORKERS", "", &["--workers", "from 0 to 1024"]),
        ("KUBE_BASTION_ACCESS_LOG", "no", &["--access-log", "\"no\""]),
        (
            "KUBE_BASTION_LOGGING_FORMAT",
            "yaml",
            &["--logging-format", "json"],
        ),
        (
            "KUBE_BASTION_TLS_CERT_FILE",
            "",
            &["--tls-cert-file", "is not a path"],
        ),
        (
            "KUBE_BASTION_KUBECONFIG",
            "~jane/config",
            &["--kubeconfig", "~jane"],
        ),
        (
            "KUBE_BASTION_DRAIN_TIMEOUT",
            "-5s",
            &["--drain-timeout", "\"-5s\""],
        ),
    ] {
        let output = command(&["check"]).env(variable, value).output();
        let output = output.expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_contains(&stderr, parts);
        let tip = format!("the value is that of the environment variable {variable}");
        assert_contains(&stderr, &[&tip]);
        assert_plain(&stderr);
    }
    let output = command(&["check", "--workers=many"])
        .output()
        .expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!stderr.contains("environment"), "{stderr}");
}

#[test]
fn rejects_arguments_and_variables_that_are_not_utf_8() {
    let bytes = OsStr::from_bytes(b"/tls/\xff");
    let failure = |command: &mut Command| {
        let output = command.output().expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_contains(&stderr, &[r#""/tls/\xFF""#, "UTF-8"]);
        assert_plain(&stderr);
        stderr
    };
    for subcommand in ["check", "serve"] {
        for flag in [
            "--config",
            "--kubeconfig",
            "--manifests-dir",
            "--token-auth-file",
            "--tls-cert-file",
            "--tls-private-key-file",
            "--client-ca-file",
            "--kubelet-certificate-authority",
            "--kubelet-client-certificate",
            "--kubelet-client-key",
        ] {
            let stderr = failure(command(&[subcommand, flag]).arg(bytes));
            assert_contains(&stderr, &[flag]);
        }
        for flag in ["--context", "--workers", "--log-level", "--drain-timeout"] {
            failure(command(&[subcommand, flag]).arg(bytes));
        }
        for variable in ["KUBE_BASTION_CONTEXT", "KUBE_BASTION_LOG_LEVEL"] {
            let stderr = failure(command(&[subcommand]).env(variable, bytes));
            assert_contains(&stderr, &[variable]);
        }
    }
}

#[test]
fn expands_home_directory_in_flags_variables_and_files() {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().display().to_string();
    write(
        home.path(),
        "bastion.yaml",
        &format!("{HEAD}serving: {{clientCAFile: ~/ca.crt}}\n"),
    );
    let output = command(&["check", "--config=~/bastion.yaml", "--manifests-dir=~"])
        .env("KUBE_BASTION_TOKEN_AUTH_FILE", "~/tokens.csv")
        .env("HOME", home.path())
        .output()
        .expect("it runs");
    assert_contains(
        &String::from_utf8_lossy(&output.stdout),
        &[
            &format!("clientCAFile: {path}/ca.crt\n"),
            &format!("directory: {path}\n"),
            &format!("tokenAuthFile: {path}/tokens.csv\n"),
        ],
    );
    let output = command(&["check", "--config=~/bastion.yaml"])
        .env_remove("HOME")
        .output()
        .expect("it runs");
    assert_contains(
        &String::from_utf8_lossy(&output.stderr),
        &["--config", "\"~/bastion.yaml\"", "HOME is not set"],
    );
}

/// The README promises that errors say what to do, so its own Role must suffice for that.
#[test]
fn role_of_the_readme_suffices_for_the_causes_of_a_503() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(readme).expect("the README");
    let role = readme
        .split("```yaml\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .find(|block| block.contains("\nkind: Role\n"))
        .expect("the README has a Role");
    let objects = "---
kind: RoleBinding
metadata: {name: b, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: web-proxy}
subjects: [{kind: User, name: jane, apiGroup: rbac.authorization.k8s.io}]
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}, {name: admin, port: 8080}]}
";
    let directory = tempfile::tempdir().expect("a directory");
    write(
        directory.path(),
        "objects.yaml",
        &format!("{role}{objects}"),
    );
    let tokens = write(directory.path(), "tokens.csv", "of-jane,jane,1\n");
    let manifests = format!("--manifests-dir={}", directory.path().display());
    let tokens = format!("--token-auth-file={tokens}");
    let mut running = Running::serve(
        &[&manifests, &tokens, "--insecure-listen-address=127.0.0.1:0"],
        directory,
    );
    let line = wait_for_event(&running.events(), "insecure=");
    let (_, address) = line.split_once("insecure=").expect("it is there");
    let get = || {
        let mut connection = TcpStream::connect(address).expect("it accepts");
        let request = "GET /api/v1/namespaces/shop/services/web/proxy/ HTTP/1.1\r\nHost: x\r\n\
                       Authorization: Bearer of-jane\r\nConnection: close\r\n\r\n";
        connection.write_all(request.as_bytes()).expect("it reads");
        let mut response = String::new();
        connection
            .read_to_string(&mut response)
            .expect("it responds");
        response
    };
    // Until the manifests are loaded.
    let response = std::iter::repeat_with(get)
        .take(1000)
        .find(|response| !response.contains("the bastion is starting"));
    let response = response.expect("it becomes ready");
    for part in ["HTTP/1.1 503 ", r#""ServicePort""#, "(80)", "(8080)"] {
        assert!(response.contains(part), "{part} is missing in {response}");
    }
}
