//! Processes of the peers: start, CPU time, memory.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::support::bastion::Bastion;

/// Process of a peer. Dropping it ends the process, except for kube-apiserver's.
pub enum Process {
    Server(Server),
    Bastion(Box<Bastion>),
    /// Owned by the cluster.
    Apiserver(u32),
}

impl Process {
    /// Returns the process ids, workers included.
    pub fn ids(&self) -> Vec<u32> {
        match self {
            Self::Server(server) => server.ids(),
            Self::Bastion(bastion) => vec![bastion.pid()],
            Self::Apiserver(id) => vec![*id],
        }
    }
}

/// Server that ends on drop with its workers.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    /// Starts a server without output.
    ///
    /// # Errors
    /// Returns an error with the command if it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = format!("cannot run {command:?}");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Self)
            .context(name)
    }

    fn ids(&self) -> Vec<u32> {
        let parent = self.0.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
            .unwrap_or_default();
        children
            .split_whitespace()
            .filter_map(|id| id.parse().ok())
            .chain([parent])
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for id in self.ids() {
            let _ = Command::new("kill").arg(id.to_string()).status();
        }
        let _ = self.0.wait();
    }
}

/// CPU time in µs.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    pub user: f64,
    pub system: f64,
}

impl CpuTime {
    /// Returns the CPU time of processes so far, with a resolution of 10 ms.
    ///
    /// # Errors
    /// Returns an error if one of them has exited.
    pub fn of(ids: &[u32]) -> Result<Self> {
        let (mut user, mut system) = (0, 0);
        for id in ids {
            let stat = fs::read_to_string(format!("/proc/{id}/stat"))
                .with_context(|| format!("process {id} has exited"))?;
            let (_, fields) = stat.rsplit_once(')').context("a stat line")?;
            let fields: Vec<&str> = fields.split_whitespace().collect();
            user += fields[11].parse::<u32>()?;
            system += fields[12].parse::<u32>()?;
        }
        Ok(Self {
            user: f64::from(user) * 1e4,
            system: f64::from(system) * 1e4,
        })
    }

    /// Returns the CPU time that processes have used since `self`, for each of `count` operations.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn spent(self, ids: &[u32], count: f64) -> Result<Self> {
        let now = Self::of(ids)?;
        Ok(Self {
            user: (now.user - self.user) / count,
            system: (now.system - self.system) / count,
        })
    }

    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

/// Returns the resident memory of processes in KiB. Memory that they share is counted more than
/// once.
///
/// # Errors
/// Returns an error if one of them has exited.
pub fn resident_kib(ids: &[u32]) -> Result<f64> {
    let mut sum = 0;
    for id in ids {
        let status = fs::read_to_string(format!("/proc/{id}/status"))
            .with_context(|| format!("process {id} has exited"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text = line.context("the kernel reports resident memory")?;
        sum += text.trim().trim_end_matches(" kB").parse::<u32>()?;
    }
    Ok(f64::from(sum))
}
