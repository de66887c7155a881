//! The demo: its printed curl commands, and its end by Ctrl-C.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command of the guide after its assignments of variables.
fn sh(guide: &str, line: &str) -> String {
    let is_assignment = |line: &&str| {
        let name = line.split_once('=').map(|(name, _)| name);
        name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_uppercase()))
    };
    let mut script: Vec<&str> = guide.lines().filter(is_assignment).collect();
    let line = line.replacen("curl ", "curl -sS ", 1);
    script.push(&line);
    let output = Command::new("sh")
        .args(["-c", &script.join("\n")])
        .output()
        .expect("a shell");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn printed_commands_return_documented_results() {
    let mut demo = Demo(
        Command::new(env!("CARGO_BIN_EXE_kube-bastion"))
            .args([
                "demo",
                "--secure-listen-address=127.0.0.1:0",
                "--admin-listen-address=127.0.0.1:0",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the demo starts"),
    );
    let mut output = BufReader::new(demo.0.stdout.take().expect("stdout is piped"));
    let mut guide = String::new();
    while !guide.contains("Requests are logged below.") {
        assert!(
            output
                .read_line(&mut guide)
                .expect("the demo prints its guide")
                > 0,
            "the demo ended:\n{guide}"
        );
    }
    let lines: Vec<&str> = guide
        .lines()
        .filter(|line| line.starts_with("curl "))
        .collect();
    let [
        web,
        secure,
        whoami,
        pod,
        node,
        guest,
        no_port,
        readyz,
        metrics,
    ] = *lines
    else {
        panic!("{lines:?}")
    };
    let sh = |line: &str| sh(&guide, line);

    // The guide is printed once the ports are bound, a moment before the manifests are loaded.
    let ready = (0..300).any(|_| {
        let ready = sh(readyz).ends_with("readyz check passed\n");
        if !ready {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        ready
    });
    assert!(ready, "{}", sh(readyz));
    let mut hellos: Vec<String> = (0..3).map(|_| sh(web)).collect();
    hellos.sort();
    assert_eq!(
        hellos,
        [
            "hello from web-1\n",
            "hello from web-2\n",
            "hello from web-3\n"
        ]
    );
    assert_eq!(sh(secure), "hello from secure-1 over TLS\n");
    let received = sh(whoami);
    assert!(
        received.starts_with("GET /a%2Fb?c=d\n") && !received.contains("demo-token"),
        "{received}"
    );
    assert_eq!(sh(pod), "hello from web-2\n");
    assert_eq!(sh(node), "ok from the kubelet of node-a\n");
    let forbidden = sh(guest);
    assert!(
        forbidden.contains("\"code\": 403")
            && forbidden.contains("guest")
            && forbidden.contains("cannot get"),
        "{forbidden}"
    );
    let unknown_port = sh(no_port);
    assert!(
        unknown_port.contains("\"code\": 503") && unknown_port.contains("ServicePort"),
        "{unknown_port}"
    );
    let metrics = sh(metrics);
    assert!(
        metrics
            .contains(r#"kube_bastion_requests_total{kind="service",method="GET",code="403"} 1"#),
        "{metrics}"
    );

    let directory = guide
        .split_whitespace()
        .find(|word| word.ends_with("/manifests:"))
        .expect("the directory is printed");
    let directory = Path::new(directory.trim_end_matches(':'));
    assert!(directory.exists());
    let pid = Pid::from_raw(demo.0.id().try_into().expect("a process id"));
    kill(pid, Signal::SIGINT).expect("Ctrl-C");
    assert!(demo.0.wait().expect("it ends").success());
    assert!(!directory.exists(), "the demo removes its directory");
    let mut log = String::new();
    while output.read_line(&mut log).expect("the log ends") > 0 {}
    assert!(
        log.contains(r#"resource=services namespace="demo" name="web""#)
            && log.contains(r#"endpointName="web-2""#)
            && !log.contains("demo-token"),
        "{log}"
    );
}
