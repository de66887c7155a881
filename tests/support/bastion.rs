//! The bastion as users run it: the binary, in a process of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::get_plain;
use super::eventually;
use super::net::PROXY_ENVIRONMENT;

/// A running bastion. Dropping it kills it.
pub struct Bastion {
    child: Child,
    pub secure: SocketAddr,
    pub admin: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Bastion {
    /// Starts `serve` with free ports of loopback and waits until it serves; not until it is ready.
    ///
    /// # Errors
    /// Where it ends instead, with what it said.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
        command.arg("serve").args(arguments);
        Self::run(command)
    }

    /// The same for a command that ends in the bastion's own.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn run(mut command: Command) -> Result<Self> {
        let mut child = command
            .args([
                "--secure-listen-address=127.0.0.1:0",
                "--admin-listen-address=127.0.0.1:0",
            ])
            .arg("--logging-format=json")
            .envs(PROXY_ENVIRONMENT)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("stderr is piped")?).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        loop {
            let Some(line) = lines.next().transpose()? else {
                let said = log.lock().expect("nobody panics with the log").join("\n");
                bail!("the bastion ended ({}) and said:\n{said}", child.wait()?);
            };
            log.lock()
                .expect("nobody panics with the log")
                .push(line.clone());
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "serving" {
                let address = |key: &str| -> Result<SocketAddr> {
                    Ok(event[key].as_str().unwrap_or_default().parse()?)
                };
                let (secure, admin) = (address("secure")?, address("admin")?);
                let kept = Arc::clone(&log);
                std::thread::spawn(move || {
                    lines.map_while(Result::ok).for_each(|line| {
                        kept.lock().expect("nobody panics with the log").push(line);
                    });
                });
                return Ok(Self {
                    child,
                    secure,
                    admin,
                    log,
                });
            }
        }
    }

    pub async fn ready(&self) -> Result<()> {
        eventually("the bastion to be ready", async || {
            Ok(get_plain(self.admin, "/readyz").await?.0 == 200)
        })
        .await
    }

    pub async fn readyz(&self) -> Result<(u16, String)> {
        get_plain(self.admin, "/readyz").await
    }

    pub async fn metrics(&self) -> Result<String> {
        Ok(get_plain(self.admin, "/metrics").await?.1)
    }

    pub fn said(&self) -> String {
        self.log
            .lock()
            .expect("nobody panics with the log")
            .join("\n")
    }

    /// Bytes of memory that it holds.
    pub fn resident(&self) -> Result<usize> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let pages: usize = statm
            .split_whitespace()
            .nth(1)
            .context("statm has seven fields")?
            .parse()?;
        Ok(pages * 4096)
    }

    /// The most bytes of memory that it has held since [`Self::forget_peak`].
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn peak(&self) -> Result<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("the kernel keeps a peak")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? * 1024)
    }

    /// Begins a new peak with what it holds now.
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn forget_peak(&self) -> Result<()> {
        const PEAK: &str = "5";
        Ok(std::fs::write(
            format!("/proc/{}/clear_refs", self.child.id()),
            PEAK,
        )?)
    }

    /// Open file descriptors.
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

impl Drop for Bastion {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
