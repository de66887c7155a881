//! Files that change while the bastion runs.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often files are looked at. Mounted Secrets change by a symlink swap, which a watch on the
/// file would miss.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tells when the content of any of some files, or of the files of some folders, has changed.
#[derive(Debug)]
pub struct FileWatch {
    paths: Vec<PathBuf>,
    seen: u64,
}

impl FileWatch {
    /// Takes the content as it is now as seen.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let seen = digest(&paths);
        Self { paths, seen }
    }

    /// Waits for the next change. A change that comes while nobody waits is found at the next call.
    pub async fn changed(&mut self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let paths = self.paths.clone();
            let now = tokio::task::spawn_blocking(move || digest(&paths))
                .await
                .unwrap_or(self.seen);
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}

/// Content, not times: a symlink swap may keep them, and a copy may bring old ones.
fn digest(paths: &[PathBuf]) -> u64 {
    let mut hash = DefaultHasher::new();
    for path in paths {
        let Ok(folder) = std::fs::read_dir(path) else {
            hash_file(path, &mut hash);
            continue;
        };
        let mut files: Vec<_> = folder
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        files.iter().for_each(|file| hash_file(file, &mut hash));
    }
    hash.finish()
}

fn hash_file(path: &Path, hash: &mut DefaultHasher) {
    path.hash(hash);
    std::fs::read(path).ok().hash(hash);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_symlink_swap_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        std::fs::write(&old, "1").unwrap();
        std::fs::write(&new, "2").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&old, &link).unwrap();
        let mut watch = FileWatch::new(vec![link.clone()]);
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&new, &link).unwrap();
        watch.changed().await;
    }
}
