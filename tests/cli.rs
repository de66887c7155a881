//! The command line: invalid input and its messages, `check`, and the life of the process.

#[path = "cli/certificates.rs"]
mod certificates;
#[path = "cli/log.rs"]
mod log;
#[path = "cli/messages.rs"]
mod messages;
#[path = "cli/tools.rs"]
mod tools;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    command
        .args(arguments)
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env_remove("KUBECONFIG")
        .env("HOME", "/nonexistent");
    if arguments.first() == Some(&"serve") {
        // A start that fails late has bound its ports by then, and the default ports may be in use
        // on this machine.
        for port in [
            "KUBE_BASTION_SECURE_LISTEN_ADDRESS",
            "KUBE_BASTION_ADMIN_LISTEN_ADDRESS",
        ] {
            command.env(port, "127.0.0.1:0");
        }
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

/// Runs a command that must fail, and returns its standard error.
fn failure(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("the directory is writable");
    path.display().to_string()
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

/// Words of Rust and of libraries, which are not for people.
fn assert_plain(text: &str) {
    for word in [
        "Some(",
        "Error {",
        "Error(",
        "ErrorResponse",
        "Status {",
        "Os {",
        "Option<",
        "serde",
        "panicked",
    ] {
        assert!(!text.contains(word), "{word:?} in:\n{text}");
    }
}

const HEAD: &str = "apiVersion: kube-bastion.dev/v1alpha1\nkind: BastionConfiguration\n";

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

/// A kubeconfig with this current context.
fn kubeconfig(context: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {context}\n\
         contexts: [{{name: prod, context: {{cluster: prod, user: u}}}}, {{name: old, context: {{}}}}]\n\
         clusters: [{{name: prod, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}, {{name: w, user: {{auth-provider: {{name: gcp, config: null}}}}}}]\n"
    )
}

#[test]
fn check_uses_variable_and_default_path_of_kubectl() {
    let home = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(home.path().join(".kube")).expect("a directory");
    let default = write(&home.path().join(".kube"), "config", &kubeconfig("prd"));
    let listed = write(home.path(), "listed", &kubeconfig("prod"));
    let check = |arguments: &[&str], variable: Option<&str>, in_pod: bool| {
        let mut command = command(&[&["check", "--load"], arguments].concat());
        command.env("HOME", home.path());
        if let Some(variable) = variable {
            command.env("KUBECONFIG", variable);
        }
        if in_pod {
            command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
            command.env("KUBERNETES_SERVICE_PORT", "1");
        }
        let output = command.output().expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), stderr)
    };
    let (success, stderr) = check(&[], None, false);
    assert!(!success);
    assert_contains(
        &stderr,
        &[
            &format!("the current context \"prd\" is not in the kubeconfig {default:?}"),
            "; its contexts are: prod, old; did you mean \"prod\"?",
        ],
    );
    let (success, stderr) = check(&["--context=old"], None, false);
    assert!(!success);
    assert_contains(
        &stderr,
        &[&format!(
            "the context \"old\" of the kubeconfig {default:?}: it names no cluster"
        )],
    );
    assert!(check(&["--context=prod"], None, true).0);
    let list = format!("/nonexistent:{listed}:{default}");
    let (success, stderr) = check(&[], Some(&list), true);
    assert!(success, "{stderr}");
    let (success, stderr) = check(&[], Some("/nonexistent"), false);
    assert!(!success);
    assert_contains(&stderr, &["none of the files in $KUBECONFIG exists"]);
    // In a pod, the default path does not count.
    let (success, stderr) = check(&[], None, true);
    assert!(!success);
    assert_contains(&stderr, &["the service account of the pod cannot be used"]);
}

#[test]
fn serve_help_says_that_addresses_of_pods_have_to_be_reachable() {
    let output = run(&["serve", "--help"]);
    assert_contains(
        &String::from_utf8_lossy(&output.stdout),
        &["$KUBECONFIG", "~/.kube/config", "it needs a route to them"],
    );
}

/// A directory of manifests without objects or callers, and with an object that is defined twice.
#[test]
fn check_warns_of_manifests_that_serve_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let manifests = format!("--manifests-dir={}", directory.path().display());
    let check = |arguments: &[&str]| {
        let output = run(&[&["check", "--load", &manifests], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_contains(
        &check(&[]),
        &[
            "the directory of manifests has no *.yaml, *.yml or *.json files",
            "no caller can authenticate: set source.manifests.tokenAuthFile",
        ],
    );
    write(
        directory.path(),
        "a.yaml",
        "kind: Deployment\nmetadata: {name: d}\n",
    );
    assert_contains(
        &check(&[]),
        &[
            "the manifests contain no Node, Pod, Service or EndpointSlice",
            "0 role bindings, 1 of unused kinds",
        ],
    );
    let pod = "kind: Pod\nmetadata: {name: p}\n";
    write(directory.path(), "b.yaml", &format!("{pod}---\n{pod}"));
    let stderr = check(&["--anonymous-auth"]);
    assert_contains(
        &stderr,
        &[
            "Pod \"p\" of the namespace \"default\" is defined twice",
            "b.yaml\", line 1",
            "line 4; using the last definition",
            "0 nodes, 1 pods",
            "1 duplicates",
        ],
    );
    assert!(
        !stderr.contains("no caller") && !stderr.contains("contain no"),
        "{stderr}"
    );
}

#[test]
fn names_line_field_and_value_of_an_invalid_configuration() {
    assert_contains(
        &failure(&["serve", "--config=/nonexistent"]),
        &["cannot read the configuration file \"/nonexistent\""],
    );
    let directory = tempfile::tempdir().expect("a directory");
    let file = write(
        directory.path(),
        "bad.yaml",
        &format!("{HEAD}serving:\n  workers: many\n"),
    );
    let stderr = failure(&["check", "--config", &file]);
    assert_contains(
        &stderr,
        &[
            &file,
            ":4:12: serving.workers: \"many\" is not a valid count",
            "whole number",
        ],
    );
    let file = write(
        directory.path(),
        "typo.yaml",
        &format!("{HEAD}servign: {{}}\n"),
    );
    assert_contains(
        &failure(&["check", "--config", &file]),
        &[":3:1: servign: unknown field", "serving"],
    );
}

/// Without `--load`, `check` reads no file but the configuration. With it, `check` is as strict as
/// `serve`, except for ports.
#[test]
fn check_loads_referenced_files_with_load_only() {
    let missing = [
        "--tls-cert-file=/nonexistent",
        "--tls-private-key-file=/nonexistent",
    ];
    let output = run(&[&["check", "--kubeconfig=/nonexistent"], &missing[..]].concat());
    assert!(output.status.success());
    assert_contains(
        &String::from_utf8_lossy(&output.stderr),
        &["referenced files were not checked", "--load"],
    );
    assert_contains(
        &failure(&[&["check", "--load"], &missing[..]].concat()),
        &["certificates from \"/nonexistent\""],
    );

    let directory = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!(
        "--secure-listen-address={}",
        taken.local_addr().expect("bound")
    );
    let manifests = format!("--manifests-dir={}", directory.path().display());
    let output = run(&["check", "--load", &manifests, &address]);
    assert!(output.status.success(), "{output:?}");
    assert_contains(
        &String::from_utf8_lossy(&output.stderr),
        &[
            "the files that it names were loaded",
            "the directory of manifests has no *.yaml, *.yml or *.json files",
            "manifests: 0 nodes, 0 pods, 0 services, 0 endpointslices, 0 roles, 0 role bindings",
        ],
    );
    let binding = "kind: ClusterRoleBinding\nmetadata: {name: b}\n\
                   roleRef: {kind: ClusterRole, name: missing}\n---\n\
                   kind: Service\nmetadata: {name: web}\n";
    write(directory.path(), "objects.yaml", binding);
    let output = run(&["check", "--load", &manifests, &address]);
    assert_contains(
        &String::from_utf8_lossy(&output.stderr),
        &[
            "ClusterRoleBinding \"b\" grants nothing: ClusterRole \"missing\" does not exist",
            "1 services, 0 endpointslices, 0 roles, 1 role bindings",
        ],
    );
    assert_contains(
        &String::from_utf8_lossy(&output.stdout),
        &["type: manifests"],
    );

    // A credential plugin of the kubeconfig may prompt the user, so it is not run.
    let kubeconfig = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                      contexts: [{name: c, context: {cluster: c, user: u}}]\n\
                      clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n\
                      users: [{name: u, user: {exec: {command: 'false', interactiveMode: Never, \
                      apiVersion: client.authentication.k8s.io/v1}}}]\n";
    let kubeconfig = write(directory.path(), "kubeconfig", kubeconfig);
    let output = run(&["check", "--load", "--kubeconfig", &kubeconfig]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn check_prints_the_effective_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = write(
        directory.path(),
        "good.yaml",
        &format!("{HEAD}serving: {{workers: 3}}\n"),
    );
    let output = run(&["check", "--config", &file, "--log-level=debug"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success());
    assert_contains(
        &printed,
        &[
            "workers: 3",
            "level: debug",
            "cacheTTL: 10s",
            "secureListenAddress: 0.0.0.0:8443",
        ],
    );
    // The output is a valid configuration.
    let again = write(directory.path(), "again.yaml", &printed);
    assert_eq!(
        String::from_utf8_lossy(&run(&["check", "--config", &again]).stdout),
        printed
    );
}

type Variables<'a> = &'a [(&'a str, &'a str)];

/// Flags override the environment, and the environment overrides the file.
#[test]
fn source_flags_override_environment_and_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let manifests =
        "source: {type: manifests, manifests: {directory: of-file, tokenAuthFile: of-file.csv}}\n";
    let manifests = &*write(
        directory.path(),
        "manifests.yaml",
        &format!("{HEAD}{manifests}"),
    );
    let kubernetes = "source: {kubernetes: {kubeconfig: of-file, context: of-file}}\n";
    let kubernetes = &*write(
        directory.path(),
        "kubernetes.yaml",
        &format!("{HEAD}{kubernetes}"),
    );
    let context = [("KUBE_BASTION_CONTEXT", "c")];
    let by_environment = [
        ("KUBE_BASTION_MANIFESTS_DIR", "m"),
        ("KUBE_BASTION_TOKEN_AUTH_FILE", "t"),
    ];
    let kubeconfig = [("KUBE_BASTION_KUBECONFIG", "k")];
    let both = [
        ("KUBE_BASTION_MANIFESTS_DIR", "m"),
        ("KUBE_BASTION_KUBECONFIG", "k"),
    ];
    let cases: &[(&[&str], Variables<'_>, [&str; 5])] = &[
        (
            &["--config", manifests],
            &[],
            ["manifests", "null", "null", "of-file", "of-file.csv"],
        ),
        (
            &["--config", manifests, "--kubeconfig=k"],
            &[],
            ["kubernetes", "k", "null", "null", "null"],
        ),
        (
            &["--config", manifests],
            &kubeconfig,
            ["kubernetes", "k", "null", "null", "null"],
        ),
        (
            &["--config", kubernetes, "--context=c"],
            &[],
            ["kubernetes", "of-file", "c", "null", "null"],
        ),
        (
            &["--config", kubernetes],
            &context,
            ["kubernetes", "of-file", "c", "null", "null"],
        ),
        (
            &["--config", kubernetes, "--manifests-dir=m"],
            &[],
            ["manifests", "null", "null", "m", "null"],
        ),
        (
            &["--config", manifests, "--manifests-dir=m"],
            &[],
            ["manifests", "null", "null", "m", "of-file.csv"],
        ),
        (
            &["--config", manifests, "--token-auth-file=t"],
            &context,
            ["manifests", "null", "null", "of-file", "t"],
        ),
        (
            &["--kubeconfig=k"],
            &by_environment,
            ["kubernetes", "k", "null", "null", "null"],
        ),
        (
            &["--manifests-dir=m"],
            &kubeconfig,
            ["manifests", "null", "null", "m", "null"],
        ),
        (
            &["--kubeconfig=line"],
            &both,
            ["kubernetes", "line", "null", "null", "null"],
        ),
        (
            &[],
            &by_environment,
            ["manifests", "null", "null", "m", "t"],
        ),
    ];
    for (line, environment, expected) in cases {
        let output = command(&[&["check"], *line].concat())
            .envs(environment.iter().copied())
            .output()
            .expect("it runs");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let source = printed.split("\nsource:\n").nth(1).unwrap_or_default();
        let fields = [
            "type",
            "kubeconfig",
            "context",
            "directory",
            "tokenAuthFile",
        ]
        .map(|field| {
            let value = source
                .lines()
                .find_map(|line| line.trim().strip_prefix(field)?.strip_prefix(": "));
            value.unwrap_or("absent")
        });
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(fields, *expected, "{line:?} {environment:?}\n{stderr}");
    }
    let output = command(&["check"]).envs(both).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert_contains(
        &stderr,
        &[
            "--kubeconfig cannot be used with --manifests-dir",
            "environment variables",
        ],
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

/// Maximum time that a test waits for an event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A bastion that serves an empty directory on free ports.
struct Running {
    child: Child,
    _manifests: TempDir,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let manifests = tempfile::tempdir().expect("a directory");
        let directory = format!("--manifests-dir={}", manifests.path().display());
        Self::serve(&[&[&*directory], arguments].concat(), manifests)
    }

    fn serve(arguments: &[&str], manifests: TempDir) -> Self {
        let mut command = command(&[&["serve"], arguments].concat());
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        Self {
            child,
            _manifests: manifests,
        }
    }
}

impl Running {
    /// Returns the lines of standard error. They end with the process.
    fn events(&mut self) -> Receiver<String> {
        let events = BufReader::new(self.child.stderr.take().expect("stderr is piped")).lines();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            events
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        receiver
    }

    fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(self.child.id().try_into().expect("a pid")),
            signal,
        )
        .expect("it runs");
    }
}

/// Waits for the next event that contains `part`.
fn wait_for_event(events: &Receiver<String>, part: &str) -> String {
    loop {
        let line = events
            .recv_timeout(EVENT_TIMEOUT)
            .unwrap_or_else(|_| panic!("no event with {part:?}"));
        if line.contains(part) {
            return line;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Clients can only verify a self-signed certificate by its fingerprint, so it is logged on one
/// line at every level.
#[test]
fn logs_the_fingerprint_of_a_self_signed_certificate_at_every_level() {
    for level in ["off", "error", "info", "kube_bastion=off"] {
        for format in ["text", "json"] {
            let mut running = Running::start(&[
                &format!("--log-level={level}"),
                &format!("--logging-format={format}"),
            ]);
            let line = wait_for_event(&running.events(), "self-signed");
            let fingerprint = if format == "json" {
                let event: serde_json::Value =
                    serde_json::from_str(&line).expect("an event is JSON");
                event["sha256"].as_str().expect("a fingerprint").to_owned()
            } else {
                line.split('"').nth(1).expect("a fingerprint").to_owned()
            };
            assert_eq!(fingerprint.split(':').count(), 32, "{line}");
        }
    }
}

/// Standard output is a full pipe without a reader.
#[test]
fn exits_while_access_log_has_no_reader() {
    let mut running = Running::start(&[
        "--insecure-listen-address=127.0.0.1:0",
        "--drain-timeout=1s",
    ]);
    let events = running.events();
    let line = wait_for_event(&events, "insecure=");
    let (_, address) = line.split_once("insecure=").expect("it is there");
    // 512 lines with 256 bytes of path each: at least twice the 64 KiB that a pipe buffers.
    let request = format!(
        "GET /{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "x".repeat(1024)
    );
    for _ in 0..512 {
        let mut connection = TcpStream::connect(address).expect("it accepts");
        connection.write_all(request.as_bytes()).expect("it reads");
        let mut response = String::new();
        connection
            .read_to_string(&mut response)
            .expect("it responds");
        // 401, or 503 before the manifests are loaded: either is logged.
        assert!(response.starts_with("HTTP/1.1 "), "{response}");
    }
    running.signal(Signal::SIGTERM);
    wait_for_event(&events, "the last lines of the access log are lost");
    let ended = loop {
        match events.recv_timeout(EVENT_TIMEOUT) {
            Ok(_) => {}
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended, RecvTimeoutError::Disconnected, "it still runs");
    assert!(running.child.wait().expect("a child").success());
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

#[test]
fn help_has_examples_defaults_and_environment_variables() {
    let help = String::from_utf8_lossy(&run(&["--help"]).stdout).into_owned();
    assert_contains(
        &help,
        &[
            "serve",
            "demo",
            "check",
            "Try it without a cluster",
            "curl --cacert",
        ],
    );
    let help = String::from_utf8_lossy(&run(&["serve", "--help"]).stdout).into_owned();
    assert_contains(
        &help,
        &[
            "--kubeconfig <FILE>",
            "[env: KUBE_BASTION_KUBECONFIG=]",
            "[default: 0.0.0.0:8443]",
            "Precedence of settings",
            "docs/reference.md",
        ],
    );
}
