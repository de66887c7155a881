//! Kubeconfig files, merged as kubectl merges them.
//!
//! Only the context in use, its cluster and its user are decoded: the other entries of a kubeconfig
//! may be empty or malformed, as tools for clusters that are long gone leave them.

mod entries;
mod error;
mod write;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use kube::config::{
    Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use crate::config::KubernetesSource;
use crate::model::decode::{DecodeError, decode};
use crate::model::yaml;
pub use entries::{
    AuthProvider, ClusterEntry, ContextEntry, EnvironmentVariable, ExecPlugin, InteractiveMode,
    Secret, UserEntry,
};
pub use error::{Entry, Fault, Files, KubeconfigError, Origin};
pub use write::{Lock, WriteError, replace};

/// Fields of a cluster and of a user with a path that is relative to the file.
const CLUSTER_PATHS: &[&str] = &["certificate-authority"];
const USER_PATHS: &[&str] = &["client-certificate", "client-key", "tokenFile"];

/// Environment in which a kubeconfig is looked for.
#[derive(Debug, Default)]
pub struct Environment {
    /// `$KUBECONFIG`
    pub kubeconfig: Option<OsString>,
    /// The process runs in a pod, which has a service account.
    pub in_pod: bool,
    /// Home directory of the user.
    pub home: Option<PathBuf>,
}

impl Environment {
    pub fn of_process() -> Self {
        Self {
            kubeconfig: std::env::var_os("KUBECONFIG"),
            in_pod: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
            home: std::env::home_dir(),
        }
    }

    /// Returns the files of `$KUBECONFIG`, else `~/.kube/config`, whether they exist or not.
    pub fn default_files(&self) -> (Vec<PathBuf>, Origin) {
        let listed = self.kubeconfig.iter().flat_map(std::env::split_paths);
        let listed: Vec<_> = listed.filter(|path| !path.as_os_str().is_empty()).collect();
        if !listed.is_empty() {
            return (listed, Origin::Variable);
        }
        let default = self.home.as_ref().map(|home| home.join(".kube/config"));
        (default.into_iter().collect(), Origin::Default)
    }
}

/// Selected credentials for the API.
#[derive(Debug, PartialEq, Eq)]
pub enum Selection {
    Kubeconfig(Vec<PathBuf>, Origin),
    ServiceAccount,
    /// Neither a kubeconfig nor a service account.
    None,
}

/// Selects the configured kubeconfig, else those of `$KUBECONFIG`, else the service account of the
/// pod, else `~/.kube/config`. A context is in a kubeconfig, so it rules the service account out.
pub fn select(source: &KubernetesSource, environment: &Environment) -> Selection {
    if let Some(path) = &source.kubeconfig {
        return Selection::Kubeconfig(vec![path.clone()], Origin::Setting);
    }
    let (files, origin) = environment.default_files();
    if origin == Origin::Variable {
        return Selection::Kubeconfig(files, origin);
    }
    if environment.in_pod && source.context.is_none() {
        return Selection::ServiceAccount;
    }
    if files.iter().any(|path| path.exists()) {
        Selection::Kubeconfig(files, origin)
    } else {
        Selection::None
    }
}

/// Reads the files and returns the configuration of the requested context, else of the current one.
pub async fn load(
    paths: Vec<PathBuf>,
    origin: Origin,
    context: Option<&str>,
) -> Result<kube::Config, KubeconfigError> {
    let sections = Sections::read(paths, origin)?;
    let selected = sections.context(context)?;
    let (files, context) = (sections.files.clone(), selected.name.clone());
    tracing::info!(kubeconfig = %files.joined(), context, "using kubeconfig");
    let kubeconfig = sections.only(selected)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    config.map_err(|source| KubeconfigError::Unusable {
        context,
        files,
        source: Box::new(source),
    })
}

/// Entries of all files, not decoded.
#[derive(Debug)]
pub struct Sections {
    pub files: Files,
    pub contexts: Section,
    pub clusters: Section,
    pub users: Section,
    pub current_context: Option<String>,
}

/// Named entries. As with kubectl, the first file that defines a name counts.
#[derive(Debug, Default)]
pub struct Section(Vec<NamedEntry>);

/// An entry of a kubeconfig.
pub struct NamedEntry {
    pub name: String,
    /// Null if it is missing.
    pub value: Value,
    /// File that defines the entry. Paths are relative to its directory.
    pub file: PathBuf,
    /// The file has another entry of this name.
    is_ambiguous: bool,
}

// Without the value, which may be a credential.
impl fmt::Debug for NamedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedEntry")
            .field("name", &self.name)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Default for Sections {
    /// Returns the entries of no file.
    fn default() -> Self {
        Self {
            files: Files(Vec::new()),
            contexts: Section::default(),
            clusters: Section::default(),
            users: Section::default(),
            current_context: None,
        }
    }
}

impl Sections {
    /// Reads a file, else the files that kubectl uses. `None` if none of these exists.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_user(file: Option<&Path>) -> Result<Option<Self>, KubeconfigError> {
        if let Some(file) = file {
            return Self::read(vec![file.into()], Origin::Flag).map(Some);
        }
        let (files, origin) = Environment::of_process().default_files();
        if files.iter().any(|file| file.exists()) {
            Self::read(files, origin).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Reads and merges the files.
    ///
    /// # Errors
    /// A file that cannot be read or is not a kubeconfig, or none that exists.
    pub fn read(paths: Vec<PathBuf>, origin: Origin) -> Result<Self, KubeconfigError> {
        let mut sections = Self::default();
        for path in &paths {
            match std::fs::read_to_string(path) {
                Ok(text) => sections.add(path, &text)?,
                // kubectl skips missing files of the list.
                Err(error)
                    if origin == Origin::Variable && error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(KubeconfigError::Read {
                        path: path.clone(),
                        origin,
                        source,
                    });
                }
            }
        }
        if sections.files.0.is_empty() {
            return Err(KubeconfigError::NoneExists(paths));
        }
        Ok(sections)
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), KubeconfigError> {
        let parsed = yaml::parse(text, DuplicateKeyPolicy::LastWins);
        let documents = parsed.map_err(|error| KubeconfigError::Yaml {
            path: path.into(),
            line: error.line,
            source: error.source,
        })?;
        for document in documents {
            let document = document.value;
            check_type(path, &document)?;
            for (section, key, field) in [
                (&mut self.contexts, "contexts", "context"),
                (&mut self.clusters, "clusters", "cluster"),
                (&mut self.users, "users", "user"),
            ] {
                section.add(&document[key], field, path);
            }
            let current = non_empty(&document["current-context"]);
            self.current_context = self.current_context.take().or(current);
        }
        self.files.0.push(path.into());
        Ok(())
    }

    /// Finds the requested context, else the current one.
    ///
    /// # Errors
    /// It does not exist, or none is requested and the files have no current one.
    pub fn context(&self, requested: Option<&str>) -> Result<&NamedEntry, KubeconfigError> {
        let requested = requested.filter(|name| !name.is_empty());
        let contexts = || self.contexts.names();
        let Some(name) = requested.or(self.current_context.as_deref()) else {
            return Err(KubeconfigError::NoCurrentContext {
                files: self.files.clone(),
                contexts: contexts(),
            });
        };
        self.contexts
            .find(name)
            .ok_or_else(|| KubeconfigError::NoContext {
                context: name.to_owned(),
                requested: requested.is_some(),
                files: self.files.clone(),
                contexts: contexts(),
            })
    }

    /// Returns a kubeconfig with this context only, decoded.
    fn only(&self, context: &NamedEntry) -> Result<Kubeconfig, KubeconfigError> {
        let error = |entry, fault| KubeconfigError::Entry {
            context: context.name.clone(),
            files: self.files.clone(),
            entry,
            fault: Box::new(fault),
        };
        let of_context = |fault| error(Entry::Context, fault);
        context.unambiguous().map_err(of_context)?;
        let cluster_name = text(&context.value, "cluster").map_err(of_context)?;
        let cluster_name = cluster_name.ok_or_else(|| of_context(Fault::NoCluster))?;
        let user_name = text(&context.value, "user").map_err(of_context)?;
        let cluster = self.cluster(&cluster_name);
        let cluster =
            cluster.map_err(|fault| error(Entry::Cluster(cluster_name.clone()), fault))?;
        let user = user_name.as_deref().map(|name| {
            let user = self.user(name);
            user.map_err(|fault| error(Entry::User(name.to_owned()), fault))
        });
        let user = user.transpose()?.flatten();
        if let (Some(name), None) = (&user_name, &user) {
            // As with kubectl, which sends requests without credentials then.
            tracing::warn!(
                user = name,
                context = context.name,
                "the user of the context is not in the kubeconfig; using no credentials"
            );
        }
        let named = NamedContext {
            name: context.name.clone(),
            context: Some(Context {
                cluster: cluster_name.clone(),
                user: user_name,
                ..Context::default()
            }),
            ..NamedContext::default()
        };
        let named_cluster = NamedCluster {
            name: cluster_name,
            cluster: Some(cluster),
            ..NamedCluster::default()
        };
        Ok(Kubeconfig {
            current_context: Some(context.name.clone()),
            contexts: vec![named],
            clusters: vec![named_cluster],
            auth_infos: user.into_iter().collect(),
            ..Kubeconfig::default()
        })
    }

    fn cluster(&self, name: &str) -> Result<Cluster, Fault> {
        let cluster = self.clusters.find(name).ok_or(Fault::Missing)?;
        let cluster: Cluster = cluster.decode(CLUSTER_PATHS)?;
        check_server(cluster.server.as_deref())?;
        Ok(cluster)
    }

    /// Finds a user. `None` if it is missing.
    fn user(&self, name: &str) -> Result<Option<NamedAuthInfo>, Fault> {
        let Some(user) = self.users.find(name) else {
            return Ok(None);
        };
        Ok(Some(NamedAuthInfo {
            name: name.to_owned(),
            auth_info: Some(user.decode(USER_PATHS)?),
            ..NamedAuthInfo::default()
        }))
    }
}

impl Section {
    /// Adds the entries of a file that have a name. `field` has the value of an entry.
    fn add(&mut self, entries: &Value, field: &str, file: &Path) {
        // Those of previous files.
        let known = self.0.len();
        for entry in entries.as_array().into_iter().flatten() {
            let (Some(name), value) = (non_empty(&entry["name"]), &entry[field]) else {
                continue;
            };
            match self.0.iter().position(|entry| entry.name == name) {
                None => self.0.push(NamedEntry {
                    name,
                    value: value.clone(),
                    file: file.into(),
                    is_ambiguous: false,
                }),
                Some(first) if first >= known && self.0[first].value != *value => {
                    self.0[first].is_ambiguous = true;
                }
                Some(_) => {}
            }
        }
    }

    /// Returns the names of the entries.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|entry| entry.name.clone()).collect()
    }

    /// Returns the entry of a name.
    pub fn find(&self, name: &str) -> Option<&NamedEntry> {
        self.0.iter().find(|entry| entry.name == name)
    }
}

impl NamedEntry {
    /// Returns the contents of an extension.
    pub fn extension(&self, name: &str) -> Option<&Value> {
        let extensions = self.value["extensions"].as_array()?;
        let named = extensions.iter().find(|entry| entry["name"] == name)?;
        named.get("extension")
    }

    fn unambiguous(&self) -> Result<(), Fault> {
        if self.is_ambiguous {
            Err(Fault::Ambiguous)
        } else {
            Ok(())
        }
    }

    /// Decodes the entry, with paths in the fields `paths` joined to the directory of the file.
    ///
    /// # Errors
    /// The entry is malformed, or the file has another entry of this name.
    fn decode<T: DeserializeOwned + Default>(&self, paths: &[&str]) -> Result<T, Fault> {
        self.unambiguous()?;
        let mut value = self.value.clone();
        if value.is_null() {
            return Ok(T::default());
        }
        if let Value::Object(fields) = &mut value {
            // Extensions are of other programs. kubectl takes an empty text for a missing one.
            fields.remove("extensions");
            fields.retain(|_, field| field.as_str() != Some(""));
        }
        self.make_absolute(&mut value, paths);
        Ok(decode(&value)?)
    }

    /// Makes the paths in the fields `paths` and in the command of a plugin absolute.
    fn make_absolute(&self, value: &mut Value, paths: &[&str]) {
        let directory = self.file.parent().unwrap_or(Path::new(""));
        let make_absolute = |field: Option<&mut Value>| {
            if let Some(field) = field
                && let Some(path) = field.as_str()
            {
                *field = directory.join(path).to_string_lossy().into();
            }
        };
        for path in paths {
            make_absolute(value.get_mut(path));
        }
        // A command without a separator is found by $PATH.
        let command = value.pointer_mut("/exec/command");
        make_absolute(command.filter(|command| {
            let command = command.as_str();
            command.is_some_and(|command| command.contains(std::path::MAIN_SEPARATOR))
        }));
    }
}

/// Rejects files of another type, such as a manifest.
///
/// # Errors
/// A field or value of another type.
pub fn check_type(path: &Path, document: &Value) -> Result<(), KubeconfigError> {
    let other = |found| KubeconfigError::OtherFile {
        path: path.into(),
        found,
    };
    if !document.is_object() {
        return Err(other(None));
    }
    for (field, expected) in [("apiVersion", "v1"), ("kind", "Config")] {
        let value = &document[field];
        if !value.is_null() && value != expected && value != "" {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            return Err(other(Some((field, value))));
        }
    }
    Ok(())
}

fn check_server(server: Option<&str>) -> Result<(), Fault> {
    let server = server.ok_or(Fault::NoServer)?;
    let url = server.parse::<http::Uri>().ok();
    let is_valid = url.is_some_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some()
    });
    if server.contains('@') {
        Err(Fault::ServerWithUser)
    } else if is_valid {
        Ok(())
    } else {
        Err(Fault::InvalidServer(server.to_owned()))
    }
}

/// Returns a text field. `None` if it is missing or empty.
fn text(entry: &Value, field: &str) -> Result<Option<String>, Fault> {
    match entry.get(field) {
        None => Ok(None),
        Some(value) => Ok(decode::<String>(value)
            .map(|text| Some(text).filter(|text| !text.is_empty()))
            .map_err(|DecodeError { source, .. }| DecodeError {
                field: field.to_owned(),
                source,
            })?),
    }
}

fn non_empty(value: &Value) -> Option<String> {
    let text = value.as_str().filter(|text| !text.is_empty());
    text.map(str::to_owned)
}

#[cfg(test)]
mod tests;
