//! Packages from npm and `PyPI` for clients and applications. Their versions and hashes are those
//! of the lock files in `tests/clients`; they are installed in folders of `target/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::support::program::find_program;

/// Installs the packages of `tests/clients/NAME/package-lock.json`, unless they are, beside copies
/// of the programs in that folder. Returns the folder of both.
pub fn npm(name: &str) -> Result<PathBuf> {
    let (source, folder) = folders(name);
    std::fs::create_dir_all(&folder)?;
    for entry in std::fs::read_dir(&source)? {
        let path = entry?.path();
        if path.is_file() {
            std::fs::copy(
                &path,
                folder.join(path.file_name().context("it has a name")?),
            )?;
        }
    }
    let npm = find_program(&["npm"], "on Debian, apt-get install npm")?;
    let mut command = Command::new(npm);
    command
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(&folder);
    install(&source.join("package-lock.json"), &folder, &mut command)?;
    Ok(folder)
}

/// Installs the packages of `tests/clients/NAME/requirements.txt`, unless they are. Returns their
/// folder, which is a `PYTHONPATH`.
pub fn pip(name: &str) -> Result<PathBuf> {
    let (source, folder) = folders(name);
    // Streamlit expects this name.
    let packages = folder.join("site-packages");
    let requirements = source.join("requirements.txt");
    let mut command = Command::new(python()?);
    command
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args([
            "--root-user-action",
            "ignore",
            "--require-hashes",
            "--no-deps",
        ])
        .args(["--only-binary", ":all:", "--upgrade", "--target"])
        .arg(&packages)
        .arg("--requirement")
        .arg(&requirements);
    install(&requirements, &packages, &mut command)?;
    Ok(packages)
}

/// Finds Python.
pub fn python() -> Result<PathBuf> {
    find_program(
        &["python3"],
        "install Python 3.11 or later with pip; on Debian, apt-get install python3-pip",
    )
}

/// Finds Node.
pub fn node() -> Result<PathBuf> {
    find_program(
        &["node"],
        "install Node 18 or later; on Debian, apt-get install nodejs",
    )
}

fn folders(name: &str) -> (PathBuf, PathBuf) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    (
        root.join("tests/clients").join(name),
        root.join("target/clients").join(name),
    )
}

/// Runs an installation, unless the one in `folder` was of an equal lock file.
fn install(lock: &Path, folder: &Path, command: &mut Command) -> Result<()> {
    let lock = std::fs::read(lock)?;
    let installed = folder.join("installed-lock");
    if std::fs::read(&installed).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} cannot install packages in {}:\n{}",
        folder.display(),
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
    );
    std::fs::write(installed, lock)?;
    Ok(())
}
