//! Runs of callgrind, and its output files.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Allocating functions of jemalloc and of the C library. Functions that only free are not counted.
const ALLOCATORS: [&str; 8] = [
    "_rjem_malloc",
    "_rjem_mallocx",
    "_rjem_calloc",
    "_rjem_realloc",
    "_rjem_rallocx",
    "malloc",
    "calloc",
    "realloc",
];

/// Part of the name of functions that only a worker thread calls.
const WORKER: &str = "kube_bastion::app::worker::serve::";

/// Makes the C library copy and fill memory in loops. callgrind counts `rep movsb`, which processors
/// with the feature ERMS use for large copies, as one instruction per byte.
const TUNABLES: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1000000000:glibc.cpu.x86_rep_stosb_threshold=1000000000";

/// Counts of one thread from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub instructions: u64,
    pub allocations: u64,
}

/// Returns a command that runs `binary` in callgrind, which writes its files to `folder` when the
/// process ends.
pub fn command(binary: &Path, folder: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--quiet", "--separate-threads=yes"])
        // Each name is complete, so that the lines need no context.
        .args(["--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}/out", folder.display()))
        .arg(binary)
        .env("GLIBC_TUNABLES", TUNABLES);
    command
}

/// Returns the counts of the only worker thread.
///
/// # Errors
/// Returns an error if no file, or more than one, is a worker's.
pub fn read_worker(folder: &Path) -> Result<Counts> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let text = std::fs::read_to_string(entry?.path())?;
        if text.contains(WORKER) {
            found.push(read(&text)?);
        }
    }
    ensure!(
        found.len() == 1,
        "{} threads call {WORKER}…, expected the one of the worker",
        found.len()
    );
    Ok(found[0])
}

fn read(text: &str) -> Result<Counts> {
    let instructions = text
        .lines()
        .find_map(|line| line.strip_prefix("summary:"))
        .context("callgrind writes a summary")?
        .trim()
        .parse()?;
    let (mut callee, mut allocations) = ("", 0);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("cfn=") {
            callee = name;
        } else if let Some(calls) = line.strip_prefix("calls=")
            && ALLOCATORS.contains(&callee)
        {
            let count = calls.split(' ').next().context("a number of calls")?;
            allocations += count.parse::<u64>()?;
        }
    }
    ensure!(
        allocations > 0,
        "no call of an allocator is recorded; is the binary stripped?"
    );
    Ok(Counts {
        instructions,
        allocations,
    })
}

#[test]
fn counts_calls_of_allocators_only() -> Result<()> {
    let text = "events: Ir\nsummary: 1234\n\nfn=a\n1 5\ncfn=_rjem_malloc\ncalls=3 9\n1 60\n\
                cfn=_rjem_sdallocx\ncalls=5 9\n1 7\ncfn=b\ncalls=9 9\n1 8\nfn=b\ncfn=_rjem_malloc\ncalls=4 1\n";
    let expected = Counts {
        instructions: 1234,
        allocations: 7,
    };
    assert_eq!(read(text)?, expected);
    Ok(())
}
