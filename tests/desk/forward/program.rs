//! The running command `forward`, and its local connections.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::eventually;
use crate::support::net::PROXY_ENVIRONMENT;
use crate::support::program::Program;

/// Maximum time of a step, on a busy machine.
const STEP_TIMEOUT: Duration = Duration::from_mins(1);

/// Running command with its local ports.
pub struct Forward {
    pub program: Program,
    pub ports: Vec<SocketAddr>,
}

impl Forward {
    /// Starts the command with arguments for `count` free ports, and waits for them.
    pub async fn start(kubeconfig: &Path, count: usize, arguments: &[&str]) -> Result<Self> {
        Self::run(command(kubeconfig, arguments), count).await
    }

    /// As [`Self::start`], with room for about 30 connections: a limit of open files.
    pub async fn start_with_few_files(kubeconfig: &Path, arguments: &[&str]) -> Result<Self> {
        let inner = command(kubeconfig, arguments);
        let mut limited = Command::new("bash");
        limited.args(["-c", "ulimit -n 40; exec \"$@\"", "bash"]);
        limited.arg(inner.get_program()).args(inner.get_args());
        limited.envs(PROXY_ENVIRONMENT);
        Self::run(limited, 1).await
    }

    async fn run(mut command: Command, count: usize) -> Result<Self> {
        let mut program = Program::start(&mut command)?;
        let mut ports = Vec::new();
        // The lines of all ports are written together, that of the last one at the end.
        program.wait_for_line("Forwarding from 127.0.0.1:").await?;
        eventually("the lines of all ports", async || {
            let lines = program.output();
            let lines = lines
                .iter()
                .filter_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:"));
            ports = lines
                .map(|line| line.split(' ').next().unwrap_or_default().parse::<u16>())
                .collect::<Result<Vec<_>, _>>()?;
            Ok(ports.len() == count)
        })
        .await
        .with_context(|| program.output().join("\n"))?;
        let ports = ports.into_iter();
        let ports = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Ok(Self {
            ports: ports.collect(),
            program,
        })
    }

    /// Connects clients until the program has no file for another. Some of them wait.
    pub async fn use_up_files(&mut self) -> Result<Vec<TcpStream>> {
        let mut clients = Vec::new();
        for _ in 0..60 {
            clients.push(self.connect(0).await?);
        }
        let program = &mut self.program;
        program
            .wait_for_line("raise the limit of open files")
            .await?;
        Ok(clients)
    }

    /// Connects to the port with a number, from 0.
    pub async fn connect(&self, port: usize) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.ports[port]).await?)
    }

    /// Expects that a new connection is reset, which may be before it is used.
    pub async fn expect_refusal(&self, port: usize) -> Result<()> {
        match TcpStream::connect(self.ports[port]).await {
            Ok(mut stream) => expect_reset(&mut stream).await,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until at least `count` lines contain a text, and checks that no more do. Threads read
    /// the output.
    pub async fn expect_count(&self, text: &str, count: usize) -> Result<()> {
        eventually(text, async || Ok(self.count(text) >= count))
            .await
            .with_context(|| self.program.output().join("\n"))?;
        let found = self.count(text);
        let output = self.program.output();
        ensure!(found == count, "{found} times {text:?}: {output:?}");
        Ok(())
    }

    /// Returns the number of lines that contain a text.
    pub fn count(&self, text: &str) -> usize {
        let output = self.program.output();
        output.iter().filter(|line| line.contains(text)).count()
    }
}

/// Returns the command. Its kubeconfig is an argument before those of a program to run.
pub fn command(kubeconfig: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
    command
        .arg("forward")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
        .envs(PROXY_ENVIRONMENT);
    command
}

/// Runs the command to its end, which must be an error of one line.
pub fn fail(kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
    let output = command(kubeconfig, arguments).output()?;
    let error = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(1),
        "{}: {error}",
        output.status
    );
    // Without the warning that credentials are not sent to http:// URLs.
    let lines = error.lines();
    let count = lines
        .filter(|line| !line.starts_with("warning: http://"))
        .count();
    ensure!(count == 1, "{error}");
    ensure!(output.stdout.is_empty(), "{:?}", output.stdout);
    Ok(error)
}

/// Writes a kubeconfig of a server. `rest` belongs to the cluster.
pub fn kubeconfig(folder: &Path, server: &str, rest: &str) -> Result<PathBuf> {
    let file = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: '{server}'{rest}}}}}]
users: [{{name: u, user: {{token: secret}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"
    );
    std::fs::write(&file, text)?;
    Ok(file)
}

/// Sends a text and expects it back.
pub async fn echo(stream: &mut TcpStream, text: &str) -> Result<()> {
    let mut answer = vec![0; text.len()];
    within(async {
        stream.write_all(text.as_bytes()).await?;
        Ok(stream.read_exact(&mut answer).await?)
    })
    .await?;
    ensure!(answer == text.as_bytes(), "{answer:?}");
    Ok(())
}

/// Reads to the end of a connection.
pub async fn read_to_end(stream: &mut TcpStream) -> Result<String> {
    let mut text = String::new();
    within(async { Ok(stream.read_to_string(&mut text).await?) }).await?;
    Ok(text)
}

/// Limits a step, so that a stall fails instead of hanging.
pub async fn within<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
    let step = tokio::time::timeout(STEP_TIMEOUT, step);
    step.await.context("no end of a step")?
}

/// Expects that a connection is reset.
pub async fn expect_reset(stream: &mut TcpStream) -> Result<()> {
    let mut rest = Vec::new();
    let read = within(async { Ok(stream.read_to_end(&mut rest).await) }).await?;
    let error = read.err();
    let error = error.with_context(|| format!("it ended after {rest:?}"))?;
    ensure!(
        error.kind() == std::io::ErrorKind::ConnectionReset,
        "{error}"
    );
    Ok(())
}
