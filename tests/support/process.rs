//! A backend as a separate process, which can be stopped with SIGSTOP and continued. While it is
//! stopped, the kernel still accepts its connections and acknowledges bytes.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpSocket;

use super::backend;
use super::net::Namespace;
use super::program::command_in_namespace;

/// Environment variable of the child: the address to listen on.
const ADDRESS: &str = "KUBE_BASTION_TEST_BACKEND";
/// Environment variable of the child: its name.
const NAME: &str = "KUBE_BASTION_TEST_BACKEND_NAME";

/// Running backend. Dropping it kills the process.
#[derive(Debug)]
pub struct BackendProcess {
    child: Child,
    address: SocketAddr,
}

impl BackendProcess {
    /// Runs this test binary again as a backend in the namespace. Its `main` must call
    /// [`serve_if_child`].
    ///
    /// # Errors
    /// Returns an error if it does not start.
    pub fn start(namespace: &Namespace, last: u8, port: u16, name: &str) -> Result<Self> {
        let address = SocketAddr::from((namespace.address(last), port));
        let mut command = command_in_namespace(namespace, &std::env::current_exe()?);
        command
            .env(ADDRESS, address.to_string())
            .env(NAME, name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start a backend")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
        let process = Self { child, address };
        ensure!(
            line.contains("listening"),
            "the backend at {address} did not start: {line:?}"
        );
        Ok(process)
    }

    /// Stops the process.
    ///
    /// # Errors
    /// Returns an error if it has exited.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Continues the process.
    ///
    /// # Errors
    /// Returns an error if it has exited.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Number of connections with unread bytes. While the process is stopped, each HTTP/1.1
    /// connection with unread bytes is a waiting request.
    ///
    /// # Errors
    /// Returns an error if the socket table of the kernel cannot be read.
    pub fn waiting(&self) -> Result<usize> {
        const ESTABLISHED: &str = "01";
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.child.id()))?;
        let own = format!(
            "{:08X}:{:04X}",
            u32::from_ne_bytes(octets(self.address)),
            self.address.port()
        );
        let waits = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, queues, ..] = *fields else {
                return false;
            };
            let unread = queues
                .split_once(':')
                .and_then(|(_, unread)| u32::from_str_radix(unread, 16).ok());
            local == own && state == ESTABLISHED && unread.is_some_and(|unread| unread > 0)
        };
        Ok(table.lines().skip(1).filter(waits).count())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }
}

impl Drop for BackendProcess {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves as a backend and does not return if [`BackendProcess::start`] started this process.
///
/// # Errors
/// Returns an error if it cannot listen.
pub fn serve_if_child() -> Result<()> {
    let Ok(address) = std::env::var(ADDRESS) else {
        return Ok(());
    };
    let name: Arc<str> = std::env::var(NAME)?.into();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address.parse()?)?;
        // The kernel drops connections that a stopped process does not accept once the queue is
        // full.
        let listener = socket.listen(4096)?;
        println!("listening");
        std::io::stdout().flush()?;
        backend::accept(listener, name, Arc::default(), None).await;
        Ok(())
    })
}

fn octets(address: SocketAddr) -> [u8; 4] {
    match address {
        SocketAddr::V4(address) => address.ip().octets(),
        SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED.octets(),
    }
}
