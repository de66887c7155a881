//! A demo as a process, its output, and requests to it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Path of the page.
pub const PAGE: &str = "/api/v1/namespaces/demo/services/dashboard/proxy/";
const WAIT: Duration = Duration::from_mins(1);

/// Running demo on free ports. Dropping it kills the process.
pub struct Demo {
    child: Child,
    pub guide: String,
    /// Address of the page.
    pub plain: SocketAddr,
    /// Lines of standard output after the guide, and of standard error.
    log: Arc<Mutex<String>>,
    /// Contains the directory of the demo, which a killed process does not remove.
    temporary: TempDir,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Demo {
    pub fn start(flags: &[&str]) -> Self {
        let temporary = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(env!("CARGO_BIN_EXE_kube-bastion"))
            .args([
                "demo",
                "--insecure-listen-address=127.0.0.1:0",
                "--secure-listen-address=127.0.0.1:0",
                "--admin-listen-address=127.0.0.1:0",
            ])
            .args(flags)
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the demo starts");
        let mut output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut guide = String::new();
        while !guide.contains("Changes are reported below.") {
            let read = output
                .read_line(&mut guide)
                .expect("the demo prints its guide");
            assert!(read > 0, "the demo ended:\n{guide}");
        }
        let log = Arc::<Mutex<String>>::default();
        gather(output, &log);
        gather(
            BufReader::new(child.stderr.take().expect("stderr is piped")),
            &log,
        );
        let link = line(&guide, "http://").trim_start_matches("http://");
        let (plain, path) = link.split_at(link.find('/').expect("the link has a path"));
        assert_eq!(path, PAGE);
        let plain = plain.parse().expect("the link has an address");
        let demo = Self {
            child,
            guide,
            plain,
            log,
            temporary,
        };
        // The guide is printed once the ports are bound, a moment before the manifests are loaded.
        eventually("the page", || demo.anonymous("GET", PAGE).0 == 200);
        demo
    }

    pub fn directory(&self) -> PathBuf {
        let file = line(&self.guide, ". ").trim_start_matches(". ");
        Path::new(file)
            .parent()
            .expect("the file is in a directory")
            .into()
    }

    /// Runs commands in a shell that has read the printed file.
    pub fn sh(&self, commands: &str) -> String {
        let output = Command::new("sh")
            .args(["-c", &format!("{}\n{commands}", line(&self.guide, ". "))])
            .output()
            .expect("a shell");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Sends a request without credentials to the plain port. Returns status and body.
    pub fn anonymous(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.plain).expect("the port is open");
        stream.set_read_timeout(Some(WAIT)).expect("a timeout");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.plain
        );
        stream
            .write_all(request.as_bytes())
            .expect("the request is sent");
        let mut response = Vec::new();
        stream
            .read_to_end(&mut response)
            .expect("the response ends");
        let response = String::from_utf8_lossy(&response);
        let (head, body) = response.split_once("\r\n\r\n").expect("a whole head");
        let status = head.split(' ').nth(1).expect("a status line");
        (status.parse().expect("a status"), body.into())
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("no reader panics").clone()
    }

    /// Sends SIGINT, and returns the log after the demo has exited and removed its files.
    pub fn stop(mut self) -> String {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        kill(pid, Signal::SIGINT).expect("Ctrl-C");
        assert!(self.child.wait().expect("it ends").success());
        eventually("the end of the pipes", || Arc::strong_count(&self.log) == 1);
        let mut left = fs::read_dir(self.temporary.path()).expect("the directory is readable");
        assert!(left.next().is_none(), "the demo has left files");
        self.log()
    }
}

fn gather(mut pipe: impl BufRead + Send + 'static, log: &Arc<Mutex<String>>) {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        let mut line = String::new();
        while pipe.read_line(&mut line).is_ok_and(|read| read > 0) {
            log.lock().expect("no test panics with it").push_str(&line);
            line.clear();
        }
    });
}

/// Returns the trimmed line of a text that begins with `start`.
pub fn line<'a>(text: &'a str, start: &str) -> &'a str {
    let mut lines = text.lines().map(str::trim);
    let found = lines.find(|line| line.starts_with(start));
    found.unwrap_or_else(|| panic!("no line begins with {start:?}:\n{text}"))
}

pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(poll(condition), "{what}");
}

/// Waits for a condition, and returns false if it is not met in time.
pub fn poll(mut condition: impl FnMut() -> bool) -> bool {
    let interval = Duration::from_millis(50);
    let attempts = WAIT.as_millis() / interval.as_millis();
    (0..attempts).any(|_| {
        condition() || {
            std::thread::park_timeout(interval);
            false
        }
    })
}

/// Returns the addresses of the process's listening sockets.
pub fn listening_addresses(demo: &Demo) -> Vec<IpAddr> {
    const LISTEN: &str = "0A";
    let process = format!("/proc/{}", demo.child.id());
    let inodes: Vec<String> = fs::read_dir(format!("{process}/fd"))
        .expect("descriptors")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?;
            Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table =
        |name: &str| fs::read_to_string(format!("{process}/net/{name}")).unwrap_or_default();
    let mut addresses = Vec::new();
    for row in [table("tcp"), table("tcp6")].join("\n").lines() {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = *columns else {
            continue;
        };
        if state != LISTEN || !inodes.iter().any(|own| own == inode) {
            continue;
        }
        let (address, _) = local.split_once(':').expect("address and port");
        let words: Vec<u8> = address
            .as_bytes()
            .chunks(8)
            .flat_map(|word| {
                let word = std::str::from_utf8(word).expect("hexadecimal digits");
                // The kernel prints words in the order of the machine.
                u32::from_str_radix(word, 16).expect("a word").to_ne_bytes()
            })
            .collect();
        addresses.push(match <[u8; 4]>::try_from(&*words) {
            Ok(v4) => v4.into(),
            Err(_) => <[u8; 16]>::try_from(&*words).expect("an address").into(),
        });
    }
    addresses
}
