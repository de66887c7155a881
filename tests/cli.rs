//! The command line: invalid input and its messages, `check`, and the life of the process.

#[path = "cli/certificates.rs"]
mod certificates;
#[path = "cli/check.rs"]
mod check;
#[path = "cli/log.rs"]
mod log;
#[path = "cli/messages.rs"]
mod messages;
#[path = "cli/start.rs"]
mod start;
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
fn serve_help_says_that_addresses_of_pods_have_to_be_reachable() {
    let output = run(&["serve", "--help"]);
    assert_contains(
        &String::from_utf8_lossy(&output.stdout),
        &["$KUBECONFIG", "~/.kube/config", "it needs a route to them"],
    );
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
