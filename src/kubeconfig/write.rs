//! Changes of kubeconfig files, under the lock file of client-go.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum time to wait for another process that changes the file. client-go holds its lock for the
/// time of one write.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Reason why a kubeconfig was not changed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(
        "the kubeconfig {path:?} is locked by another process; if none changes it, remove {lock:?}"
    )]
    Locked { path: PathBuf, lock: PathBuf },
    #[error("cannot write the kubeconfig {path:?}")]
    Write { path: PathBuf, source: io::Error },
}

/// Lock of a kubeconfig: a file beside it that exists while the lock is held.
#[derive(Debug)]
pub struct Lock(PathBuf);

impl Lock {
    /// Waits up to two seconds for the lock. Blocks the thread.
    ///
    /// # Errors
    /// Another process holds the lock, or the file cannot be created.
    pub fn acquire(path: &Path) -> Result<Self, WriteError> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match OpenOptions::new().write(true).create_new(true).open(&lock) {
                Ok(_) => return Ok(Self(lock)),
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(WriteError::Write {
                        path: path.into(),
                        source: error,
                    });
                }
                Err(_) if Instant::now() >= deadline => {
                    return Err(WriteError::Locked {
                        path: path.into(),
                        lock,
                    });
                }
                #[expect(clippy::disallowed_methods, reason = "not on a thread with requests")]
                Err(_) => thread::sleep(LOCK_INTERVAL),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Replaces the contents of a kubeconfig by a rename, so that readers see the old or the new
/// contents. Keeps the permissions of the file; a new one is readable by its owner only. Symlinks
/// stay.
///
/// # Errors
/// The directory cannot be written.
pub fn replace(path: &Path, text: &str) -> Result<(), WriteError> {
    let write = || {
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Its mode is 0600.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        if let Ok(metadata) = fs::metadata(&target) {
            file.as_file().set_permissions(metadata.permissions())?;
        }
        file.as_file().sync_all()?;
        file.persist(&target)?;
        Ok(())
    };
    write().map_err(|source| WriteError::Write {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_lock_of_a_file_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let lock = Lock::acquire(&path).unwrap();
        assert!(folder.path().join("config.lock").exists());
        let error = Lock::acquire(&path).unwrap_err().to_string();
        assert!(error.contains("config.lock"), "{error}");
        drop(lock);
        assert!(!folder.path().join("config.lock").exists());
        drop(Lock::acquire(&path).unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn replaces_contents_behind_a_symlink_and_keeps_the_mode() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("config"), folder.path().join("link"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        replace(&path, "a").unwrap();
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("config", &link).unwrap();
        replace(&link, "b").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        assert_eq!(mode(&path), 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
