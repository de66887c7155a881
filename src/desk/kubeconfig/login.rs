//! The way in which the user of a context logs in, as the kubeconfig has it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::kubeconfig::{Entry, KubeconfigError, NamedEntry, Sections};

/// Fields of a user that name a file.
const USER_PATHS: [&str; 3] = ["client-certificate", "client-key", "tokenFile"];
/// Extension of a cluster that credential plugins receive.
const EXEC_EXTENSION: &str = "client.authentication.k8s.io/exec";

/// User of a context, and what belongs to its login.
#[derive(Clone)]
pub struct Login {
    /// Name of the context.
    pub context: String,
    pub namespace: Option<String>,
    /// Name and fields, with absolute paths. `None` if the context has no user.
    pub user: Option<(String, Value)>,
    /// Extensions of the cluster for the credential plugin of the user.
    pub(super) extensions: Vec<Value>,
    /// Files of the kubeconfig.
    pub files: Vec<PathBuf>,
}

// Without the user, which has credentials.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("context", &self.context)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Login {
    /// Loads a context of a kubeconfig, else the current one; without a file, from those that
    /// kubectl uses. `None` if none of them exists.
    ///
    /// # Errors
    /// The kubeconfig cannot be read, or has no such context or user.
    pub fn load(
        file: Option<&Path>,
        context: Option<&str>,
    ) -> Result<Option<Self>, KubeconfigError> {
        Sections::of_user(file)?
            .map(|sections| Self::new(&sections, context))
            .transpose()
    }

    fn new(sections: &Sections, context: Option<&str>) -> Result<Self, KubeconfigError> {
        let context = sections.context(context)?;
        let error = |entry, fault| KubeconfigError::Entry {
            context: context.name.clone(),
            files: sections.files.clone(),
            entry,
            fault: Box::new(fault),
        };
        let fields = context
            .to_context()
            .map_err(|fault| error(Entry::Context, fault))?;
        let user = sections.users.find(&fields.user);
        if let Some(user) = user {
            // Malformed credentials are an error here, not at the first use of the copy.
            user.to_user()
                .map_err(|fault| error(Entry::User(user.name.clone()), fault))?;
        }
        let extensions = sections.clusters.find(&fields.cluster);
        let extensions = extensions.and_then(|cluster| cluster.value["extensions"].as_array());
        let extensions = extensions.into_iter().flatten();
        let extensions = extensions.filter(|extension| extension["name"] == EXEC_EXTENSION);
        Ok(Self {
            context: context.name.clone(),
            namespace: Some(fields.namespace).filter(|name| !name.is_empty()),
            user: user.map(|user| (user.name.clone(), with_absolute_paths(user))),
            extensions: extensions.cloned().collect(),
            files: sections.files.0.clone(),
        })
    }
}

/// Returns the fields of a user with paths that are valid in any directory.
fn with_absolute_paths(user: &NamedEntry) -> Value {
    let mut fields = user.value.clone();
    let file = std::path::absolute(&user.file).unwrap_or_else(|_| user.file.clone());
    let directory = file.parent().unwrap_or(Path::new(""));
    let make_absolute = |field: Option<&mut Value>| {
        if let Some(field) = field
            && let Some(path) = field.as_str()
            && !path.is_empty()
        {
            *field = directory.join(path).to_string_lossy().into();
        }
    };
    for path in USER_PATHS {
        make_absolute(fields.get_mut(path));
    }
    // A command without a separator is found by $PATH.
    let command = fields.pointer_mut("/exec/command");
    make_absolute(command.filter(|command| {
        let command = command.as_str();
        command.is_some_and(|command| command.contains(std::path::MAIN_SEPARATOR))
    }));
    fields
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_absolute_and_only_the_extension_of_plugins_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config");
        let extensions =
            json!([{"name": EXEC_EXTENSION, "extension": {"a": 1}}, {"name": "other"}]);
        let user = json!({
            "client-certificate": "pki/jane.crt", "client-key": "/pki/jane.key", "tokenFile": "",
            "exec": {"command": "./login", "apiVersion": "client.authentication.k8s.io/v1",
                     "interactiveMode": "Never"},
        });
        let kubeconfig = json!({
            "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u", "namespace": "n"}}],
            "clusters": [{"name": "c", "cluster": {"server": "s", "extensions": extensions}}],
            "users": [{"name": "u", "user": user}],
        });
        std::fs::write(&file, kubeconfig.to_string()).unwrap();
        let login = Login::load(Some(&file), Some("a")).unwrap().unwrap();
        let (name, fields) = login.user.unwrap();
        let at = |path: &str| directory.path().join(path).display().to_string();
        assert_eq!((&*name, login.namespace.as_deref()), ("u", Some("n")));
        assert_eq!(fields["client-certificate"], at("pki/jane.crt"));
        assert_eq!(fields["client-key"], "/pki/jane.key");
        assert_eq!(fields["tokenFile"], "");
        assert_eq!(fields["exec"]["command"], at("./login"));
        assert_eq!(login.extensions, [extensions[0].clone()]);
        assert_eq!(login.files, [file]);
    }
}
