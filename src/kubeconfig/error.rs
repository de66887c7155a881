//! Errors of kubeconfigs.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::model::decode::DecodeError;
use crate::model::redact::{Redacted, YamlError};
use crate::model::similar::similar;

/// Reason why a kubeconfig cannot be used. Contains no values of the file except names, kinds and
/// addresses of API servers.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    #[error("cannot read the kubeconfig {path:?} ({origin})")]
    Read {
        path: PathBuf,
        origin: Origin,
        source: io::Error,
    },
    #[error("none of the files in $KUBECONFIG exists: {0:?}")]
    NoneExists(Vec<PathBuf>),
    #[error("the kubeconfig {path:?}, line {line}: not YAML")]
    Yaml {
        path: PathBuf,
        line: u64,
        source: YamlError,
    },
    #[error(
        "{path:?} is not a kubeconfig: {}; a kubeconfig has apiVersion v1 and kind Config",
        not_a_kubeconfig(found.as_ref())
    )]
    OtherFile {
        path: PathBuf,
        /// Field and value of another type. `None` if the file is not a mapping.
        found: Option<(&'static str, String)>,
    },
    #[error(
        "the kubeconfig {files} has no current context; set --context (source.kubernetes.context){}",
        list(contexts)
    )]
    NoCurrentContext { files: Files, contexts: Vec<String> },
    #[error(
        "the {} {context:?}{} is not in the kubeconfig {files}{}{}",
        if *requested { "context" } else { "current context" },
        if *requested { " (--context, source.kubernetes.context)" } else { "" },
        list(contexts),
        suggestion(context, contexts)
    )]
    NoContext {
        context: String,
        /// Named by a setting instead of the kubeconfig.
        requested: bool,
        files: Files,
        contexts: Vec<String>,
    },
    #[error("the context {context:?} of the kubeconfig {files}: {entry} {fault}")]
    Entry {
        context: String,
        files: Files,
        entry: Entry,
        fault: Box<Fault>,
    },
    #[error("the context {context:?} of the kubeconfig {files} cannot be used")]
    Unusable {
        context: String,
        files: Files,
        source: Box<kube::config::KubeconfigError>,
    },
}

/// Source of the path of a kubeconfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Setting,
    /// The flag of a command that has no such setting.
    Flag,
    /// The environment variable of kubectl, a list of paths.
    Variable,
    /// `~/.kube/config`
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setting => "--kubeconfig, source.kubernetes.kubeconfig",
            Self::Flag => "--kubeconfig",
            Self::Variable => "$KUBECONFIG",
            Self::Default => "the default path",
        })
    }
}

/// Paths of kubeconfigs that were merged.
#[derive(Clone, Debug)]
pub struct Files(pub Vec<PathBuf>);

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " and " };
            write!(f, "{separator}{path:?}")?;
        }
        Ok(())
    }
}

impl Files {
    /// Returns true if no file was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the paths as `$KUBECONFIG` has them.
    pub(super) fn joined(&self) -> String {
        let paths: Vec<_> = self.0.iter().map(|path| path.to_string_lossy()).collect();
        paths.join(":")
    }
}

/// An entry that the context needs.
#[derive(Debug)]
pub enum Entry {
    Context,
    Cluster(String),
    User(String),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Context => f.write_str("it"),
            Self::Cluster(name) => write!(f, "its cluster {name:?}"),
            Self::User(name) => write!(f, "its user {name:?}"),
        }
    }
}

/// Fault of an entry.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("is missing")]
    Missing,
    #[error("is defined more than once")]
    Ambiguous,
    #[error("names no cluster")]
    NoCluster,
    #[error("has no server")]
    NoServer,
    /// Without the URL, which may contain a password.
    #[error(
        "has a server with user information; use https://HOST:PORT, and a user with credentials"
    )]
    ServerWithUser,
    #[error("has the server {0:?}, which is not a URL; use https://HOST:PORT")]
    InvalidServer(String),
    #[error("is malformed: {field}{reason}")]
    Malformed {
        /// Path of the field with a colon, or empty.
        field: String,
        reason: Redacted,
    },
}

impl From<DecodeError> for Fault {
    fn from(DecodeError { field, source }: DecodeError) -> Self {
        let separator = if field.is_empty() { "" } else { ": " };
        Self::Malformed {
            field: field + separator,
            reason: Redacted::new(&source.to_string()),
        }
    }
}

fn not_a_kubeconfig(found: Option<&(&'static str, String)>) -> String {
    match found {
        None => "it is not a mapping".to_owned(),
        Some((field, value)) => format!("its {field} is {value:?}"),
    }
}

fn suggestion(name: &str, contexts: &[String]) -> String {
    let contexts: Vec<_> = contexts.iter().map(String::as_str).collect();
    similar(name, &contexts).map_or_else(String::new, |name| format!("; did you mean {name:?}?"))
}

fn list(contexts: &[String]) -> String {
    if contexts.is_empty() {
        "; it has no contexts".to_owned()
    } else {
        format!("; its contexts are: {}", contexts.join(", "))
    }
}
