//! Files of a folder and their objects.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use serde_saphyr::DuplicateKeyPolicy;

use super::ManifestError;
use super::changes::ObjectDigests;
use super::documents::{Content, Document, Documents, ObjectId, Position};
use crate::cluster::{Kind, Object};
use crate::model::yaml;
use crate::trust::RbacRulesBuilder;

/// Objects of a folder by file, in the order of the names of the files.
#[derive(Debug, Default)]
pub(super) struct Folder {
    files: BTreeMap<PathBuf, Vec<Document>>,
    /// Number of objects of kinds that are not used.
    skipped: usize,
    /// The directory was read, so that a lack of files is not the consequence of an error.
    is_read: bool,
}

/// Numbers of objects that were read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ObjectCounts {
    /// In the order of [`Kind::ALL`].
    objects: [usize; Kind::ALL.len()],
    roles: usize,
    bindings: usize,
    skipped: usize,
    duplicates: usize,
}

impl fmt::Display for ObjectCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in Kind::ALL.into_iter().zip(self.objects) {
            write!(f, "{count} {}, ", kind.plural())?;
        }
        write!(f, "{} roles, {} role bindings", self.roles, self.bindings)?;
        if self.duplicates > 0 {
            write!(f, ", {} duplicates", self.duplicates)?;
        }
        if self.skipped > 0 {
            write!(f, ", {} of unused kinds", self.skipped)?;
        }
        Ok(())
    }
}

/// Objects of all files, each once.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub objects: Vec<(Kind, Object)>,
    pub rules: RbacRulesBuilder,
    pub counts: ObjectCounts,
}

impl Folder {
    /// Reads the files of a folder. What is invalid is as in `previous`: an object that is
    /// malformed, all objects of a file that is not YAML, everything if the folder cannot be read.
    pub fn read(directory: &Path, previous: &mut Self) -> (Self, Vec<ManifestError>) {
        let mut folder = Self::default();
        let paths = match files(directory) {
            Ok(paths) => paths,
            Err(error) => return (std::mem::take(previous), vec![error]),
        };
        folder.is_read = true;
        let mut errors = Vec::new();
        let mut malformed = Vec::new();
        for path in paths {
            let objects = match read_file(&path) {
                Ok(documents) => {
                    folder.skipped += documents.skipped;
                    for (id, error) in documents.malformed {
                        malformed.push((path.clone(), id));
                        errors.push(error);
                    }
                    documents.objects
                }
                Err(error) => {
                    errors.push(error);
                    previous.files.get(&path).cloned().unwrap_or_default()
                }
            };
            folder.files.insert(path, objects);
        }
        for (path, id) in malformed {
            let Some((before_path, before)) = previous.effective(&id) else {
                continue;
            };
            // A valid definition in the file that counted before is newer.
            if before_path == path || folder.effective(&id).is_none() {
                let before = before.clone();
                folder.files.entry(path).or_default().push(before);
            }
        }
        (folder, errors)
    }

    /// Returns the hashes of all objects, for comparison with another read.
    pub fn digests(&self) -> ObjectDigests {
        let documents = self.documents();
        documents
            .map(|(_, Document { id, digest, .. })| {
                let name = if id.namespace.is_empty() {
                    format!("{} {}", id.kind, id.name)
                } else {
                    format!("{} {}/{}", id.kind, id.namespace, id.name)
                };
                (name, *digest)
            })
            .collect()
    }

    /// Returns the definition of an object that counts, which is the last one, and its file.
    fn effective(&self, id: &ObjectId) -> Option<(&Path, &Document)> {
        let documents = self.documents();
        documents.filter(|(_, document)| document.id == *id).last()
    }

    /// Returns the objects. If one is defined more than once, its last definition counts, as with
    /// kubectl.
    pub fn contents(&self) -> Contents {
        let documents: Vec<_> = self.documents().collect();
        let mut last: HashMap<&ObjectId, usize> = HashMap::new();
        let mut collected = Contents::default();
        for (index, (path, document)) in documents.iter().enumerate() {
            if let Some(replaced) = last.insert(&document.id, index) {
                let (first_path, first) = documents[replaced];
                collected.counts.duplicates += 1;
                tracing::warn!(
                    "{} is defined twice: {first_path:?}, line {}, and {path:?}, line {}; using \
                     the last definition",
                    document.id,
                    first.line,
                    document.line
                );
            }
        }
        for (index, (_, document)) in documents.iter().enumerate() {
            if last.get(&document.id) == Some(&index) {
                collected.add(document.content.clone());
            }
        }
        let counts = &mut collected.counts;
        counts.objects = Kind::ALL.map(|kind| {
            let of_kind = collected.objects.iter().filter(|(of, _)| *of == kind);
            of_kind.count()
        });
        let rules = &collected.rules;
        counts.roles = rules.roles.len() + rules.cluster_roles.len();
        counts.bindings = rules.role_bindings.len() + rules.cluster_role_bindings.len();
        counts.skipped = self.skipped;
        self.warn_if_empty(counts);
        collected
    }

    fn documents(&self) -> impl Iterator<Item = (&Path, &Document)> {
        self.files
            .iter()
            .flat_map(|(path, documents)| documents.iter().map(move |document| (&**path, document)))
    }

    fn warn_if_empty(&self, counts: &ObjectCounts) {
        if !self.is_read {
            return;
        }
        if self.files.is_empty() {
            tracing::warn!("the directory of manifests has no *.yaml, *.yml or *.json files");
        } else if counts.objects.iter().sum::<usize>() == 0 {
            tracing::warn!(
                files = self.files.len(),
                "the manifests contain no Node, Pod, Service or EndpointSlice"
            );
        }
    }
}

impl Contents {
    fn add(&mut self, content: Content) {
        match content {
            Content::Object(kind, object) => self.objects.push((kind, object)),
            Content::Role(role) => self.rules.roles.push(role),
            Content::ClusterRole(role) => self.rules.cluster_roles.push(role),
            Content::RoleBinding(binding) => self.rules.role_bindings.push(binding),
            Content::ClusterRoleBinding(binding) => self.rules.cluster_role_bindings.push(binding),
        }
    }
}

fn read_file(path: &Path) -> Result<Documents, ManifestError> {
    let text = super::read(path)?;
    // kubectl rejects duplicate keys, too: one of the values would be lost.
    let parsed = yaml::parse(&text, DuplicateKeyPolicy::Error);
    let parsed = parsed.map_err(|error| ManifestError::Yaml {
        path: path.into(),
        line: error.line,
        source: error.source,
    })?;
    let mut documents = Documents::default();
    for (index, document) in parsed.into_iter().enumerate() {
        let position = Position {
            path,
            line: document.line,
            number: index + 1,
            item: None,
        };
        documents.add(position, document.value)?;
    }
    Ok(documents)
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
