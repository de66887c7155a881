//! Programs that run beside a test, and their output.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{eventually, within};

/// Maximum time for a program to exit, on a busy machine.
const EXIT_TIMEOUT: Duration = Duration::from_mins(2);

/// Maximum time of [`Program::wait_for_line`].
const LINE_TIMEOUT: Duration = Duration::from_secs(30);

/// Running program. Dropping it kills the process.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    name: String,
}

impl Program {
    /// Starts a program. Its standard input is open until [`Self::finish`].
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = Path::new(command.get_program()).display().to_string();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let (out, err) = (child.stdout.take(), child.stderr.take());
        gather(out.context("stdout is piped")?, &lines);
        gather(err.context("stderr is piped")?, &lines);
        Ok(Self { child, lines, name })
    }

    /// Lines of standard output and standard error so far.
    pub fn output(&self) -> Vec<String> {
        self.lines
            .lock()
            .expect("no thread panics with the lines")
            .clone()
    }

    /// Waits for a line that contains `text` and returns it.
    ///
    /// # Errors
    /// Returns an error with the output if there is none in time or the program exits.
    pub async fn wait_for_line(&mut self, text: &str) -> Result<String> {
        self.wait_for_line_within(LINE_TIMEOUT, text).await
    }

    /// Waits as [`Self::wait_for_line`], for at most `timeout`.
    ///
    /// # Errors
    /// As [`Self::wait_for_line`].
    pub async fn wait_for_line_within(&mut self, timeout: Duration, text: &str) -> Result<String> {
        let mut found = None;
        let what = format!("{text:?} in the output of {}", self.name);
        let waited = within(timeout, &what, async || {
            let exited = self.child.try_wait()?;
            found = self.output().into_iter().find(|line| line.contains(text));
            // Its last lines may still be in the pipes when it has exited.
            Ok(found.is_some()
                || (exited.is_some() && {
                    self.settle().await;
                    true
                }))
        });
        let waited = waited.await;
        let found = found.or_else(|| self.output().into_iter().find(|line| line.contains(text)));
        waited
            .and_then(|()| found.context("the program exited"))
            .with_context(|| self.report())
    }

    /// Writes to its standard input. Ignores that the program has closed it or exited.
    ///
    /// # Errors
    /// Returns other errors of the write.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input is closed")?;
        match input.write_all(bytes) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    /// Closes its input and waits for it to exit successfully.
    ///
    /// # Errors
    /// Returns an error with the output if it does not.
    pub async fn finish(&mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let mut status: Option<ExitStatus> = None;
        within(
            EXIT_TIMEOUT,
            &format!("{} to exit", self.name),
            async || {
                status = self.child.try_wait()?;
                Ok(status.is_some())
            },
        )
        .await
        .with_context(|| self.report())?;
        self.settle().await;
        ensure!(
            status.is_some_and(|status| status.success()),
            "{}",
            self.report()
        );
        Ok(())
    }

    fn report(&self) -> String {
        let output = self.output();
        let last = output.len().saturating_sub(40);
        format!(
            "the last output of {}:\n{}",
            self.name,
            output[last..].join("\n")
        )
    }

    /// Waits until the reader threads have read the pipes to their end. Each holds a reference to
    /// the lines until then.
    async fn settle(&self) {
        let _ = eventually("the end of the pipes", async || {
            Ok(Arc::strong_count(&self.lines) == 1)
        })
        .await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a command in a network namespace. `ip` executes the program in its own process, so
/// signals reach it.
pub fn command_in_namespace(namespace: &super::net::Namespace, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace.name()])
        .arg(program);
    command
}

/// Finds a program in the `PATH`.
///
/// # Errors
/// Returns an error that names what to install if it is missing.
pub fn find_program(names: &[&str], help: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    candidates
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{} is not in the PATH: {help}", names.join(" or ")))
}

fn gather(pipe: impl std::io::Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            lines
                .lock()
                .expect("no thread panics with the lines")
                .push(line);
        }
    });
}
