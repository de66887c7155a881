//! Merge into a kubeconfig file.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use super::entries::{EMPTY, Entries, Section};
use super::text::{Text, to_yaml};
use crate::kubeconfig::{Lock, WriteError, check_type, replace};
use crate::model::redact::YamlError;
use crate::model::yaml;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Changes of a merge beside new entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Makes the context the current one, also if the file has another one.
    pub set_current: bool,
    /// Replaces entries of the same names with other contents.
    pub overwrite: bool,
}

/// Result of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The context is the current one.
    pub is_current: bool,
    /// The file was formatted anew, because it is not in block style.
    pub lost_comments: bool,
}

/// Reason why the entries were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("cannot read the kubeconfig {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot create the directory of the kubeconfig {path:?}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("the kubeconfig {path:?}, line {line}: not YAML")]
    Yaml {
        path: PathBuf,
        line: u64,
        source: YamlError,
    },
    #[error("the kubeconfig {path:?} has several YAML documents; merge into a file with one")]
    Documents { path: PathBuf },
    #[error(
        "the kubeconfig {path:?} has a {kind} {name:?} that is another one; choose another name \
         ({flag}), or replace it with --overwrite"
    )]
    Exists {
        path: PathBuf,
        kind: &'static str,
        name: String,
        flag: &'static str,
    },
    #[error("the entries have no form in YAML")]
    Format,
    #[error(transparent)]
    Kubeconfig(#[from] crate::kubeconfig::KubeconfigError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Merges entries into a file, which is created if it is missing, under the lock file of client-go.
/// The file gets the mode 0600. Other entries, unknown fields and comments stay, as do the fields of a
/// cluster and a context of the same names that the new ones do not have, except for those that
/// verify the server. The context becomes the current one if the file has none.
///
/// # Errors
/// The file cannot be read or written, is not a kubeconfig, or has other entries of these names.
pub fn merge(path: &Path, entries: &Entries, options: Options) -> Result<Merged, MergeError> {
    create_directory(path)?;
    let lock = Lock::acquire(path)?;
    let text = read(path)?;
    let mut document = parse(path, &text)?;
    let mut entries = entries.clone();
    if !options.overwrite {
        reject_conflicts(path, &document, &entries)?;
        keep_fields(&document, &mut entries);
    }
    let entries = &entries;
    let current = document["current-context"].as_str().unwrap_or_default();
    let sets_current = options.set_current || current.is_empty();
    let is_current = sets_current || current == entries.name;
    entries.put_into(&mut document, sets_current);
    let edited = edit(&text, entries, sets_current);
    // The edit of lines is only a way to keep comments: the result must be the same.
    let edited = edited.filter(|text| parse(path, text).is_ok_and(|result| result == document));
    let (new, lost_comments) = match edited {
        Some(edited) => (edited, false),
        None => (
            to_yaml(&document).ok_or(MergeError::Format)?,
            text.contains('#'),
        ),
    };
    if path.exists() {
        // Before the credentials are in it.
        let mode = fs::set_permissions(path, fs::Permissions::from_mode(FILE_MODE));
        mode.map_err(|source| WriteError::Write {
            path: path.into(),
            source,
        })?;
    }
    replace(path, &new)?;
    drop(lock);
    Ok(Merged {
        is_current,
        lost_comments,
    })
}

fn create_directory(path: &Path) -> Result<(), MergeError> {
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
    let created = directory.map_or(Ok(()), |directory| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
    });
    created.map_err(|source| MergeError::Directory {
        path: path.into(),
        source,
    })
}

/// Reads the file, which may be missing.
fn read(path: &Path) -> Result<String, MergeError> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(EMPTY.to_owned()),
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(EMPTY.to_owned()),
        Err(source) => Err(MergeError::Read {
            path: path.into(),
            source,
        }),
    }
}

/// Parses the document of a kubeconfig.
fn parse(path: &Path, text: &str) -> Result<Value, MergeError> {
    let parsed = yaml::parse(text, DuplicateKeyPolicy::LastWins);
    let documents = parsed.map_err(|error| MergeError::Yaml {
        path: path.into(),
        line: error.line,
        source: error.source,
    })?;
    let mut documents = documents.into_iter().map(|document| document.value);
    let document = documents.next();
    if documents.next().is_some() {
        return Err(MergeError::Documents { path: path.into() });
    }
    // A file with comments only has no document.
    let document = document.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    check_type(path, &document)?;
    Ok(document)
}

/// Returns the fields of an entry of this name.
fn existing<'d>(document: &'d Value, section: Section, name: &str) -> Option<&'d Value> {
    let mut list = document[section.key()].as_array().into_iter().flatten();
    let entry = list.find(|entry| entry["name"] == name)?;
    Some(&entry[section.field()])
}

/// Takes over the fields of the existing cluster and context that the new ones do not have.
fn keep_fields(document: &Value, entries: &mut Entries) {
    const VERIFICATION: [&str; 4] = [
        "certificate-authority",
        "certificate-authority-data",
        "insecure-skip-tls-verify",
        "tls-server-name",
    ];
    let name = &entries.name;
    for (section, fields) in [
        (Section::Clusters, &mut entries.cluster),
        (Section::Contexts, &mut entries.context),
    ] {
        let old = existing(document, section, name).and_then(Value::as_object);
        let (Some(old), Some(fields)) = (old, fields.as_object_mut()) else {
            continue;
        };
        for (key, value) in old {
            if !fields.contains_key(key) && !VERIFICATION.contains(&key.as_str()) {
                fields.insert(key.clone(), value.clone());
            }
        }
    }
}

fn reject_conflicts(path: &Path, document: &Value, entries: &Entries) -> Result<(), MergeError> {
    for (section, name, fields) in entries.all() {
        let existing = existing(document, section, name);
        // What identifies an entry; the rest may be newer.
        let is_same = |existing: &Value| match section {
            Section::Clusters => existing["server"] == fields["server"],
            Section::Contexts => {
                let user =
                    |context: &Value| context["user"].as_str().unwrap_or_default().to_owned();
                let (old, new) = (user(existing), user(fields));
                existing["cluster"] == fields["cluster"]
                    && (old == new || old.is_empty() || new.is_empty())
            }
            Section::Users => existing == fields,
        };
        if existing.is_some_and(|existing| !is_same(existing)) {
            let flag = if section == Section::Users {
                "--user-name"
            } else {
                "--name"
            };
            return Err(MergeError::Exists {
                path: path.into(),
                kind: section.field(),
                name: name.to_owned(),
                flag,
            });
        }
    }
    Ok(())
}

/// Edits the lines of the file. `None` if a list is not in block style.
fn edit(text: &str, entries: &Entries, sets_current: bool) -> Option<String> {
    let mut text = Text::new(text);
    for (section, name, fields) in entries.all() {
        text.put(section, name, fields)?;
    }
    if sets_current {
        text.set_current_context(&entries.name)?;
    }
    Some(text.into_string())
}

#[cfg(test)]
mod tests;
