//! Passes the git commit and the version of the compiler to `src/cli/version.rs`.
//!
//! The commit is that of `KUBE_BASTION_COMMIT`, for builds without the repository (the Dockerfile
//! sets it), else for release builds that of the repository. Other builds do not look it up: each
//! commit would compile the crate anew.

use std::env;
use std::path::Path;
use std::process::Command;

/// Files and directories that make up the binary, without which a change is not noticed.
const SOURCES: [&str; 4] = ["src", "build.rs", "Cargo.toml", "Cargo.lock"];

fn main() {
    println!("cargo::rerun-if-env-changed=KUBE_BASTION_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let given = env::var("KUBE_BASTION_COMMIT").ok();
    let commit = given.filter(|commit| !commit.is_empty()).or_else(|| {
        let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
        is_release.then(commit_of_repository).flatten()
    });
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=KUBE_BASTION_COMMIT={commit}");
    let rustc = env::var("RUSTC").ok();
    let rustc = rustc.and_then(|rustc| output(&rustc, &["--version"]));
    let rustc = rustc.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=KUBE_BASTION_RUSTC={rustc}");
}

/// Returns the commit of the repository, with `-modified` if the sources differ from it.
fn commit_of_repository() -> Option<String> {
    let directory = env::var("CARGO_MANIFEST_DIR").ok()?;
    // The sources of an archive may have been unpacked inside of another repository.
    let root = output("git", &["rev-parse", "--show-toplevel"])?;
    if Path::new(&root).canonicalize().ok()? != Path::new(&directory).canonicalize().ok()? {
        return None;
    }
    let reference = output("git", &["rev-parse", "--symbolic-full-name", "HEAD"])?;
    for name in ["HEAD", "packed-refs", &reference] {
        let path = output("git", &["rev-parse", "--git-path", name])?;
        // A path that does not exist would run this script at each build.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    for path in SOURCES {
        println!("cargo::rerun-if-changed={path}");
    }
    let commit = output("git", &["rev-parse", "HEAD"])?;
    let is_modified = !Command::new("git")
        .args(["diff", "--quiet", "HEAD", "--"])
        .args(SOURCES)
        .status()
        .ok()?
        .success();
    let suffix = if is_modified { "-modified" } else { "" };
    Some(format!("{commit}{suffix}"))
}

/// Returns the first line that a command prints. `None` if it fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}
