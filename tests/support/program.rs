//! Programs that run beside a test, and what they say.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{eventually, within};

/// For a program to do all that it has to do, on a machine that has more to do.
const PATIENCE: Duration = Duration::from_mins(2);

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    name: String,
}

impl Program {
    /// Starts it. Standard input is open until [`Self::finish`].
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = Path::new(command.get_program()).display().to_string();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (out, err) = (child.stdout.take(), child.stderr.take());
        gather(out.context("stdout is piped")?, &said);
        gather(err.context("stderr is piped")?, &said);
        Ok(Self { child, said, name })
    }

    pub fn said(&self) -> Vec<String> {
        self.said
            .lock()
            .expect("nobody panics with the lines")
            .clone()
    }

    /// The first line with these words, once it is said.
    ///
    /// # Errors
    /// Where it is not, or the program ends without: the message holds what it said instead.
    pub async fn says(&mut self, words: &str) -> Result<String> {
        let mut found = None;
        let what = format!("{} to say {words:?}", self.name);
        let waited = eventually(&what, async || {
            let ended = self.child.try_wait()?;
            found = self.said().into_iter().find(|line| line.contains(words));
            // What it said last may still be on its way when it has ended.
            Ok(found.is_some()
                || (ended.is_some() && {
                    self.settle().await;
                    true
                }))
        });
        let waited = waited.await;
        let found = found.or_else(|| self.said().into_iter().find(|line| line.contains(words)));
        waited
            .and_then(|()| found.context("it ended"))
            .with_context(|| self.report())
    }

    /// Writes to its standard input. A program that has closed it, or has ended, does not mind.
    ///
    /// # Errors
    /// Where writing fails in another way.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self
            .child
            .stdin
            .as_mut()
            .context("its input has been ended")?;
        match input.write_all(bytes) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    /// Ends its input and waits for it to end well.
    ///
    /// # Errors
    /// Where it does not, with what it said.
    pub async fn finish(&mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let mut status: Option<ExitStatus> = None;
        within(PATIENCE, &format!("{} to end", self.name), async || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })
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
        let said = self.said();
        let last = said.len().saturating_sub(40);
        format!("{} said last:\n{}", self.name, said[last..].join("\n"))
    }

    /// Lets the readers come to the end of the pipes: each holds a share of the lines until then.
    async fn settle(&self) {
        let _ = eventually("the pipes to end", async || {
            Ok(Arc::strong_count(&self.said) == 1)
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

/// A command in a network namespace. `ip` ends in the command itself, so that signals reach it.
pub fn inside(namespace: &super::net::Namespace, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace.name()])
        .arg(program);
    command
}

/// Where a program is, by the PATH.
///
/// # Errors
/// Where it is not there, with what to install.
pub fn installed(names: &[&str], help: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    places
        .find(|place| place.is_file())
        .with_context(|| format!("no {} on the PATH: {help}", names.join(" or ")))
}

fn gather(pipe: impl std::io::Read + Send + 'static, said: &Arc<Mutex<Vec<String>>>) {
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            said.lock()
                .expect("nobody panics with the lines")
                .push(line);
        }
    });
}
