//! Entries of a kubeconfig for a server.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::login::Login;
use super::text::Text;

/// Lists of a kubeconfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Clusters,
    Contexts,
    Users,
}

impl Section {
    /// Returns the field of the document.
    pub fn key(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Contexts => "contexts",
            Self::Users => "users",
        }
    }

    /// Returns the field of an entry beside its name.
    pub fn field(self) -> &'static str {
        match self {
            Self::Clusters => "cluster",
            Self::Contexts => "context",
            Self::Users => "user",
        }
    }
}

/// Server of a cluster, verified.
#[derive(Clone, Debug)]
pub struct Server {
    pub url: String,
    /// PEM. `None` if the CAs of the system verify the server.
    pub authority: Option<String>,
    pub tls_server_name: Option<String>,
}

/// A cluster and a context of the same name, and the user of the context.
#[derive(Clone)]
pub struct Entries {
    pub name: String,
    pub(super) cluster: Value,
    pub(super) context: Value,
    /// Name and fields.
    pub(super) user: Option<(String, Value)>,
}

// Without the user, which has credentials.
impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries")
            .field("name", &self.name)
            .field("cluster", &self.cluster)
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

impl Entries {
    /// Returns the entries for `server`, with user and namespace of `login`.
    pub fn new(
        name: String,
        server: Server,
        namespace: Option<String>,
        login: Option<Login>,
    ) -> Self {
        let mut cluster = Map::new();
        cluster.insert("server".into(), server.url.into());
        if let Some(name) = server.tls_server_name {
            cluster.insert("tls-server-name".into(), name.into());
        }
        if let Some(pem) = server.authority {
            let data = STANDARD.encode(pem);
            cluster.insert("certificate-authority-data".into(), data.into());
        }
        let mut context = Map::from_iter([("cluster".to_owned(), name.clone().into())]);
        let mut user = None;
        let mut namespace = namespace;
        if let Some(login) = login {
            if !login.extensions.is_empty() {
                cluster.insert("extensions".into(), login.extensions.into());
            }
            namespace = namespace.or(login.namespace);
            if let Some((name, _)) = &login.user {
                context.insert("user".into(), name.clone().into());
            }
            user = login.user;
        }
        if let Some(namespace) = namespace {
            context.insert("namespace".into(), namespace.into());
        }
        Self {
            name,
            cluster: cluster.into(),
            context: context.into(),
            user,
        }
    }

    /// Gives the user another name.
    pub fn rename_user(&mut self, name: String) {
        if let Some((user, _)) = &mut self.user {
            self.context["user"] = name.clone().into();
            *user = name;
        }
    }

    /// Removes the user, which the context still names: the file to merge into has it.
    pub fn remove_user(&mut self) {
        self.user = None;
    }

    /// Returns all entries: section, name and fields.
    pub(super) fn all(&self) -> Vec<(Section, &str, &Value)> {
        let mut all = vec![
            (Section::Clusters, &*self.name, &self.cluster),
            (Section::Contexts, &*self.name, &self.context),
        ];
        let user = self.user.as_ref();
        all.extend(user.map(|(name, fields)| (Section::Users, &**name, fields)));
        all
    }

    /// Formats a kubeconfig with these entries only.
    ///
    /// # Panics
    /// Never: JSON values have a form in YAML.
    pub fn to_yaml(&self) -> String {
        const PLAIN: &str = "JSON values have a form in YAML";
        let mut text = Text::new(EMPTY);
        for (section, name, fields) in self.all() {
            text.put(section, name, fields).expect(PLAIN);
        }
        text.set_current_context(&self.name).expect(PLAIN);
        text.into_string()
    }

    /// Puts the entries into a parsed kubeconfig.
    pub(super) fn put_into(&self, document: &mut Value, sets_current: bool) {
        for (section, name, fields) in self.all() {
            let list = &mut document[section.key()];
            if !list.is_array() {
                *list = json!([]);
            }
            let entry = json!({"name": name, section.field(): fields});
            let entries = list.as_array_mut().into_iter().flatten();
            match entries.into_iter().find(|entry| entry["name"] == name) {
                Some(existing) => *existing = entry,
                None => list
                    .as_array_mut()
                    .into_iter()
                    .for_each(|list| list.push(entry.clone())),
            }
        }
        if sets_current {
            document["current-context"] = self.name.clone().into();
        }
    }
}

/// Text of a kubeconfig without entries.
pub(super) const EMPTY: &str = "apiVersion: v1\nkind: Config\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::yaml;
    use serde_saphyr::DuplicateKeyPolicy;

    /// kubectl reads YAML 1.1, in which `on` is a boolean and `1_0` a number.
    #[test]
    fn prints_what_it_was_given() {
        let long = "x".repeat(3000);
        let user = json!({
            "token": "1_0", "as": "on", "as-groups": ["yes", "0o7", "2026-01-01", ""],
            "exec": {"command": "./a b", "args": ["-x", ": ", "# no", "a\nb\n"], "env": null,
                     "installHint": "first\n\n  second: 'x' \"y\"\n", "provideClusterInfo": true},
            "auth-provider": {"name": "oidc", "config": {"id-token": long, "client-id": "é \u{7}"}},
        });
        let login = Login {
            context: "c".to_owned(),
            namespace: Some("null".to_owned()),
            user: Some(("~".to_owned(), user.clone())),
            extensions: vec![json!({"name": EXTENSION, "extension": {"audience": "a"}})],
            files: Vec::new(),
        };
        let server = Server {
            url: "https://bastion.example".to_owned(),
            authority: Some("PEM".to_owned()),
            tls_server_name: Some("kube-bastion".to_owned()),
        };
        let text = Entries::new("true".to_owned(), server, None, Some(login)).to_yaml();
        let documents = yaml::parse(&text, DuplicateKeyPolicy::Error).unwrap();
        let mut user = user;
        user["exec"].as_object_mut().unwrap().remove("env");
        let expected = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "true",
            "clusters": [{"name": "true", "cluster": {
                "server": "https://bastion.example", "tls-server-name": "kube-bastion",
                "certificate-authority-data": "UEVN",
                "extensions": [{"name": EXTENSION, "extension": {"audience": "a"}}],
            }}],
            "contexts": [{"name": "true", "context": {
                "cluster": "true", "user": "~", "namespace": "null",
            }}],
            "users": [{"name": "~", "user": user}],
        });
        assert_eq!(documents.len(), 1);
        assert_eq!(documents[0].value, expected, "{text}");
        assert!(
            text.contains("as: \"on\"") || text.contains("as: 'on'"),
            "{text}"
        );
    }

    const EXTENSION: &str = "client.authentication.k8s.io/exec";
}
