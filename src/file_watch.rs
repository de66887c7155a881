//! Detection of changed files at run time.
//!
//! Contents are compared, not modification times: a symlink swap may keep them, and a copy may
//! bring old ones. Contents are compared after events of the directories that the files are reached
//! through, and without events where a directory cannot be watched.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// Time between an event and the comparison. The events of one update, such as those of a
/// certificate and its key, arrive within it and cause one comparison; in a directory where other
/// files change all the time, it limits the comparisons.
const SETTLE_TIME: Duration = Duration::from_secs(1);
/// Interval of comparisons where a directory cannot be watched.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time between comparisons: network and some virtual file systems report no events for
/// changes by another host.
const SAFETY_INTERVAL: Duration = Duration::from_secs(30);

/// Detects changed contents of files, or of the files in directories.
#[derive(Debug)]
pub struct FileWatch {
    paths: Vec<PathBuf>,
    folders: Arc<Mutex<Folders>>,
    events: Arc<Notify>,
    /// True if events cover all paths.
    watched: bool,
    digest: u64,
    /// The contents have to be compared. Part of the state, so that a cancelled [`Self::changed`]
    /// does not lose an event.
    pending: bool,
}

impl FileWatch {
    /// Reads the current contents, with which later ones are compared.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let events = Arc::new(Notify::new());
        let folders = Mutex::new(Folders::new(Arc::clone(&events)));
        let (watched, digest) = read(&folders, &paths);
        Self {
            paths,
            folders: Arc::new(folders),
            events,
            watched,
            digest,
            pending: false,
        }
    }

    /// Waits for the next change since the previous call, or since [`Self::new`]. Cancel safe.
    pub async fn changed(&mut self) {
        loop {
            if !self.pending {
                let interval = if self.watched {
                    SAFETY_INTERVAL
                } else {
                    POLL_INTERVAL
                };
                let event = tokio::time::timeout(interval, self.events.notified()).await;
                self.pending = true;
                if event.is_ok() {
                    tokio::time::sleep(SETTLE_TIME).await;
                }
            }
            if self.compare().await {
                return;
            }
        }
    }

    /// Compares the contents with those of the previous call. Returns true if they differ.
    async fn compare(&mut self) -> bool {
        let (folders, paths) = (Arc::clone(&self.folders), self.paths.clone());
        let reading = tokio::task::spawn_blocking(move || read(&folders, &paths));
        // An error means that the runtime ends.
        let (watched, digest) = reading.await.unwrap_or((false, self.digest));
        self.pending = false;
        self.watched = watched;
        std::mem::replace(&mut self.digest, digest) != digest
    }
}

/// Watches the directories and reads the contents. Returns true if all directories are watched, and
/// the digest.
fn read(folders: &Mutex<Folders>, paths: &[PathBuf]) -> (bool, u64) {
    // Directories first, so that a change after the reading causes an event.
    let mut folders = folders.lock().unwrap_or_else(PoisonError::into_inner);
    (folders.watch(paths), digest(paths))
}

/// The directories that files are reached through. Directories are watched, not files: the rename
/// that swaps a symlink, as the kubelet does, is an event of the directory.
#[derive(Debug)]
struct Folders {
    /// `None` if the system cannot watch (`fs.inotify.max_user_instances`).
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Folders {
    /// `events` is notified of changes.
    fn new(events: Arc<Notify>) -> Self {
        let handler = move |event: notify::Result<Event>| {
            // An error may mean lost events.
            if event.as_ref().map_or(true, may_change_contents) {
                events.notify_one();
            }
        };
        Self {
            watcher: notify::recommended_watcher(handler).ok(),
            watched: BTreeSet::new(),
        }
    }

    /// Watches the directories of `paths` instead of those before. They differ after the swap of a
    /// symlink. Returns true if all are watched.
    fn watch(&mut self, paths: &[PathBuf]) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let folders = folders(paths);
        for folder in self.watched.difference(&folders) {
            // The watch of a removed directory has ended already.
            let _ = watcher.unwatch(folder);
        }
        let count = folders.len();
        // Also those that are watched already: a directory of the same path may be another one. The
        // kernel keeps one watch per directory.
        self.watched = folders
            .into_iter()
            .filter(|folder| watcher.watch(folder, RecursiveMode::NonRecursive).is_ok())
            .collect();
        self.watched.len() == count
    }
}

/// Returns false for events of reading: comparisons read, so each would cause the next one.
fn may_change_contents(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Returns the directories in which `paths` and, behind symlinks, their files are; also the paths
/// that are directories themselves.
fn folders(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    for path in paths {
        let resolved = path.canonicalize().ok();
        for path in [Some(path), resolved.as_ref()].into_iter().flatten() {
            folders.extend(path.is_dir().then(|| path.clone()));
            folders.extend(path.parent().map(|parent| match parent.as_os_str().len() {
                0 => Path::new(".").to_owned(),
                _ => parent.to_owned(),
            }));
        }
    }
    folders
}

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
    use std::os::unix::fs::symlink;

    use super::*;

    /// Replaces a symlink by a rename, as the kubelet does with `..data`.
    fn swap(link: &Path, target: &str) {
        let new = link.with_file_name("..data_tmp");
        symlink(target, &new).unwrap();
        std::fs::rename(&new, link).unwrap();
    }

    /// Directory of a mounted Secret: `tls.crt` leads to `..data/tls.crt`, `..data` to a directory.
    fn mounted_secret() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, content) in [("..1", "old"), ("..2", "new"), ("..3", "new")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("tls.crt"), content).unwrap();
        }
        swap(&at("..data"), "..1");
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        folder
    }

    /// Waits for a change that an event reports: comparisons without events come later.
    async fn detect(watch: &mut FileWatch) {
        let time = SAFETY_INTERVAL * 2 / 3;
        let detected = tokio::time::timeout(time, watch.changed()).await;
        detected.expect("an event is reported");
    }

    /// Returns true if no change is detected before the next comparison without events.
    async fn is_unchanged(watch: &mut FileWatch) -> bool {
        let time = SAFETY_INTERVAL * 2;
        tokio::time::timeout(time, watch.changed()).await.is_err()
    }

    #[tokio::test]
    async fn detects_symlink_swaps_and_writes_to_their_target() {
        let folder = mounted_secret();
        let mut watch = FileWatch::new(vec![folder.path().join("tls.crt")]);
        swap(&folder.path().join("..data"), "..2");
        detect(&mut watch).await;
        // The directory behind the symlink is another one now.
        std::fs::write(folder.path().join("..2/tls.crt"), "newer").unwrap();
        detect(&mut watch).await;
    }

    #[tokio::test]
    async fn keeps_event_of_cancelled_call() {
        let folder = mounted_secret();
        let mut watch = FileWatch::new(vec![folder.path().join("tls.crt")]);
        swap(&folder.path().join("..data"), "..2");
        let cancelled = tokio::time::timeout(SETTLE_TIME / 2, watch.changed()).await;
        assert!(cancelled.is_err());
        detect(&mut watch).await;
    }

    #[tokio::test]
    async fn detects_added_and_removed_files_of_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = FileWatch::new(vec![folder.path().into()]);
        let file = folder.path().join("pod.yaml");
        std::fs::write(&file, "1").unwrap();
        detect(&mut watch).await;
        std::fs::remove_file(&file).unwrap();
        detect(&mut watch).await;
    }

    #[tokio::test(start_paused = true)]
    async fn ignores_symlink_swap_with_same_content() {
        let folder = mounted_secret();
        swap(&folder.path().join("..data"), "..2");
        let mut watch = FileWatch::new(vec![folder.path().join("tls.crt")]);
        swap(&folder.path().join("..data"), "..3");
        assert!(is_unchanged(&mut watch).await);
    }

    #[tokio::test(start_paused = true)]
    async fn detects_changes_without_events() {
        let folder = tempfile::tempdir().unwrap();
        // The directory of the file does not exist, so it cannot be watched.
        let file = folder.path().join("later/file");
        let mut watch = FileWatch::new(vec![file.clone()]);
        assert!(is_unchanged(&mut watch).await);
        std::fs::create_dir(folder.path().join("later")).unwrap();
        std::fs::write(&file, "1").unwrap();
        watch.changed().await;
    }

    #[test]
    fn watches_folders_of_symlink_and_of_its_target() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::fs::write(root.join("real/file"), "").unwrap();
        symlink("real/file", root.join("link")).unwrap();
        assert_eq!(
            folders(&[root.join("link")]),
            BTreeSet::from([root.clone(), root.join("real")])
        );
        assert!(folders(&["file".into()]).contains(Path::new(".")));
    }

    #[test]
    fn ignores_read_events() {
        let event = |kind| Event::new(kind);
        let closed = |mode| EventKind::Access(AccessKind::Close(mode));
        assert!(!may_change_contents(&event(closed(AccessMode::Read))));
        assert!(may_change_contents(&event(closed(AccessMode::Write))));
        assert!(may_change_contents(&event(EventKind::Any)));
    }
}
