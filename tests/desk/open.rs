//! `kube-bastion open`: what browsers send to its listener, and what targets receive.

#[path = "open/api_server.rs"]
mod api_server;
#[path = "open/bastion.rs"]
mod bastion;
#[path = "open/pods.rs"]
mod pods;
#[path = "open/port_forward.rs"]
mod port_forward;
#[path = "open/renewal.rs"]
mod renewal;
#[path = "open/servers.rs"]
mod servers;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::eventually;
use crate::support::net::PROXY_ENVIRONMENT;
use crate::support::test_bed::read_all;

/// Running command.
struct Open {
    child: Child,
    port: u16,
    stdout: String,
    stderr: Arc<Mutex<String>>,
}

impl Open {
    /// Starts the command and waits for its URLs.
    fn start(kubeconfig: &Path, arguments: &[&str]) -> Result<Self> {
        Self::with(kubeconfig, arguments, &[("SSH_CONNECTION", "1")])
    }

    fn with(kubeconfig: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let mut child = command(kubeconfig, arguments)
            .envs(environment.iter().copied())
            .spawn()?;
        let stderr = Arc::<Mutex<String>>::default();
        let mut errors = BufReader::new(child.stderr.take().context("a pipe")?);
        let written = Arc::clone(&stderr);
        std::thread::spawn(move || {
            let mut line = String::new();
            while errors.read_line(&mut line).is_ok_and(|length| length > 0) {
                written
                    .lock()
                    .expect("no thread panics with it")
                    .push_str(&std::mem::take(&mut line));
            }
        });
        let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let mut stdout = String::new();
        let targets = arguments
            .iter()
            .filter(|argument| argument.contains('/') && !argument.starts_with("--"))
            .count();
        for _ in 0..targets {
            let Some(line) = lines.next().transpose()? else {
                bail!(
                    "it ended: {}",
                    stderr.lock().expect("no thread panics with it")
                );
            };
            stdout += &format!("{line}\n");
        }
        // Read further, so that the process can write.
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        let port = stdout.rsplit_once(".localhost:").context("a URL")?.1;
        let port = port.trim_end().trim_end_matches('/').parse()?;
        Ok(Self {
            child,
            port,
            stdout,
            stderr,
        })
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn stderr(&self) -> String {
        self.stderr
            .lock()
            .expect("no thread panics with it")
            .clone()
    }

    async fn prints(&self, text: &str) -> Result<()> {
        eventually(&format!("{text:?} on stderr"), async || {
            Ok(self.stderr().contains(text))
        })
        .await
        .with_context(|| self.stderr())
    }

    /// Sends a request for a host; `lines` end with CRLF. `PORT` stands for the port.
    async fn send(&self, line: &str, host: &str, lines: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address()).await?;
        let head = format!("{line} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n");
        let head = head.replace("PORT", &self.port.to_string());
        stream.write_all(head.as_bytes()).await?;
        Ok(stream)
    }

    /// Sends a request, and returns the complete response.
    async fn response(&self, line: &str, host: &str, lines: &str) -> Result<String> {
        let lines = format!("Connection: close\r\n{lines}");
        Ok(read_all(&mut self.send(line, host, &lines).await?).await)
    }

    /// Sends a POST, and returns the complete response.
    async fn post(&self, path: &str, body: &str) -> Result<String> {
        let lines = format!("Connection: close\r\nContent-Length: {}\r\n", body.len());
        let line = format!("POST {path}");
        let mut stream = self.send(&line, "127.0.0.1:PORT", &lines).await?;
        stream.write_all(body.as_bytes()).await?;
        Ok(read_all(&mut stream).await)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(kubeconfig: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    command
        .arg("open")
        .args(arguments)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .envs(PROXY_ENVIRONMENT)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the command to its end, which must be an error.
fn fail(kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
    let Output { status, stderr, .. } = command(kubeconfig, arguments).output()?;
    ensure!(status.code() == Some(1), "{status}");
    Ok(String::from_utf8(stderr)?)
}

/// Writes a kubeconfig of a server. `rest` belongs to the cluster.
fn kubeconfig(folder: &Path, server: &str, rest: &str, token: &str) -> Result<std::path::PathBuf> {
    let file = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: '{server}'{rest}}}}}]
users: [{{name: u, user: {{{token}}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"
    );
    std::fs::write(&file, text)?;
    Ok(file)
}
