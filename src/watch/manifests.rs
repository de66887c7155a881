//! Cluster state from a folder of YAML files instead of a Kubernetes API.

mod changes;
mod documents;
mod folder;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Change, Feed};
use crate::cluster::{Kind, Object};
use crate::file_watch::FileWatch;
use crate::metrics::Metrics;
use crate::model::error_chain;
use crate::model::redact::YamlError;
use crate::ready::{BlockReady, Ready};
use crate::trust::{TokenFileError, Trust};
use changes::Difference;
pub use documents::DocumentError;
pub use folder::ObjectCounts;
use folder::{Contents, Folder};
use futures::FutureExt;
use futures::future::BoxFuture;

/// Name of this source in `/readyz` and in the metrics.
const MANIFESTS: &str = "manifests";
/// Kinds in the order in which they are sent.
const KINDS: [Kind; 4] = Kind::ALL;
/// Maximum number of errors that one message lists.
const MAX_REPORTED: usize = 10;

/// Reason why a directory or token file cannot be used. Contains no values of the files, except
/// kinds and names of objects and paths of fields.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("cannot read {path:?}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path:?}, line {line}: not YAML")]
    Yaml {
        path: PathBuf,
        line: u64,
        source: YamlError,
    },
    #[error("{path:?}, line {line}: {object} is malformed")]
    Malformed {
        path: PathBuf,
        /// First line of the document.
        line: u64,
        /// Kind and name, or the number of the document if it has no name.
        object: String,
        source: DocumentError,
    },
    #[error("the token file {path:?} is invalid")]
    Tokens {
        path: PathBuf,
        source: TokenFileError,
    },
    #[error("{}", join(.0))]
    Several(Vec<ManifestError>),
}

/// Folder and token file, with the objects that were read from them.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    token_file: Option<PathBuf>,
    trust: Trust,
    /// Objects in use, of which invalid ones are kept at a reload.
    folder: Folder,
    /// Objects that were read and not yet sent to the index.
    objects: Option<Vec<(Kind, Object)>>,
    counts: ObjectCounts,
    /// Created before the first read, so that a change between the two is not missed.
    changes: FileWatch,
}

impl Manifests {
    /// Reads the folder and the token file.
    ///
    /// # Errors
    /// Names each file or object that is invalid, and the reason. Unlike a reload, which keeps
    /// their previous version, a start has none.
    pub fn load(
        directory: PathBuf,
        token_file: Option<PathBuf>,
        trust: Trust,
    ) -> Result<Self, ManifestError> {
        let changes = FileWatch::new(
            [Some(&directory), token_file.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
        );
        let mut manifests = Self {
            directory,
            token_file,
            trust,
            folder: Folder::default(),
            objects: None,
            counts: ObjectCounts::default(),
            changes,
        };
        let mut errors = manifests.read();
        match errors.len() {
            0 => Ok(manifests),
            1 => Err(errors.remove(0)),
            _ => Err(ManifestError::Several(errors)),
        }
    }

    /// Returns the numbers of objects that were read.
    pub fn counts(&self) -> ObjectCounts {
        self.counts
    }

    /// Blocks readiness until the last of the kinds has been applied.
    pub fn block(ready: &Ready) -> (Kind, BlockReady) {
        (KINDS[KINDS.len() - 1], ready.block(MANIFESTS))
    }

    /// Returns the task that sends the objects, and reads and sends them again when a file changes.
    /// An object that is invalid then stays as it was, as do all objects of a file that is not
    /// YAML; `/readyz`, the log and metrics report the errors.
    pub fn follow(
        self,
        feed: Feed,
        ready: Ready,
        metrics: Metrics,
    ) -> impl FnMut() -> BoxFuture<'static, ()> + Send + 'static {
        // Shared by the runs of the task, of which one exists at a time: objects that were read and
        // not sent survive a panic.
        let manifests = Arc::new(tokio::sync::Mutex::new(self));
        move || {
            let (manifests, feed, ready, metrics) = (
                Arc::clone(&manifests),
                feed.clone(),
                ready.clone(),
                metrics.clone(),
            );
            async move { manifests.lock().await.run(&feed, &ready, &metrics).await }.boxed()
        }
    }

    async fn run(&mut self, feed: &Feed, ready: &Ready, metrics: &Metrics) {
        let mut errors = Vec::new();
        loop {
            if let Some(mut objects) = self.objects.take() {
                // Also kinds without objects, so that those of the previous state are deleted.
                for kind in KINDS {
                    let objects = objects
                        .extract_if(.., |(of, _)| *of == kind)
                        .map(|(_, object)| object);
                    feed.send(Change::Reset(kind, objects.collect())).await;
                }
                metrics.watch_event(MANIFESTS);
            }
            report(&errors, ready, metrics);
            self.changes.changed().await;
            let before = self.folder.digests();
            errors = self.read();
            let Difference {
                added,
                changed,
                removed,
            } = self.folder.digests().since(&before);
            let objects = self.counts;
            tracing::info!(
                %added,
                %changed,
                %removed,
                directory = %self.directory.display(),
                %objects,
                "reloaded the manifests"
            );
        }
    }

    /// Reads all files. Returns the errors; what they are about is as before.
    fn read(&mut self) -> Vec<ManifestError> {
        let (folder, mut errors) = Folder::read(&self.directory, &mut self.folder);
        self.folder = folder;
        let Contents {
            objects,
            rules,
            counts,
        } = self.folder.contents();
        self.counts = counts;
        self.trust.rbac.store(Arc::new(rules.build()));
        self.objects = Some(objects);
        errors.extend(self.read_tokens().err());
        errors
    }

    fn read_tokens(&self) -> Result<(), ManifestError> {
        let Some(path) = &self.token_file else {
            return Ok(());
        };
        let replaced = self.trust.token_file.replace(&read(path)?);
        replaced.map_err(|source| ManifestError::Tokens {
            path: path.clone(),
            source,
        })
    }
}

/// Reports the errors of a reload in the log, `/readyz` and the metrics.
fn report(errors: &[ManifestError], ready: &Ready, metrics: &Metrics) {
    metrics.watch_up(MANIFESTS, errors.is_empty());
    if errors.is_empty() {
        ready.clear_degraded(MANIFESTS);
        return;
    }
    for error in errors {
        metrics.watch_malformed(MANIFESTS);
        tracing::error!(
            error = error_chain(error),
            "cannot load a changed manifest; serving its last valid version"
        );
    }
    let reasons = join(errors);
    ready.set_degraded(
        MANIFESTS,
        format!("serving the last valid version: {reasons}"),
    );
}

/// Joins errors with their causes. Beyond [`MAX_REPORTED`], the others are counted.
fn join(errors: &[ManifestError]) -> String {
    let reported = errors
        .iter()
        .take(MAX_REPORTED)
        .map(|error| error_chain(error));
    let mut text = reported.collect::<Vec<_>>().join("; ");
    if errors.len() > MAX_REPORTED {
        text += &format!("; and {} more", errors.len() - MAX_REPORTED);
    }
    text
}

fn read(path: &Path) -> Result<String, ManifestError> {
    std::fs::read_to_string(path).map_err(|source| ManifestError::Read {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests;
