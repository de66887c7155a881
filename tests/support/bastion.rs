//! The bastion as a separate process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::get_plain;
use super::eventually;
use super::net::PROXY_ENVIRONMENT;

/// Running bastion. Dropping it kills the process.
pub struct Bastion {
    child: Child,
    pub secure: SocketAddr,
    pub admin: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    /// Thread that reads the log to its end.
    reader: Option<JoinHandle<()>>,
}

impl Bastion {
    /// Starts `serve` on free loopback ports and waits until it listens, which may be before it is
    /// ready.
    ///
    /// # Errors
    /// Returns an error with the log if the process exits.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-bastion"));
        command.arg("serve").args(arguments);
        Self::run(command)
    }

    /// Starts a command that runs `serve`, with the arguments of [`Self::start`] appended.
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
                let log = log
                    .lock()
                    .expect("no thread panics with the log")
                    .join("\n");
                bail!("the bastion exited ({}); its log:\n{log}", child.wait()?);
            };
            log.lock()
                .expect("no thread panics with the log")
                .push(line.clone());
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if event["msg"] == "serving" {
                let address = |key: &str| -> Result<SocketAddr> {
                    Ok(event[key].as_str().unwrap_or_default().parse()?)
                };
                let (secure, admin) = (address("secure")?, address("admin")?);
                let shared_log = Arc::clone(&log);
                let reader = std::thread::spawn(move || {
                    lines.map_while(Result::ok).for_each(|line| {
                        let mut log = shared_log.lock().expect("no thread panics with the log");
                        log.push(line);
                    });
                });
                return Ok(Self {
                    child,
                    secure,
                    admin,
                    log,
                    reader: Some(reader),
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

    pub fn log(&self) -> String {
        self.log
            .lock()
            .expect("no thread panics with the log")
            .join("\n")
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> Result<usize> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let pages: usize = statm
            .split_whitespace()
            .nth(1)
            .context("statm has seven fields")?
            .parse()?;
        Ok(pages * 4096)
    }

    /// Maximum resident memory since [`Self::reset_peak`], in bytes.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn peak(&self) -> Result<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("the kernel reports a peak")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? * 1024)
    }

    /// Resets the peak to the current resident memory.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn reset_peak(&self) -> Result<()> {
        /// Value of `clear_refs` that resets the peak (proc(5)).
        const RESET_PEAK: &str = "5";
        Ok(std::fs::write(
            format!("/proc/{}/clear_refs", self.child.id()),
            RESET_PEAK,
        )?)
    }

    /// Number of open file descriptors.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    /// Waits until the process has exited, after which [`Self::log`] is complete.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the thread does not panic");
        }
        Ok(status)
    }
}

impl Drop for Bastion {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
