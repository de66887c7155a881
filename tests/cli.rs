//! Bad input, each with its clear answer, as a person at the command line gets it.

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
        .env("HOME", "/nonexistent");
    if arguments.first() == Some(&"serve") {
        // A start that fails late has bound its ports by then; the default ones may be in use on
        // this machine.
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

/// What the bastion says where it refuses to start.
fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} was accepted");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("the folder takes a file");
    path.display().to_string()
}

fn assert_told(said: &str, told: &[&str]) {
    for word in told {
        assert!(said.contains(word), "{word:?} is missing in:\n{said}");
    }
}

const HEAD: &str = "apiVersion: kube-bastion.dev/v1alpha1\nkind: BastionConfiguration\n";

#[test]
fn without_a_cluster_it_says_what_to_give() {
    assert_told(
        &refused(&["serve"]),
        &[
            "no --kubeconfig is given",
            "--kubeconfig=FILE",
            "source.type: manifests",
        ],
    );
    assert_told(
        &refused(&["serve", "--kubeconfig=/nonexistent"]),
        &["the kubeconfig \"/nonexistent\" cannot be used"],
    );
}

#[test]
fn a_bad_configuration_is_told_by_line_field_and_value() {
    assert_told(
        &refused(&["serve", "--config=/nonexistent"]),
        &["cannot read the configuration file \"/nonexistent\""],
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = write(
        folder.path(),
        "bad.yaml",
        &format!("{HEAD}serving:\n  workers: many\n"),
    );
    let said = refused(&["check", "--config", &file]);
    assert_told(
        &said,
        &[
            &file,
            "line 4",
            "workers: many",
            "\"many\" is not a count",
            "whole number",
        ],
    );
    let file = write(
        folder.path(),
        "typo.yaml",
        &format!("{HEAD}servign: {{}}\n"),
    );
    assert_told(
        &refused(&["check", "--config", &file]),
        &["line 3", "unknown field `servign`", "serving"],
    );
}

/// By itself it looks at no file but the configuration's; `--load` is as strict as a start, but for
/// the ports.
#[test]
fn check_loads_what_is_named_where_it_is_asked_to() {
    let nowhere = [
        "--tls-cert-file=/nonexistent",
        "--tls-private-key-file=/nonexistent",
    ];
    let output = run(&[&["check", "--kubeconfig=/nonexistent"], &nowhere[..]].concat());
    assert!(output.status.success());
    assert_told(
        &String::from_utf8_lossy(&output.stderr),
        &["are not checked", "check --load"],
    );
    assert_told(
        &refused(&[&["check", "--load"], &nowhere[..]].concat()),
        &["certificates from \"/nonexistent\""],
    );

    let folder = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!(
        "--secure-listen-address={}",
        taken.local_addr().expect("bound")
    );
    let manifests = format!("--manifests-dir={}", folder.path().display());
    let output = run(&["check", "--load", &manifests, &address]);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    assert_told(
        &String::from_utf8_lossy(&output.stdout),
        &["type: manifests"],
    );

    // A plugin of the kubeconfig may ask somebody for a credential: it is not run.
    let kubeconfig = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                      contexts: [{name: c, context: {cluster: c, user: u}}]\n\
                      clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: \
                      {exec: {apiVersion: client.authentication.k8s.io/v1, command: 'false', interactiveMode: Never}}}]\n";
    let kubeconfig = write(folder.path(), "kubeconfig", kubeconfig);
    let output = run(&["check", "--load", "--kubeconfig", &kubeconfig]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn check_prints_what_would_be_in_effect() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = write(
        folder.path(),
        "good.yaml",
        &format!("{HEAD}serving: {{workers: 3}}\n"),
    );
    let output = run(&["check", "--config", &file, "--log-level=debug"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success());
    assert_told(
        &printed,
        &[
            "workers: 3",
            "level: debug",
            "cacheTTL: 10s",
            "secureListenAddress: 0.0.0.0:8443",
        ],
    );
    // What it prints is a configuration itself.
    let again = write(folder.path(), "again.yaml", &printed);
    assert_eq!(
        String::from_utf8_lossy(&run(&["check", "--config", &again]).stdout),
        printed
    );
}

type Variables<'a> = &'a [(&'a str, &'a str)];

/// The line decides over the environment, and the environment over the file.
#[test]
fn the_source_is_the_one_named_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifests =
        "source: {type: manifests, manifests: {directory: of-file, tokenAuthFile: of-file.csv}}\n";
    let manifests = &*write(
        folder.path(),
        "manifests.yaml",
        &format!("{HEAD}{manifests}"),
    );
    let kubernetes = "source: {kubernetes: {kubeconfig: of-file, context: of-file}}\n";
    let kubernetes = &*write(
        folder.path(),
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
            value.unwrap_or("nothing")
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(fields, *expected, "{line:?} {environment:?}\n{said}");
    }
    let output = command(&["check"]).envs(both).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert_told(
        &said,
        &[
            "--kubeconfig cannot be used with --manifests-dir",
            "environment variables",
        ],
    );
}

#[test]
fn a_taken_port_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let said = refused(&[
        "serve",
        "--manifests-dir",
        &folder.path().display().to_string(),
        "--secure-listen-address",
        &address,
    ]);
    assert_told(
        &said,
        &[
            &address,
            "secureListenAddress",
            "is another process there?",
            "in use",
        ],
    );
}

#[test]
fn a_key_that_is_not_the_certificates_is_told() {
    kube_bastion::tls::install_provider();
    let folder = tempfile::tempdir().expect("a folder");
    let made =
        || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (one, other) = (made(), made());
    let certificate = write(folder.path(), "tls.crt", &one.cert.pem());
    let key = write(folder.path(), "tls.key", &other.signing_key.serialize_pem());
    let with = |certificate: &str, key: &str| {
        let (certificate, key) = (
            format!("--tls-cert-file={certificate}"),
            format!("--tls-private-key-file={key}"),
        );
        refused(&[
            "serve",
            "--manifests-dir",
            &folder.path().display().to_string(),
            &certificate,
            &key,
        ])
    };
    assert_told(
        &with(&certificate, &key),
        &["does not belong to the certificate", &certificate, &key],
    );
    assert_told(
        &with("/nonexistent", &key),
        &["cannot read certificates from \"/nonexistent\""],
    );
    let empty = write(folder.path(), "empty.crt", "nothing\n");
    assert_told(&with(&empty, &key), &["holds no certificate", &empty]);
    assert_told(&with(&certificate, &empty), &["a private key", &empty]);
}

/// What a start that fails says holds its cause once: neither lost nor repeated by what the error
/// came from.
#[test]
fn a_bad_start_says_its_cause_once() {
    kube_bastion::tls::install_provider();
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| write(folder.path(), name, text);
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).expect("a folder");
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
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
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
        (vec![], "environment variable not found"),
        (alone("config", "/nonexistent"), absent),
        (alone("kubeconfig", "/nonexistent"), absent),
        (alone("kubeconfig", &no_yaml), "error: line 1 column 4"),
        (alone("kubeconfig", &no_key), absent),
        (
            [alone("kubeconfig", &good), alone("context", "other")].concat(),
            "other",
        ),
        (alone("manifests-dir", "/nonexistent"), absent),
        (with("token-auth-file", "/nonexistent"), absent),
        (with("token-auth-file", &tokens), "line 1"),
        (tls("/nonexistent", &key), absent),
        (tls(&certificate, "/nonexistent"), absent),
        (tls(&certificate, &key), "KeyMismatch"),
        (tls(&certificate, &certificate), "no items found"),
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
        // What files hold, `check --load` finds too. Ports it does not try.
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
            let said = refused(&line);
            if said.matches(cause).count() != 1 {
                wrong.push(format!("{line:?} should say {cause:?} once:\n{said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(5);

/// A bastion that serves an empty folder, on ports of its own.
struct Running {
    child: Child,
    _manifests: TempDir,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let manifests = tempfile::tempdir().expect("a folder");
        let directory = format!("--manifests-dir={}", manifests.path().display());
        let mut command = command(&[&["serve", &*directory], arguments].concat());
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
    /// Its events, line by line. They end with the process.
    fn events(&mut self) -> Receiver<String> {
        let events = BufReader::new(self.child.stderr.take().expect("stderr is piped")).lines();
        let (told, received) = channel();
        std::thread::spawn(move || {
            events
                .map_while(Result::ok)
                .try_for_each(|line| told.send(line))
        });
        received
    }

    fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(self.child.id().try_into().expect("a pid")),
            signal,
        )
        .expect("it runs");
    }
}

/// The next event that holds `what`.
fn told(events: &Receiver<String>, what: &str) -> String {
    loop {
        let line = events
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("{what:?} is not told"));
        if line.contains(what) {
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

/// Nobody can verify a self-signed certificate but by its fingerprint: it is told on one line,
/// whatever the level is.
#[test]
fn the_fingerprint_of_a_self_signed_certificate_is_always_told() {
    for level in ["off", "error", "info", "kube_bastion=off"] {
        for format in ["text", "json"] {
            let mut running = Running::start(&[
                &format!("--log-level={level}"),
                &format!("--logging-format={format}"),
            ]);
            let line = told(&running.events(), "self-signed");
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

/// Standard output is a full pipe: the end comes all the same.
#[test]
fn an_access_log_that_nobody_reads_does_not_hold_up_the_end() {
    let mut running = Running::start(&[
        "--insecure-listen-address=127.0.0.1:0",
        "--drain-timeout=1s",
    ]);
    let events = running.events();
    let line = told(&events, "insecure=");
    let (_, address) = line.split_once("insecure=").expect("it is there");
    // At least 128 KiB of lines, of which each has 256 bytes of path: twice what a pipe holds.
    let request = format!(
        "GET /{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "x".repeat(1024)
    );
    for _ in 0..512 {
        let mut connection = TcpStream::connect(address).expect("it accepts");
        connection.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("it answers");
        // 401, or 503 before the manifests are in: either is a line.
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    }
    running.signal(Signal::SIGTERM);
    told(&events, "the last lines of the access log are lost");
    let ended = loop {
        match events.recv_timeout(PATIENCE) {
            Ok(_) => {}
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended, RecvTimeoutError::Disconnected, "it still runs");
    assert!(running.child.wait().expect("a child").success());
}

#[test]
fn broken_manifests_stop_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = write(
        folder.path(),
        "pod.yaml",
        "kind: Pod\nmetadata: {name: p}\nstatus: {podIPs: [{ip: x}]}\n",
    );
    let said = refused(&[
        "serve",
        "--manifests-dir",
        &folder.path().display().to_string(),
    ]);
    assert_told(&said, &[&file, "Pod \"p\"", "malformed"]);
}

#[test]
fn help_teaches() {
    let help = String::from_utf8_lossy(&run(&["--help"]).stdout).into_owned();
    assert_told(
        &help,
        &["serve", "demo", "check", "First look", "kubectl --server"],
    );
    let help = String::from_utf8_lossy(&run(&["serve", "--help"]).stdout).into_owned();
    assert_told(
        &help,
        &[
            "--kubeconfig <FILE>",
            "[env: KUBE_BASTION_KUBECONFIG=]",
            "[default: 0.0.0.0:8443]",
        ],
    );
}
