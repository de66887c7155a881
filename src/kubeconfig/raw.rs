//! Names of the entries, and the entries of a context as the files have them, not decoded.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    CLUSTER_PATHS, Entry, Environment, KubeconfigError, NamedEntry, Origin, Sections, Selection,
    USER_PATHS, non_empty, select,
};
use crate::config::KubernetesSource;

/// Names of all entries, for completion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub contexts: Vec<String>,
    pub clusters: Vec<String>,
    pub users: Vec<String>,
}

/// Entries that a context consists of.
#[derive(Clone, Debug)]
pub struct ContextEntries {
    /// Name of the context.
    pub name: String,
    /// All fields of the context.
    pub context: Value,
    /// All fields of the cluster; null if it is missing.
    pub cluster: Value,
    /// Name and fields of the user, with absolute paths. `None` if the context has none.
    pub user: Option<(String, Value)>,
    /// Files that the entries are from.
    pub files: Vec<PathBuf>,
}

/// Returns the names in a kubeconfig, else in those of kubectl's defaults.
///
/// # Errors
/// The kubeconfig cannot be read.
pub fn names(kubeconfig: Option<&Path>) -> Result<Names, KubeconfigError> {
    let Some((paths, origin)) = locate(kubeconfig) else {
        return Ok(Names::default());
    };
    let sections = Sections::read(paths, origin)?;
    Ok(Names {
        contexts: sections.contexts.names(),
        clusters: sections.clusters.names(),
        users: sections.users.names(),
    })
}

/// Returns the entries of a context, else of the current one. `None` without a kubeconfig.
///
/// # Errors
/// The kubeconfig cannot be read, or lacks the context.
pub fn context_entries(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
) -> Result<Option<ContextEntries>, KubeconfigError> {
    let Some((paths, origin)) = locate(kubeconfig) else {
        return Ok(None);
    };
    let sections = Sections::read(paths, origin)?;
    let context = sections.context(context)?;
    let fault = |entry, fault| KubeconfigError::Entry {
        context: context.name.clone(),
        files: sections.files.clone(),
        entry,
        fault: Box::new(fault),
    };
    context
        .unambiguous()
        .map_err(|source| fault(Entry::Context, source))?;
    let cluster = non_empty(&context.value["cluster"]);
    let cluster = cluster.and_then(|name| sections.clusters.find(&name));
    let user = non_empty(&context.value["user"]);
    let user = user.and_then(|name| sections.users.find(&name));
    if let Some(user) = user {
        user.unambiguous()
            .map_err(|source| fault(Entry::User(user.name.clone()), source))?;
    }
    Ok(Some(ContextEntries {
        name: context.name.clone(),
        context: context.value.clone(),
        cluster: cluster.map_or(Value::Null, |cluster| cluster.absolute(CLUSTER_PATHS)),
        user: user.map(|user| (user.name.clone(), user.absolute(USER_PATHS))),
        files: sections.files.0.clone(),
    }))
}

/// Returns the paths of the kubeconfigs that kubectl reads.
fn locate(kubeconfig: Option<&Path>) -> Option<(Vec<PathBuf>, Origin)> {
    let source = KubernetesSource {
        kubeconfig: kubeconfig.map(Into::into),
        ..KubernetesSource::default()
    };
    let environment = Environment {
        in_pod: false,
        ..Environment::of_process()
    };
    match select(&source, &environment) {
        Selection::Kubeconfig(paths, origin) => Some((paths, origin)),
        Selection::ServiceAccount | Selection::None => None,
    }
}

impl NamedEntry {
    /// Returns the fields, with absolute paths in the fields `paths`.
    fn absolute(&self, paths: &[&str]) -> Value {
        let mut value = self.value.clone();
        self.make_absolute(&mut value, paths);
        value
    }
}
