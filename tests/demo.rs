//! The demo as a newcomer takes it: started, its curl lines pasted, ended by Ctrl-C.

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

fn sh(line: &str) -> String {
    let line = line.replacen("curl ", "curl -sS ", 1);
    let output = Command::new("sh")
        .args(["-c", &line])
        .output()
        .expect("a shell");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn the_printed_lines_show_what_they_say() {
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
            output.read_line(&mut guide).expect("the demo speaks") > 0,
            "the demo ended:\n{guide}"
        );
    }
    let lines: Vec<&str> = guide
        .lines()
        .filter(|line| line.starts_with("curl "))
        .collect();
    let [web, secure, whoami, pod, node, guest, readyz, metrics] = *lines else {
        panic!("{lines:?}")
    };

    // It is printed as soon as the ports are open, which is a moment before the manifests are in.
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
    assert_eq!(sh(secure), "hello from secure-1, over TLS\n");
    let seen = sh(whoami);
    assert!(
        seen.starts_with("GET /a%2Fb?c=d\n") && !seen.contains("demo-token"),
        "{seen}"
    );
    assert_eq!(sh(pod), "hello from web-2\n");
    assert_eq!(sh(node), "ok, says the kubelet of node-a\n");
    let forbidden = sh(guest);
    assert!(
        forbidden.contains("\"code\": 403")
            && forbidden.contains("guest")
            && forbidden.contains("cannot get"),
        "{forbidden}"
    );
    let metrics = sh(metrics);
    assert!(
        metrics
            .contains(r#"kube_bastion_requests_total{kind="service",method="GET",code="403"} 1"#),
        "{metrics}"
    );

    let folder = guide
        .split_whitespace()
        .find(|word| word.ends_with("/manifests:"))
        .expect("the folder is named");
    let folder = Path::new(folder.trim_end_matches(':'));
    assert!(folder.exists());
    let pid = Pid::from_raw(demo.0.id().try_into().expect("a pid"));
    kill(pid, Signal::SIGINT).expect("Ctrl-C");
    assert!(demo.0.wait().expect("it ends").success());
    assert!(!folder.exists(), "the demo leaves nothing behind");
    let mut log = String::new();
    while output.read_line(&mut log).expect("the log ends") > 0 {}
    assert!(
        log.contains(r#"target="services/demo/web""#)
            && log.contains(r#"endpoint-name="web-2""#)
            && !log.contains("demo-token"),
        "{log}"
    );
}
