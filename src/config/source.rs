//! Section `source`: the Kubernetes API or the manifests that describe the cluster.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::fields;

/// Source of nodes, pods, services, endpoints and permissions.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Source {
    /// Type of the source: `kubernetes` for a Kubernetes API, `manifests` for a directory of YAML
    /// files.
    #[serde(rename = "type")]
    pub kind: SourceKind,
    /// Settings of the type `kubernetes`.
    #[serde(deserialize_with = "fields::or_default")]
    pub kubernetes: KubernetesSource,
    /// Settings of the type `manifests`.
    #[serde(deserialize_with = "fields::or_default")]
    pub manifests: ManifestsSource,
}

/// Type of the cluster source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    #[default]
    Kubernetes,
    Manifests,
}

/// Connection to the Kubernetes API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct KubernetesSource {
    /// Kubeconfig file. If unset, those of `$KUBECONFIG` are used, else the service account of the
    /// pod, else `~/.kube/config`. Only the context in use has to be valid.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. If unset, its current context is used. If set, the service
    /// account is not used.
    pub context: Option<String>,
}

/// Directory of manifests that replaces a Kubernetes API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ManifestsSource {
    /// Directory whose `*.yaml`, `*.yml` and `*.json` files contain Node, Pod, Service,
    /// EndpointSlice, Role, `ClusterRole`, `RoleBinding` and `ClusterRoleBinding` objects and lists
    /// of them; reloaded when a file changes. Required by this type.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "directory path"))]
    pub directory: Option<PathBuf>,
    /// File with bearer tokens in kube-apiserver's format, one per line:
    /// `token,user,uid,"group1,group2"`.
    #[serde(deserialize_with = "fields::optional_path")]
    #[schemars(extend("x-type" = "file path"))]
    pub token_auth_file: Option<PathBuf>,
}
