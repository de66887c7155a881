//! Cluster state from a folder of YAML files instead of a Kubernetes API.

mod documents;
mod redact;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use serde_saphyr::Spanned;

use super::objects::remove_nulls;
use super::{Change, Feed};
use crate::cluster::{Kind, Object};
use crate::file_watch::FileWatch;
use crate::metrics::Metrics;
use crate::model::error_chain;
use crate::ready::{BlockReady, Ready};
use crate::trust::{TokenFileError, Trust};
pub use documents::{DocumentError, ObjectCounts};
use documents::{Documents, Position};
pub use redact::{Redacted, YamlError};

/// Name of this source in `/readyz` and in the metrics.
const MANIFESTS: &str = "manifests";
/// Kinds in the order in which they are sent.
const KINDS: [Kind; 4] = Kind::ALL;

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
}

/// Folder and token file, with the objects that were read from them.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    token_file: Option<PathBuf>,
    trust: Trust,
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
    /// The error names the file, the object and the reason.
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
            objects: None,
            counts: ObjectCounts::default(),
            changes,
        };
        manifests.read()?;
        Ok(manifests)
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
    /// An invalid file changes nothing: the last valid state stays in use, and `/readyz`, the log
    /// and a metric report the error.
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
                metrics.watch_up(MANIFESTS, true);
                ready.clear_degraded(MANIFESTS);
            }
            self.changes.changed().await;
            match self.read() {
                Ok(()) => {
                    let objects = self.counts;
                    tracing::info!(directory = ?self.directory, %objects, "reloaded the manifests");
                }
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::error!(
                        error,
                        "cannot load the changed manifests; serving the last valid ones"
                    );
                    metrics.watch_up(MANIFESTS, false);
                    ready.set_degraded(MANIFESTS, format!("serving the last valid ones: {error}"));
                }
            }
        }
    }

    /// Reads all files. Nothing takes effect unless all of them are valid.
    fn read(&mut self) -> Result<(), ManifestError> {
        let mut documents = Documents::default();
        let paths = files(&self.directory)?;
        if paths.is_empty() {
            tracing::warn!(
                directory = ?self.directory,
                "the directory has no *.yaml, *.yml or *.json files"
            );
        }
        for path in paths {
            let text = read(&path)?;
            // Like kubectl, reads `y`, `n` and `on` as strings (YAML 1.2).
            let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
            let values: Vec<Spanned<Value>> =
                serde_saphyr::from_multiple_with_options(&text, options).map_err(|error| {
                    ManifestError::Yaml {
                        path: path.clone(),
                        line: error.location().map_or(0, |location| location.line()),
                        source: YamlError::new(&error),
                    }
                })?;
            for (index, document) in values.into_iter().enumerate() {
                let mut value = document.value;
                // Helm often renders keys without a value, such as `annotations:`.
                remove_nulls(&mut value);
                let position = Position {
                    path: &path,
                    line: document.referenced.line(),
                    number: index + 1,
                };
                documents.add(position, value)?;
            }
        }
        // Last, because it takes effect immediately: nothing may fail after it.
        if let Some(path) = &self.token_file {
            self.trust
                .token_file
                .replace(&read(path)?)
                .map_err(|source| ManifestError::Tokens {
                    path: path.clone(),
                    source,
                })?;
        }
        self.counts = documents.counts();
        self.trust.rbac.store(Arc::new(documents.rules.build()));
        self.objects = Some(documents.objects);
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, ManifestError> {
    std::fs::read_to_string(path).map_err(|source| ManifestError::Read {
        path: path.into(),
        source,
    })
}

/// Returns the manifests of a folder in the order of their names. Skips hidden files: a mounted
/// `ConfigMap` has hidden directories with copies of its files.
fn files(directory: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let entries = std::fs::read_dir(directory);
    let entries = entries.map_err(|source| ManifestError::Read {
        path: directory.into(),
        source,
    })?;
    let mut paths: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let hidden = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let is_manifest = path
                .extension()
                .is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
            is_manifest && !hidden && path.is_file()
        })
        .collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests;
