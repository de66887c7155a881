//! A `PostgreSQL` server of Debian's package.

use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::net::Namespace;
use super::pki::Pair;
use super::program::{Program, command_in_namespace, find_program};

pub const POSTGRES_PORT: u16 = 5432;

/// User and group `nobody`, because `PostgreSQL` refuses to run as root.
const NOBODY: u32 = 65534;

/// `PostgreSQL` with TLS, and without passwords. [`Self::stop`] lets it remove its shared memory.
pub struct Postgres {
    pub address: Ipv4Addr,
    program: Program,
    _folder: TempDir,
}

impl Postgres {
    /// Starts a server with an empty database and the certificate `tls`.
    ///
    /// # Errors
    /// Returns an error if it is not installed or does not start.
    pub async fn start(namespace: &Namespace, address: Ipv4Addr, tls: &Pair) -> Result<Self> {
        let binaries = postgres_binaries()?;
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        chown(folder.path(), Some(NOBODY), Some(NOBODY))?;
        std::fs::copy(&tls.certificate, at("tls.crt"))?;
        std::fs::copy(&tls.key, at("tls.key"))?;
        std::fs::write(at("hba.conf"), "host all all all trust\n")?;
        for name in ["tls.crt", "tls.key", "hba.conf"] {
            chown(at(name), Some(NOBODY), Some(NOBODY))?;
            std::fs::set_permissions(at(name), PermissionsExt::from_mode(0o600))?;
        }
        let mut command = Command::new("setpriv");
        as_nobody(&mut command, &binaries.join("initdb"));
        let output = command
            .args(["--username=postgres", "--auth=trust", "--no-sync"])
            .args(["--no-locale", "--encoding=UTF8", "--pgdata=data"])
            .current_dir(folder.path())
            .output()
            .context("cannot run setpriv: on Debian, apt-get install util-linux")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "initdb: {error}");

        let mut command = command_in_namespace(namespace, Path::new("setpriv"));
        as_nobody(&mut command, &binaries.join("postgres"));
        command.args(["-D", "data"]).current_dir(folder.path());
        for setting in [
            format!("listen_addresses={address}"),
            format!("port={POSTGRES_PORT}"),
            "unix_socket_directories=".into(),
            "fsync=off".into(),
            "ssl=on".into(),
            "ssl_cert_file=../tls.crt".into(),
            "ssl_key_file=../tls.key".into(),
            format!("hba_file={}", at("hba.conf").display()),
        ] {
            command.arg("-c").arg(setting);
        }
        let mut program = Program::start(&mut command)?;
        program.wait_for_line("ready to accept connections").await?;
        Ok(Self {
            address,
            program,
            _folder: folder,
        })
    }

    /// Ends the server and its connections.
    pub async fn stop(mut self) -> Result<()> {
        // A fast shutdown.
        self.program.signal(Signal::SIGINT)?;
        self.program.finish().await
    }
}

fn as_nobody(command: &mut Command, program: &Path) {
    command
        .arg(format!("--reuid={NOBODY}"))
        .arg(format!("--regid={NOBODY}"))
        .arg("--clear-groups")
        .arg(program)
        .env("LC_ALL", "C");
}

/// Returns the folder of the server's programs, which Debian does not have in the `PATH`.
fn postgres_binaries() -> Result<PathBuf> {
    let help = "on Debian, apt-get install postgresql";
    if let Ok(postgres) = find_program(&["postgres"], help) {
        return Ok(postgres.parent().context("a folder")?.into());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").with_context(|| help)?;
    let mut folders: Vec<PathBuf> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|folder| folder.join("postgres").is_file())
        .collect();
    folders.sort();
    folders.pop().context(help)
}
