//! Command that uses the forwarded ports, and whose exit status is that of the process.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// Exit statuses of shells for a command that is not found, and for one that cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Signals that are passed to the command.
const FORWARDED: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGINT,
    Signal::SIGQUIT,
];

/// Failure to run a command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("cannot pass signals to the command: {0}")]
    Signals(io::Error),
    #[error("cannot wait for the command: {0}")]
    Wait(io::Error),
}

/// Runs a command to its end, with the standard streams of this process. Signals are passed on. The
/// ports are in its environment: `FORWARD_PORT_1` is the local port of the first forward.
///
/// # Errors
/// [`CommandError`]
pub async fn run(command: &[OsString], ports: &[u16]) -> Result<ExitCode, CommandError> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(ExitCode::SUCCESS);
    };
    let variables = ports.iter().enumerate();
    let variables =
        variables.map(|(index, port)| (format!("FORWARD_PORT_{}", index + 1), port.to_string()));
    let spawned = Command::new(program)
        .args(arguments)
        .envs(variables)
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let program = program.to_string_lossy();
            eprintln!("kube-bastion: cannot run {program:?}: {error}");
            return Ok(ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            }));
        }
    };
    let mut signals = tokio::task::JoinSet::new();
    for number in FORWARDED {
        if is_forwarded(number, io::stdin().is_terminal()) {
            signals.spawn(forward(number, pid(&child))?);
        } else {
            // Handled, so that it does not end this process before the command.
            signals.spawn(forward(number, None)?);
        }
    }
    let status = child.wait().await.map_err(CommandError::Wait)?;
    Ok(exit_code(status))
}

fn pid(child: &Child) -> Option<Pid> {
    let id = i32::try_from(child.id()?).ok()?;
    Some(Pid::from_raw(id))
}

/// A terminal sends the signals of its keys to the command itself.
fn is_forwarded(signal: Signal, has_terminal: bool) -> bool {
    !(has_terminal && matches!(signal, Signal::SIGINT | Signal::SIGQUIT))
}

fn forward(
    number: Signal,
    pid: Option<Pid>,
) -> Result<impl Future<Output = ()> + use<>, CommandError> {
    let mut received =
        signal(SignalKind::from_raw(number as i32)).map_err(CommandError::Signals)?;
    Ok(async move {
        while received.recv().await.is_some() {
            if let Some(pid) = pid {
                // Fails if the command has ended.
                let _ = kill(pid, number);
            }
        }
    })
}

/// Returns the exit status of a command as shells do: 128 + n after signal n.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or_default(),
    };
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_is_that_of_the_command_or_of_its_signal() {
        for (raw, expected) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (15, 143), (9, 137)] {
            let code = exit_code(ExitStatus::from_raw(raw));
            assert_eq!(code, ExitCode::from(expected), "{raw}");
        }
    }

    #[test]
    fn keys_of_a_terminal_are_not_forwarded_twice() {
        assert!(is_forwarded(Signal::SIGINT, false));
        assert!(!is_forwarded(Signal::SIGINT, true));
        assert!(is_forwarded(Signal::SIGTERM, true));
    }
}
