//! Entries of kubeconfigs with the fields of `k8s.io/client-go/tools/clientcmd/api/v1`, decoded for
//! the commands of the desk.

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use super::{CLUSTER_PATHS, Fault, NamedEntry, USER_PATHS};

/// Text that logs and errors do not show.
#[derive(Clone, Debug)]
pub struct Secret(SecretString);

impl Secret {
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Default for Secret {
    fn default() -> Self {
        String::new().into()
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

/// A cluster, a user and a namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ContextEntry {
    pub cluster: String,
    pub user: String,
    pub namespace: String,
}

/// Address of a cluster, and how its certificate is verified.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ClusterEntry {
    pub server: Option<String>,
    pub tls_server_name: Option<String>,
    pub insecure_skip_tls_verify: bool,
    pub certificate_authority: Option<PathBuf>,
    /// Base64 of PEM.
    pub certificate_authority_data: Option<String>,
    pub proxy_url: Option<String>,
    pub disable_compression: bool,
}

/// Credentials of a user.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct UserEntry {
    pub client_certificate: Option<PathBuf>,
    /// Base64 of PEM.
    pub client_certificate_data: Option<String>,
    pub client_key: Option<PathBuf>,
    /// Base64 of PEM.
    pub client_key_data: Option<Secret>,
    pub token: Option<Secret>,
    #[serde(rename = "tokenFile")]
    pub token_file: Option<PathBuf>,
    pub username: Option<String>,
    pub password: Option<Secret>,
    #[serde(rename = "as")]
    pub impersonate: Option<String>,
    #[serde(rename = "as-uid")]
    pub impersonate_uid: Option<String>,
    #[serde(rename = "as-groups")]
    pub impersonate_groups: Vec<String>,
    #[serde(rename = "as-user-extra")]
    pub impersonate_extra: BTreeMap<String, Vec<String>>,
    pub auth_provider: Option<AuthProvider>,
    pub exec: Option<ExecPlugin>,
}

/// Login that is built into the client.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AuthProvider {
    pub name: String,
    pub config: BTreeMap<String, Secret>,
}

/// Credential plugin (`client.authentication.k8s.io`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExecPlugin {
    pub command: String,
    pub args: Vec<String>,
    pub env: Vec<EnvironmentVariable>,
    pub api_version: String,
    pub install_hint: String,
    pub provide_cluster_info: bool,
    pub interactive_mode: Option<InteractiveMode>,
}

/// Variable that a plugin gets besides the environment of the process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EnvironmentVariable {
    pub name: String,
    pub value: Secret,
}

/// Use of standard input by a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum InteractiveMode {
    Never,
    IfAvailable,
    Always,
}

impl NamedEntry {
    /// Decodes a context.
    ///
    /// # Errors
    /// It is malformed or ambiguous.
    pub fn to_context(&self) -> Result<ContextEntry, Fault> {
        self.decode(&[])
    }

    /// Decodes a cluster.
    ///
    /// # Errors
    /// It is malformed or ambiguous.
    pub fn to_cluster(&self) -> Result<ClusterEntry, Fault> {
        self.decode(CLUSTER_PATHS)
    }

    /// Decodes a user.
    ///
    /// # Errors
    /// It is malformed or ambiguous.
    pub fn to_user(&self) -> Result<UserEntry, Fault> {
        self.decode(USER_PATHS)
    }
}
